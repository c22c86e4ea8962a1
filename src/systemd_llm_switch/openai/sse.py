"""Server-sent events: a finished reply as events, errors, keep-alives, and a reader of a backend's events. Pure.

docs/design.md, "For clients", lists what real clients need.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from systemd_llm_switch.openai.shapes import Json, choices_of, dump, object_of, objects_of

SSE_HEADERS = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),
)
# A comment that starts with "ping" ends the answer for Continue; an event of any other kind breaks SDKs.
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

# Older Open WebUI dies at lines of 128 KiB. A character takes at most 12 bytes as JSON: 48 KiB a line.
_PIECE_CHARS = 4096
_LOGPROBS_A_CHUNK = 16
_WORTH_A_RETRY = (408, 409, 429)
_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_TEXT_FIELDS = ("reasoning_content", "reasoning", "content")
_SPLIT_FIELDS = ("role", *_TEXT_FIELDS, "tool_calls", "function_call")


class EventReader:
    """Splits a backend's SSE bytes into the data of its events (https://html.spec.whatwg.org/#parsing-an-event-stream).
    OpenAI's protocol uses only the field `data`. Takes linear time, no matter how the bytes are split."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the event that is not complete
        self._last = b""  # the last byte of these pieces
        self._carriage_return = b""  # at the end of what came; a newline may follow

    def feed(self, received: bytes) -> list[bytes]:
        """The data of each event that is complete now."""
        received = self._carriage_return + received
        self._carriage_return = received[-1:] if received.endswith(b"\r") else b""
        received = received.removesuffix(b"\r").replace(b"\r\n", b"\n")
        if b"\n\n" not in received and not (self._last == b"\n" and received.startswith(b"\n")):
            self._keep(received)
            return []
        *events, rest = b"".join((*self._pieces, received)).split(b"\n\n")
        self._pieces.clear()
        self._last = b""
        self._keep(rest)
        return [data for event in events if (data := _data_of(event))]

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
            self._last = piece[-1:]

    @property
    def is_between_events(self) -> bool:
        """Whether the proxy may send an event or a comment of its own now."""
        return not (self._pieces or self._carriage_return)


def _data_of(event: bytes) -> bytes:
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))


def frame(chunk: object) -> bytes:
    """One event of a stream."""
    return b"data: " + dump(chunk) + b"\n\n"


def raw_frame(body: bytes) -> bytes:
    """One event whose data is an unchanged body, line by line."""
    return b"".join(b"data: " + line + b"\n" for line in body.splitlines()) + b"\n"


def may_get_better(status: int) -> bool:
    """Whether a retry can help after an error of this status."""
    return status >= 500 or status in _WORTH_A_RETRY


def error_event(error: Json, *, may_get_better: bool) -> bytes:
    """An error event, for after the headers were sent; `error` has OpenAI's shape, without the object around it.

    If a retry cannot help, the *message* must say so: litellm looks only at it before it sends the request again, up to
    eight times (measured; docs/design.md, "For clients")."""
    if not may_get_better:
        error = error | {"message": f"invalid_request_error: {error['message']}"}
    return frame({"error": error})


def sse_frames(reply: Json, is_chat: bool, wants_usage: bool) -> Iterator[bytes]:
    """A finished chat or text completion as the events that a streaming client expects, in the order role, reasoning,
    content, tool calls, finish_reason, usage, `[DONE]`. Each chunk has only one of them, because some clients read only
    one."""
    envelope: Json = {name: reply[name] for name in ("id", "created", "model", "system_fingerprint") if name in reply}
    envelope["object"] = "chat.completion.chunk" if is_chat else "text_completion"
    choices = choices_of(reply)
    extras = {name: reply[name] for name in ("timings",) if name in reply}
    for position, choice in enumerate(choices):
        index = choice.get("index", position)
        pieces = _chat_pieces(choice) if is_chat else _text_pieces(choice)
        for piece in pieces:
            yield frame(envelope | {"choices": [{"index": index, **piece, "finish_reason": None}]})
        last: Json = {"delta": {}} if is_chat else {"text": ""}
        reason = choice.get("finish_reason") or "stop"
        tail = extras if position == len(choices) - 1 else {}
        yield frame(envelope | {"choices": [{"index": index, **last, "finish_reason": reason}]} | tail)
    if wants_usage:
        yield frame(envelope | {"choices": [], "usage": reply.get("usage") or _NO_USAGE})
    yield DONE


def _chat_pieces(choice: Json) -> Iterator[Json]:
    message = object_of(choice.get("message"))
    others = {name: value for name, value in message.items() if name not in _SPLIT_FIELDS}
    yield {"delta": {"role": message.get("role") or "assistant", **others}}
    for name in _TEXT_FIELDS:
        for text in split_text(message.get(name)):
            yield {"delta": {name: text}}
    for position, call in enumerate(objects_of(message.get("tool_calls"))):
        yield from ({"delta": {"tool_calls": [delta]}} for delta in tool_call_deltas(position, call))
    yield from ({"delta": {"function_call": delta}} for delta in function_call_deltas(message.get("function_call")))
    yield from ({"delta": {}, "logprobs": part} for part in split_logprobs(choice.get("logprobs")))


def tool_call_deltas(position: int, call: Json) -> Iterator[Json]:
    """A whole tool call as deltas: the first one has id and name, the others the rest of the arguments."""
    function = object_of(call.get("function"))
    texts = list(split_text(function.get("arguments"))) or [""]
    head = {name: value for name, value in call.items() if name != "function"}
    yield {"index": position, **head, "function": {"name": function.get("name"), "arguments": texts[0]}}
    for text in texts[1:]:
        yield {"index": position, "function": {"arguments": text}}


def function_call_deltas(legacy: object) -> Iterator[Json]:
    """The legacy `function_call` as deltas; nothing if the message has none."""
    if isinstance(legacy, dict):
        yield {"name": legacy.get("name"), "arguments": ""}
        for text in split_text(legacy.get("arguments")):
            yield {"arguments": text}


def _text_pieces(choice: Json) -> Iterator[Json]:
    parts = split_logprobs(choice.get("logprobs"))
    texts = list(split_text(choice.get("text"))) or [""]
    for text, part in itertools.zip_longest(texts, parts):
        yield {"text": text or "", "logprobs": part}


def split_text(text: object) -> Iterator[str]:
    """A string in pieces, so that the line of each event stays short enough."""
    if isinstance(text, str):
        for start in range(0, len(text), _PIECE_CHARS):
            yield text[start : start + _PIECE_CHARS]


def split_logprobs(logprobs: object) -> Iterator[Json]:
    """The log probabilities of a choice in pieces. They are parallel lists: a chat has one, `content`; OpenAI's older
    completions have one each for tokens, offsets and so on."""
    lists = {name: value for name, value in object_of(logprobs).items() if isinstance(value, list)}
    for start in range(0, max(map(len, lists.values()), default=0), _LOGPROBS_A_CHUNK):
        yield {name: value[start : start + _LOGPROBS_A_CHUNK] for name, value in lists.items()}
