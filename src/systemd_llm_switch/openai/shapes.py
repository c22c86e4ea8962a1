"""The shapes of OpenAI's JSON: what is in a reply, whatever a backend left out of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

JSON_TYPE = ("Content-Type", "application/json; charset=utf-8")

_MAX_TOLD_CHARS = 2000
# llama-server's words for a prompt that is too long; Roo and Cline condense only when they read the other.
_OVERFLOW_WORDS = ("exceeds the available context size", "exceed_context_size")
_OVERFLOW_FOR_CLIENTS = "context length exceeded"


def dump(value: object) -> bytes:
    """Compact JSON, all ASCII: a lone surrogate in a text, which UTF-8 cannot carry, survives."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def choices_of(reply: Mapping[str, Any]) -> list[Json]:
    """The choices of a completion."""
    return objects_of(reply.get("choices"))


def objects_of(value: object) -> list[Json]:
    """The objects of a list; a backend's reply may hold anything anywhere."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def object_of(value: object) -> Json:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


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
