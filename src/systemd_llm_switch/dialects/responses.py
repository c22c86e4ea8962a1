"""OpenAI's responses: a chat's reply as a response, or as the events of one
(https://platform.openai.com/docs/api-reference/responses-streaming)."""

from __future__ import annotations

import os
from collections.abc import Iterator

from systemd_llm_switch.dialects.dialect import Dialect, named_event
from systemd_llm_switch.dialects.parts import Call, End, Part, PartReader, Text, Thought, parts_of, whole_number
from systemd_llm_switch.dialects.responses_tools import Tools
from systemd_llm_switch.openai.shapes import Json, dump, object_of
from systemd_llm_switch.openai.sse import split_text

# What a response repeats of its request, and what it says where the request says nothing.
_REPEATED: Json = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
}
_OVERFLOW = "context length exceeded"


class Responses(Dialect):
    """The answer to one request of `/v1/responses`."""

    is_translation = True

    def __init__(self, original: Json) -> None:
        """`original`: the request's body."""
        self._model = str(original["model"])
        self._tools = Tools(original)
        self._repeated = {name: original.get(name, default) for name, default in _REPEATED.items()}
        self._reader = PartReader()
        self._id = _new_id("resp")
        self._number = 0  # of the next event
        self._output: list[Json] = []  # finished items
        self._open: Json | None = None  # the item of words that is not finished
        self._pieces: list[str] = []  # its text

    def whole(self, reply: Json, raw: bytes) -> bytes:
        for part in parts_of(reply):
            match part:
                case Thought() | Text():
                    self._output.append(_words_item(part, part.text))
                case Call():
                    self._output.append(self._tools.item_of(part, _new_id("fc")))
                case End():
                    status = _status(part)
                    usage = _usage(part.usage)
        created, model = reply.get("created"), str(reply.get("model") or self._model)
        return dump(self._response(status, model, created, usage))

    def events(self, frames: bytes) -> bytes:
        parts = self._reader.feed(frames)
        return b"".join((*self._begin(), *(event for part in parts for event in self._part(part))))

    def error_events(self, status: int, error: Json, *, may_get_better: bool) -> bytes:
        """`response.failed` for clients that read the response, `error` for those that raise it."""
        failed = self._snapshot("failed")
        code = "context_length_exceeded" if _OVERFLOW in error["message"] else str(error["code"])
        failed["error"] = {"code": code, "message": error["message"]}
        fields = {name: error.get(name) for name in ("code", "message", "param")}
        return b"".join(
            (
                *self._begin(),
                self._event("response.failed", response=failed),
                self._event("error", **fields, error=error),
            )
        )

    # --- the response -----------------------------------------------------------------------------------

    def _snapshot(self, status: str, usage: Json | None = None) -> Json:
        reader = self._reader
        return self._response(status, reader.model or self._model, reader.created, usage)

    def _response(self, status: str, model: str, created: object, usage: Json | None) -> Json:
        is_cut = status == "incomplete"
        return {
            "id": self._id,
            "object": "response",
            "created_at": created if isinstance(created, int) else 0,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "model": model,
            "output": list(self._output),
            "usage": usage,
            **self._repeated,
        }

    # --- the stream -------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: object) -> bytes:
        event = named_event({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return event

    def _begin(self) -> Iterator[bytes]:
        if self._number == 0:
            yield self._event("response.created", response=self._snapshot("in_progress"))
            yield self._event("response.in_progress", response=self._snapshot("in_progress"))

    def _part(self, part: Part) -> Iterator[bytes]:
        match part:
            case Thought() | Text():
                yield from self._words(part)
            case Call():
                yield from self._finish_words()
                yield from self._call(self._tools.item_of(part, _new_id("fc")))
            case End():
                yield from self._finish_words()
                status = _status(part)
                yield self._event(f"response.{status}", response=self._snapshot(status, _usage(part.usage)))

    def _words(self, part: Thought | Text) -> Iterator[bytes]:
        item = _words_item(part, "")
        if self._open is None or self._open["type"] != item["type"]:
            yield from self._finish_words()
            self._open = item
            content = item["content"][0]
            begun = item | {"status": "in_progress", "content": []}
            yield self._event("response.output_item.added", output_index=len(self._output), item=begun)
            yield self._event("response.content_part.added", **self._place(), part=content)
        self._pieces.append(part.text)
        yield self._event(f"response.{self._kind()}.delta", **self._place(), delta=part.text, **_logprobs(part))

    def _finish_words(self) -> Iterator[bytes]:
        if self._open is None:
            return
        text = "".join(self._pieces)
        self._pieces.clear()
        content = self._open["content"][0] | {"text": text}
        item = self._open | {"content": [content]}
        more: Json = {"logprobs": []} if item["type"] == "message" else {}
        yield self._event(f"response.{self._kind()}.done", **self._place(), text=text, **more)
        yield self._event("response.content_part.done", **self._place(), part=content)
        yield self._done(item)
        self._open = None

    def _call(self, item: Json) -> Iterator[bytes]:
        name, kind = ("input", "custom_tool_call_input")
        if item["type"] == "function_call":
            name, kind = ("arguments", "function_call_arguments")
        place = {"item_id": item["id"], "output_index": len(self._output)}
        begun = item | {"status": "in_progress", name: ""}
        yield self._event("response.output_item.added", output_index=len(self._output), item=begun)
        for piece in split_text(item[name]):
            yield self._event(f"response.{kind}.delta", **place, delta=piece)
        yield self._event(f"response.{kind}.done", **place, **{"name": item["name"], name: item[name]})
        yield self._done(item)

    def _done(self, item: Json) -> bytes:
        event = self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        return event

    def _kind(self) -> str:
        return "output_text" if self._open is not None and self._open["type"] == "message" else "reasoning_text"

    def _place(self) -> Json:
        item_id = "" if self._open is None else self._open["id"]
        return {"item_id": item_id, "output_index": len(self._output), "content_index": 0}


def _new_id(prefix: str) -> str:
    return f"{prefix}_{os.urandom(12).hex()}"


def _logprobs(part: Thought | Text) -> Json:
    return {"logprobs": []} if isinstance(part, Text) else {}


def _words_item(part: Thought | Text, text: str) -> Json:
    if isinstance(part, Thought):
        content: Json = {"type": "reasoning_text", "text": text}
        return {"id": _new_id("rs"), "type": "reasoning", "status": "completed", "summary": [], "content": [content]}
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "id": _new_id("msg"),
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [content],
    }


def _status(end: End) -> str:
    return "incomplete" if end.finish_reason == "length" else "completed"


def _usage(usage: Json) -> Json:
    read, written = whole_number(usage.get("prompt_tokens")), whole_number(usage.get("completion_tokens"))
    cached = whole_number(object_of(usage.get("prompt_tokens_details")).get("cached_tokens"))
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": whole_number(usage.get("total_tokens")) or read + written,
    }
