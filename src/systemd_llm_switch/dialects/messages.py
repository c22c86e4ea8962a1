"""Anthropic's messages: a chat's reply as a message, or as the events of one (https://docs.claude.com/en/api/messages)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator

from systemd_llm_switch.dialects.dialect import Dialect, named_event
from systemd_llm_switch.dialects.parts import Call, End, Part, PartReader, Text, Thought, parts_of, whole_number
from systemd_llm_switch.openai.shapes import Json, dump, object_of
from systemd_llm_switch.openai.sse import split_text

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
# https://docs.claude.com/en/api/errors
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(status: int, error: Json) -> Json:
    """An error in Anthropic's shape. What OpenAI's shape says beyond it stays in the object."""
    return {"type": "error", "error": error | {"type": _error_type(status)}}


def _error_type(status: int) -> str:
    return _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


class Messages(Dialect):
    """The answer to one request of `/v1/messages`."""

    is_translation = True

    def __init__(self, original: Json) -> None:
        """`original`: the request's body."""
        self._model = str(original["model"])
        self._reader = PartReader()
        self._id = f"msg_{os.urandom(12).hex()}"
        self._has_begun = False
        self._index = -1  # of the last block
        self._open = ""  # the type of the block that is not finished

    def whole(self, reply: Json, raw: bytes) -> bytes:
        *parts, end = parts_of(reply)
        assert isinstance(end, End)
        message = self._message(str(reply.get("model") or self._model), end.usage)
        return dump(message | {"content": list(_blocks(parts)), **_stop(end)})

    def events(self, frames: bytes) -> bytes:
        parts = self._reader.feed(frames)
        return b"".join((*self._begin(), *(event for part in parts for event in self._part(part))))

    def error_events(self, status: int, error: Json, *, may_get_better: bool) -> bytes:
        return named_event(error_body(status, error))

    def _message(self, model: str, usage: Json) -> Json:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    def _begin(self) -> Iterator[bytes]:
        if not self._has_begun:
            self._has_begun = True
            message = self._message(self._reader.model or self._model, self._reader.usage)
            yield named_event({"type": "message_start", "message": message})

    def _part(self, part: Part) -> Iterator[bytes]:
        match part:
            case Thought(text):
                yield from self._words({"type": "thinking", "thinking": "", "signature": ""}, text)
            case Text(text):
                yield from self._words({"type": "text", "text": ""}, text)
            case Call(call_id, name, arguments):
                yield from self._start({"type": "tool_use", "id": call_id, "name": name, "input": {}})
                for piece in split_text(arguments):
                    yield self._delta({"type": "input_json_delta", "partial_json": piece})
                yield from self._stop()
            case End():
                yield from self._stop()
                yield named_event({"type": "message_delta", "delta": _stop(part), "usage": _usage(part.usage)})
                yield named_event({"type": "message_stop"})

    def _words(self, block: Json, text: str) -> Iterator[bytes]:
        kind = block["type"]
        if self._open != kind:
            yield from self._start(block)
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _start(self, block: Json) -> Iterator[bytes]:
        yield from self._stop()
        self._index += 1
        self._open = block["type"]
        yield named_event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, delta: Json) -> bytes:
        return named_event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _stop(self) -> Iterator[bytes]:
        if self._open == "thinking":  # clients send it back, and keep no thought without one
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._open:
            yield named_event({"type": "content_block_stop", "index": self._index})
        self._open = ""


def _blocks(parts: Iterable[Part]) -> Iterator[Json]:
    for part in parts:
        match part:
            case Thought(text):
                yield {"type": "thinking", "thinking": text, "signature": ""}
            case Text(text):
                yield {"type": "text", "text": text}
            case Call(call_id, name, arguments):
                yield {"type": "tool_use", "id": call_id, "name": name, "input": json.loads(arguments)}


def _stop(end: End) -> Json:
    return {"stop_reason": _STOP_REASONS.get(end.finish_reason, "end_turn"), "stop_sequence": None}


def _usage(usage: Json) -> Json:
    """The usage. Anthropic counts cached tokens in addition to the input, OpenAI as a part of it."""
    cached = whole_number(object_of(usage.get("prompt_tokens_details")).get("cached_tokens"))
    return {
        "input_tokens": whole_number(usage.get("prompt_tokens")) - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": whole_number(usage.get("completion_tokens")),
    }
