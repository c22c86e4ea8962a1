"""The OpenAI protocol, pure: a request's bytes in, what must be known of it out; errors and SSE frames.

Knows no socket, no unit and no web framework. What real clients need is in docs/design.md, "For clients".
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from systemd_llm_switch.errors import InvalidJson, InvalidRequest, MissingModel, ProxyError
from systemd_llm_switch.routes import FORWARDED, Kind

Json = dict[str, Any]

JSON_TYPE = ("Content-Type", "application/json; charset=utf-8")
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
_MAX_FIELD = 10_000


@dataclass(frozen=True, slots=True)
class Request:
    """What the proxy must know of a request. `body` must not be changed: `raw` are the same bytes."""

    path: str
    model: str
    body: Json
    raw: bytes
    is_streamed: bool
    wants_usage: bool
    content_type: str
    is_form: bool = False

    @property
    def is_chat(self) -> bool:
        return FORWARDED.get(self.path) is Kind.CHAT

    @property
    def is_repairable(self) -> bool:
        """Whether the reply is a chat's or a completion's."""
        return FORWARDED.get(self.path) in (Kind.CHAT, Kind.TEXT)


def parse_request(
    path: str, raw: bytes, known_models: Iterable[str], content_type: str = "application/json"
) -> Request:
    """Reads a request's body: JSON, or a form where its Content-Type says so.

    Raises:
        InvalidJson, InvalidRequest, MissingModel: what the client must mend.
    """
    is_form = content_type.lower().startswith("multipart/form-data")
    body = _parse_form(raw, content_type) if is_form else parse_object(raw)
    model = body.get("model")
    if model is None or model == "":
        raise MissingModel(known_models)
    if not isinstance(model, str):
        raise InvalidRequest("`model` must be a text", param="model")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("`stream` must be true or false", param="stream")
    options = body.get("stream_options")
    wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    # llama-server wants to read JSON whatever the client called it.
    sent_as = content_type if is_form else "application/json"
    return Request(path, model, body, raw, bool(stream), wants_usage, sent_as, is_form)


def _parse_form(raw: bytes, content_type: str) -> Json:
    """The short text fields of a multipart form; its files are not looked at."""
    import multipart  # web.py brings it; needed for audio only

    _, options = multipart.parse_options_header(content_type)
    try:
        parser = multipart.MultipartParser(io.BytesIO(raw), options.get("boundary", ""), memory_limit=len(raw) + 1)
        fields: Json = {part.name: part.value for part in parser if not part.filename and part.size < _MAX_FIELD}
    except (multipart.MultipartError, ValueError) as error:
        raise InvalidRequest(f"the form cannot be read: {error}") from error
    if "stream" in fields:
        fields["stream"] = fields["stream"].lower() == "true"
    return fields


def parse_object(raw: bytes) -> Json:
    """Reads a body that must be a JSON object.

    Raises:
        InvalidJson, InvalidRequest
    """
    try:
        # Decoded here: of bytes, Python would take UTF-16 and UTF-32 too, which no backend reads.
        body = _DECODER.decode(raw.decode())
    except (ValueError, RecursionError) as error:
        detail = str(error) if raw.strip() else "it is empty"
        raise InvalidJson(f"the request body is no valid JSON: {detail}") from error
    if not isinstance(body, dict):
        raise InvalidRequest("the request body must be a JSON object")
    return body


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)


def to_backend(
    request: Request,
    body: Json,
    params: Mapping[str, object],
    force: Mapping[str, object],
    stream: bool = False,
) -> bytes:
    """The bytes for the backend: as they came, unless something must differ.

    `body` is the request's, or a mended copy of it; `params` are defaults and `force` is not to be overridden. A form
    goes on as it came: it holds files.

    Raises:
        InvalidJson: it could just be read, but is nested too deeply to be written again.
    """
    if request.is_form:
        return request.raw
    changed = {name: value for name, value in params.items() if name not in body} | dict(force)
    if stream:
        if request.is_repairable:
            changed["stream_options"] = {"include_usage": True}  # for the journal, whatever the client wants
    elif body.get("stream") or "stream_options" in body:
        changed["stream"] = False
    choice = changed.get("tool_choice", body.get("tool_choice"))
    if isinstance(choice, dict) and request.is_chat:
        changed |= _as_only_tool(choice, changed.get("tools", body.get("tools")))
    if not changed and body is request.body:
        return request.raw
    sent = body | changed
    if not stream:
        sent.pop("stream_options", None)
    try:
        return dump(sent)
    except RecursionError as error:
        raise InvalidJson("the request body is nested too deeply") from error


def _as_only_tool(choice: Json, tools: object) -> Json:
    """A tool that must be called, by its name, as the only one there is: llama-server takes an object as
    `tool_choice` for "auto" (https://github.com/ggml-org/llama.cpp/issues/26535). A name that no tool has is left
    to the backend."""
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    named = [tool for tool in tools if _has_name(tool, name)] if isinstance(tools, list) else []
    return {"tool_choice": "required", "tools": named} if named else {}


def _has_name(tool: object, name: object) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(name, str) and function.get("name") == name


def dump(value: object) -> bytes:
    """Compact JSON, all ASCII: a lone surrogate in a text, which UTF-8 cannot carry, survives."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


class EventReader:
    """Cuts a backend's SSE bytes into the data of its events (https://html.spec.whatwg.org/#parsing-an-event-stream;
    of the fields only `data` matters to OpenAI's protocol)."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The data of each event that is complete now."""
        *events, self._rest = (self._rest + received).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield b"\n".join(lines)

    @property
    def is_between_events(self) -> bool:
        """Whether something of ours may be sent now."""
        return not self._rest


# --- SSE ------------------------------------------------------------------------------------------


def frame(chunk: object) -> bytes:
    """One event of a stream."""
    return b"data: " + dump(chunk) + b"\n\n"


def raw_frame(body: bytes) -> bytes:
    """One event that holds a body as it is, on as many lines as it has."""
    return b"".join(b"data: " + line + b"\n" for line in body.splitlines()) + b"\n"


def error_frame(error: ProxyError) -> bytes:
    """An error after the headers are sent."""
    may_get_better = not error.permanent and (error.status >= 500 or error.status in _WORTH_A_RETRY)
    return _error_frame(error.body(), may_get_better)


def foreign_error_frame(status: int, body: Json) -> bytes:
    """A backend's own error (of `foreign_error`) after the headers are sent."""
    return _error_frame(body, may_get_better=status >= 500 or status in _WORTH_A_RETRY)


def _error_frame(body: Json, may_get_better: bool) -> bytes:
    """Where trying again cannot help, the *message* must say so: it is all that litellm looks at before it sends
    the request again, up to eight times (measured; docs/design.md, "For clients")."""
    if not may_get_better:
        told = body["error"]
        body = {"error": told | {"message": f"invalid_request_error: {told['message']}"}}
    return frame(body)


def foreign_error(status: int, raw: bytes) -> Json:
    """What a backend said of a failure, with whatever OpenAI's shape has and it left out."""
    try:
        told = json.loads(raw)["error"]
        told = dict(told) if isinstance(told, dict) else {"message": told and str(told)}
    except (ValueError, KeyError, TypeError, RecursionError):
        told = {"message": raw.decode("utf-8", "replace")[:_MAX_TOLD_CHARS]}
    message = str(told.get("message") or f"the backend answered {status} without a word")
    if any(words in message for words in _OVERFLOW_WORDS) and _OVERFLOW_FOR_CLIENTS not in message:
        message = f"{message} ({_OVERFLOW_FOR_CLIENTS})"
    kind, param, code = told.get("type"), told.get("param"), told.get("code")
    if not isinstance(kind, str):
        kind = "server_error" if status >= 500 else "invalid_request_error"
    if isinstance(code, bool) or not isinstance(code, str | int):
        code = "backend_error"
    shape = {"message": message, "type": kind, "param": param if isinstance(param, str) else None, "code": code}
    return {"error": told | shape}


_WORTH_A_RETRY = (408, 409, 429)
_MAX_TOLD_CHARS = 2000
# llama-server's words for a prompt that is too long; Roo and Cline condense only when they read the other.
_OVERFLOW_WORDS = ("exceeds the available context size", "exceed_context_size")
_OVERFLOW_FOR_CLIENTS = "context length exceeded"


def sse_frames(reply: Json, is_chat: bool, wants_usage: bool) -> Iterator[bytes]:
    """Splits a finished chat or text completion into the events a streaming client expects, in the order
    role, reasoning, content, tool calls, finish_reason, usage, `[DONE]`: a chunk holds one of them only, since
    some clients read one a chunk."""
    envelope: Json = {
        name: reply[name] for name in ("id", "created", "model", "system_fingerprint") if name in reply
    }
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


def choices_of(reply: Mapping[str, Any]) -> list[Json]:
    """The choices of a completion."""
    return objects_of(reply.get("choices"))


def objects_of(value: object) -> list[Json]:
    """The objects of a list; a backend's reply may hold anything anywhere."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def object_of(value: object) -> Json:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_TEXT_FIELDS = ("reasoning_content", "reasoning", "content")
_SPLIT_FIELDS = ("role", *_TEXT_FIELDS, "tool_calls", "function_call")


def _chat_pieces(choice: Json) -> Iterator[Json]:
    message = object_of(choice.get("message"))
    others = {name: value for name, value in message.items() if name not in _SPLIT_FIELDS}
    yield {"delta": {"role": message.get("role") or "assistant", **others}}
    for name in _TEXT_FIELDS:
        for text in split_text(message.get(name)):
            yield {"delta": {name: text}}
    for position, call in enumerate(objects_of(message.get("tool_calls"))):
        yield from ({"delta": {"tool_calls": [delta]}} for delta in tool_call_deltas(position, call))
    yield from (
        {"delta": {"function_call": delta}} for delta in function_call_deltas(message.get("function_call"))
    )
    yield from ({"delta": {}, "logprobs": part} for part in split_logprobs(choice.get("logprobs")))


def tool_call_deltas(position: int, call: Json) -> Iterator[Json]:
    """One whole tool call as deltas: what identifies it comes in the first, its arguments in pieces after."""
    function = object_of(call.get("function"))
    texts = list(split_text(function.get("arguments"))) or [""]
    head = {name: value for name, value in call.items() if name != "function"}
    yield {"index": position, **head, "function": {"name": function.get("name"), "arguments": texts[0]}}
    for text in texts[1:]:
        yield {"index": position, "function": {"arguments": text}}


def function_call_deltas(legacy: object) -> Iterator[Json]:
    """The same for the legacy `function_call`; nothing where there is none."""
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
    """A text in pieces that keep an event's line short enough."""
    if isinstance(text, str):
        for start in range(0, len(text), _PIECE_CHARS):
            yield text[start : start + _PIECE_CHARS]


def split_logprobs(logprobs: object) -> Iterator[Json]:
    """The log probabilities of a choice in pieces, likewise: lists that run side by side (a chat has one, `content`;
    OpenAI's older completions have one each for tokens, offsets and so on)."""
    lists = {name: value for name, value in object_of(logprobs).items() if isinstance(value, list)}
    for start in range(0, max(map(len, lists.values()), default=0), _LOGPROBS_A_CHUNK):
        yield {name: value[start : start + _LOGPROBS_A_CHUNK] for name, value in lists.items()}
