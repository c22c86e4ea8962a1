"""The shapes of OpenAI's JSON, read safely: a backend may leave out anything, or send another type. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from systemd_llm_switch.openai.decoder import Decoder
from systemd_llm_switch.openai.json_cost import MAX_VALUES, bounded_int

Json = dict[str, Any]

JSON_TYPE = ("Content-Type", "application/json; charset=utf-8")

_MOST_ERROR_BYTES = 64 * 1024  # a longer error is shown as text
_MOST_MESSAGE_CHARACTERS = 2000
_FIRST_MODEL = re.compile(rb'\s{0,9}+\{\s{0,9}+"model"\s{0,9}+:\s{0,9}+("[^"\\]{0,1000}+")')
_MODEL_KEY = b'"model"'
_NAME = re.compile(rb'("model"\s{0,9}+:\s{0,9}+)"[^"\\]{0,1000}+"')
_MOST_ODD_BYTES = 1 << 18  # Python takes a while for each half of a surrogate pair
_MOST_NAMED_BYTES = 1_000_000  # a larger reply is not read for its model's name
# llama-server's words for a prompt that is too long. Roo and Cline condense only if they read the words below.
_OVERFLOW_WORDS = ("exceeds the available context size", "exceed_context_size")
_OVERFLOW_FOR_CLIENTS = "context length exceeded"


_DECODER = Decoder(parse_int=bounded_int)


def load(raw: bytes, most_values: int = MAX_VALUES) -> Any:
    """The value of JSON that a backend sent.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or holds more than `most_values` values.
    """
    try:
        return _DECODER.decode(raw, most_values, "surrogatepass" if len(raw) <= _MOST_ODD_BYTES else "strict")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def dump(value: object) -> bytes:
    """Compact JSON in ASCII, which also keeps lone surrogates: UTF-8 cannot encode them."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def naming(body: bytes, model_id: str) -> bytes:
    """A reply that names this model: the same bytes where it does, or names none. A backend without `--alias` names the
    path of its file.

    A reply that begins with its model, as one with embeddings does, is not read as JSON.
    """
    name = dump(model_id)
    found = _FIRST_MODEL.match(body)
    if found is not None:
        return body if found[1] == name else body[: found.start(1)] + name + body[found.end(1) :]
    if _MODEL_KEY not in body or len(body) > _MOST_NAMED_BYTES:
        return body
    try:
        reply = load(body)
    except ValueError:
        return body
    is_other = isinstance(reply, dict) and reply.get("model", model_id) != model_id
    if not is_other:
        return body
    return renamed(body, model_id) or dump(reply | {"model": model_id})


def renamed(body: bytes, model_id: str) -> bytes | None:
    """A reply with another name for its model, and otherwise the same bytes; None if its name cannot be found without
    doubt. The caller knows that the reply is an object that names a model."""
    at = body.find(_MODEL_KEY)  # in a string, its quotation marks would be escaped
    found = _NAME.match(body, at) if at >= 0 and at == body.rfind(_MODEL_KEY) else None
    return None if found is None else body.replace(found[0], found[1] + dump(model_id), 1)


def choices_of(reply: Mapping[str, Any]) -> list[Json]:
    """The choices of a completion."""
    return objects_of(reply.get("choices"))


def objects_of(value: object) -> list[Json]:
    """The items of a list that are objects."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def object_of(value: object) -> Json:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def foreign_error(status: int, raw: bytes) -> Json:
    """A backend's error in OpenAI's shape: fills in missing fields, and cuts a long message."""
    error = _read_error(raw)
    said = str(error.get("message") or f"the backend replied with status {status} and no message")
    message = _cut(said)
    if any(words in said for words in _OVERFLOW_WORDS) and _OVERFLOW_FOR_CLIENTS not in message:
        message = f"{message} ({_OVERFLOW_FOR_CLIENTS})"
    kind, param, code = error.get("type"), error.get("param"), error.get("code")
    if not isinstance(kind, str):
        kind = "server_error" if status >= 500 else "invalid_request_error"
    if isinstance(code, bool) or not isinstance(code, str | int):
        code = "backend_error"
    shape = {"message": message, "type": kind, "param": param if isinstance(param, str) else None, "code": code}
    return {"error": error | shape}


def _read_error(raw: bytes) -> Json:
    """The object or the string under `error`, or else the whole body as the message."""
    if len(raw) <= _MOST_ERROR_BYTES:
        try:
            error = json.loads(raw)["error"]
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        else:
            return error if isinstance(error, dict) else {"message": error and str(error)}
    return {"message": raw[:_MOST_ERROR_BYTES].decode("utf-8", "replace")}


def _cut(message: str) -> str:
    return message if len(message) <= _MOST_MESSAGE_CHARACTERS else f"{message[:_MOST_MESSAGE_CHARACTERS]}…"


_TIMINGS = b'"timings":'
_LONGEST_TIMINGS = 4096


def timings_in(body: bytes) -> Json:
    """llama-server's `timings` in a reply, found without reading the whole of it. Empty if there are none."""
    at = body.rfind(_TIMINGS)  # text in a reply cannot look like this: its quotation marks are escaped
    if at < 0:
        return {}
    text = body[at + len(_TIMINGS) : at + len(_TIMINGS) + _LONGEST_TIMINGS].decode("utf-8", "replace")
    try:
        return object_of(json.JSONDecoder().raw_decode(text.lstrip())[0])
    except (ValueError, RecursionError):
        return {}
