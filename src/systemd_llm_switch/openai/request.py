"""A request in OpenAI's protocol: the fields that the proxy needs, and the bytes that the backend gets. Pure.

Must not know sockets, units or the web framework.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from systemd_llm_switch.errors import InvalidJson, InvalidRequest, MissingModel
from systemd_llm_switch.openai.decoder import Decoder, TooLarge
from systemd_llm_switch.openai.endpoints import FORWARDED, MODEL_IS_OPTIONAL, ReplyKind
from systemd_llm_switch.openai.json_cost import bounded_float, bounded_int
from systemd_llm_switch.openai.large_json import dump_like
from systemd_llm_switch.openai.shapes import Json
from systemd_llm_switch.quoting import printable

_MAX_FIELD = 10_000
_TEMPLATE_OPTIONS = "chat_template_kwargs"


@dataclass(frozen=True, slots=True)
class Request:
    """A parsed request. `body` must not be changed, because `raw` are its bytes."""

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
        return FORWARDED.get(self.path) is ReplyKind.CHAT

    @property
    def is_repairable(self) -> bool:
        """Whether the reply is a chat's or a completion's."""
        return FORWARDED.get(self.path) in (ReplyKind.CHAT, ReplyKind.TEXT)


def parse_request(
    path: str,
    raw: bytes,
    known_models: Iterable[str],
    content_type: str = "application/json",
    find_default: Callable[[], str | None] = lambda: None,
) -> Request:
    """Reads a request's body: JSON, or a form if its Content-Type says so. `find_default` finds the model for a request
    without one, on the routes where that is allowed.

    Raises:
        InvalidJson, InvalidRequest, MissingModel: what the client must correct.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    is_form = content_type.lower().startswith("multipart/form-data")
    body = _parse_form(raw, content_type) if is_form else parse_object(raw)
    model = body.get("model")
    if model is None or model == "":
        model = find_default() if path in MODEL_IS_OPTIONAL else None
    if model is None:
        raise MissingModel(known_models)
    if not isinstance(model, str):
        raise InvalidRequest("`model` must be a string", param="model")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("`stream` must be true or false", param="stream")
    options = body.get("stream_options")
    wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    # llama-server must get JSON as JSON, even if the client sent another Content-Type.
    sent_as = content_type if is_form else "application/json"
    return Request(path, model, body, raw, bool(stream), wants_usage, sent_as, is_form)


def _parse_form(raw: bytes, content_type: str) -> Json:
    """The short text fields of a multipart form. Files are skipped."""
    import multipart  # web.py brings it; needed for audio only

    _, options = multipart.parse_options_header(content_type)
    try:
        most = len(raw) + 1  # in memory: a file would need a disk with room, and leave the user's words there
        parser = multipart.MultipartParser(
            io.BytesIO(raw), options.get("boundary", ""), memory_limit=most, spool_limit=most
        )
        fields: Json = {part.name: part.value for part in parser if not part.filename and part.size < _MAX_FIELD}
    except (multipart.MultipartError, ValueError, LookupError) as error:  # the last: a charset that does not exist
        raise InvalidRequest(f"the form cannot be read: {printable(str(error))}") from error
    if "stream" in fields:
        fields["stream"] = fields["stream"].lower() == "true"
    return fields


def parse_object(raw: bytes) -> Json:
    """Reads a body that must be a JSON object.

    Raises:
        InvalidJson, InvalidRequest
    """
    try:
        body = _DECODER.decode(raw.removeprefix(codecs.BOM_UTF8))
    except TooLarge as error:
        raise InvalidRequest(f"the request body cannot be read: {error}; send it in several requests") from error
    except (ValueError, RecursionError) as error:
        detail = str(error) if raw.strip() else "it is empty"
        raise InvalidJson(f"the request body is not valid JSON: {printable(detail)}") from error
    if not isinstance(body, dict):
        raise InvalidRequest("the request body must be a JSON object")
    return body


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = Decoder(parse_constant=_reject_constant, parse_float=bounded_float, parse_int=bounded_int)


def to_backend(
    request: Request,
    body: Json,
    params: Mapping[str, object],
    force: Mapping[str, object],
    stream: bool = False,
) -> bytes:
    """The bytes for the backend: the client's own bytes, unless something must change. A chat or a completion says
    `"stream": false`, unless its reply is passed on live, because not every backend takes that for granted.

    `body` is the request's, or a repaired copy of it. `params` are defaults; `force` overrides the request. A form is
    passed on unchanged, because it contains files.

    Raises:
        InvalidJson: the body could be read, but is nested too deeply to be written again.
    """
    if request.is_form:
        return request.raw
    changed = _changed(request, body, params, force, stream)
    lacks_stream = request.is_repairable and not stream and "stream" not in body
    if not changed and body is request.body:
        return _with_stream_off(request.raw) if lacks_stream else request.raw
    sent = body | changed
    if lacks_stream:
        sent["stream"] = False
    if not stream:
        sent.pop("stream_options", None)
    try:
        return dump_like(request.raw, sent)
    except RecursionError as error:
        raise InvalidJson("the request body is nested too deeply") from error


def _changed(
    request: Request, body: Json, params: Mapping[str, object], force: Mapping[str, object], stream: bool
) -> Json:
    """The fields that the backend gets with another value than the client sent."""
    changed = {name: value for name, value in params.items() if name not in body} | dict(force)
    if _TEMPLATE_OPTIONS in changed or _TEMPLATE_OPTIONS in params:
        changed |= _merged_options(params, body, force)
    if stream:
        if request.is_repairable:
            changed["stream_options"] = {"include_usage": True}  # the journal needs it, even if the client does not
    elif _asks_for_stream(request, body):
        changed["stream"] = False
    choice = changed.get("tool_choice", body.get("tool_choice"))
    if isinstance(choice, dict) and request.is_chat:
        changed |= _as_only_tool(choice, changed.get("tools", body.get("tools")))
    return changed


def _asks_for_stream(request: Request, body: Json) -> bool:
    """Whether the backend could stream if it got this body as it is."""
    is_unclear = request.is_repairable and body.get("stream", False) is None
    return bool(body.get("stream")) or "stream_options" in body or is_unclear


def _with_stream_off(raw: bytes) -> bytes:
    """The same object with one more field. Nothing is parsed or written anew, and one copy is made: the body may be
    large."""
    return b"".join((b'{"stream":false,', memoryview(raw)[raw.index(b"{") + 1 :]))


def _merged_options(*layers: Mapping[str, object]) -> Json:
    """The template options of `params`, request and `force`, merged option by option; later ones override earlier ones.
    So a request that sets one option keeps the others."""
    given = [layer.get(_TEMPLATE_OPTIONS) for layer in layers]
    options = [it for it in given if isinstance(it, Mapping)]
    if len(options) < len(given) - given.count(None):
        return {}  # one is not an object: the backend reports that
    merged: Json = {}
    for it in options:
        merged |= it
    return {_TEMPLATE_OPTIONS: merged}


def _as_only_tool(choice: Json, tools: object) -> Json:
    """Makes a tool that is required by name the only tool, because llama-server reads an object in `tool_choice` as
    "auto" (https://github.com/ggml-org/llama.cpp/issues/26535). An unknown name is left to the backend."""
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    named = [tool for tool in tools if _has_name(tool, name)] if isinstance(tools, list) else []
    return {"tool_choice": "required", "tools": named} if named else {}


def _has_name(tool: object, name: object) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(name, str) and function.get("name") == name
