"""The conversation that a client replays: a call with broken arguments in it must not block every further request."""

from __future__ import annotations

import json
import re

from .arguments import mend_arguments
from .model import Repair, RepairKind
from .text import decode, encode, is_encodable

MALFORMED = "malformed_arguments"
"""The member that holds the text of arguments that nothing could be made of: the model sees what it wrote."""
KIND: RepairKind = "history_arguments"
KIND_OF_ID: RepairKind = "history_id"
_OF_CALLS = frozenset(("tool_calls", "tool_call_id", "function_call"))
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
Message = dict[str, object]


def repair_history(body: dict[str, object]) -> tuple[dict[str, object], tuple[Repair, ...]]:
    """A request whose replayed tool calls all have a string with a JSON object as arguments, and an id or none.

    llama-server answers 500 to anything else (an id that is null among it), for as long as it is in the history. The
    identical object if nothing was to be changed. Never mutates, never raises. What a broken call meant no longer
    matters, only that it can be read.
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body, ()
    repairs: list[Repair] = []
    mended = [
        _mended_message(message, repairs)
        if isinstance(message, dict) and not _OF_CALLS.isdisjoint(message)
        else message
        for message in messages
    ]
    return ({**body, "messages": mended}, tuple(repairs)) if repairs else (body, ())


def _mended_message(message: Message, repairs: list[Repair]) -> Message:
    changes: Message = {}
    message = _without_null_id(message, "tool_call_id", repairs)
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        mended = [_mended_call(call, repairs) for call in calls]
        if any(new is not old for new, old in zip(mended, calls, strict=True)):
            changes["tool_calls"] = mended
    legacy = message.get("function_call")
    if isinstance(legacy, dict) and (function := _mended_function(legacy, repairs)) is not legacy:
        changes["function_call"] = function
    return {**message, **changes} if changes else message


def _mended_call(call: object, repairs: list[Repair]) -> object:
    if not isinstance(call, dict):
        return call
    call = _without_null_id(call, "id", repairs)
    if not isinstance(function := call.get("function"), dict):
        return call
    mended = _mended_function(function, repairs)
    return call if mended is function else {**call, "function": mended}


def _without_null_id(owner: Message, name: str, repairs: list[Repair]) -> Message:
    if name not in owner or owner[name] is not None:
        return owner
    repairs.append(Repair(KIND_OF_ID))
    return {key: value for key, value in owner.items() if key != name}


def _mended_function(function: Message, repairs: list[Repair]) -> Message:
    arguments = function.get("arguments")
    if _is_sound(arguments):
        return function
    name = function.get("name")
    repairs.append(Repair(KIND, name if isinstance(name, str) else None))
    return {**function, "arguments": _as_object(arguments)}


def _is_sound(arguments: object) -> bool:
    """Half of a surrogate pair is valid JSON to Python, but not to llama-server."""
    if not isinstance(arguments, str):
        return False
    try:
        value = decode(arguments)
    except (ValueError, RecursionError):
        return False
    if type(value) is not dict or not is_encodable(arguments):
        return False
    return not _SURROGATE.search(arguments) or is_encodable(json.dumps(value, ensure_ascii=False))


def _as_object(arguments: object) -> str:
    try:
        mended = mend_arguments(arguments, {}, truncated=False)
        if mended.is_sound and _is_sound(mended.text):
            return mended.text
        return encode({MALFORMED: mended.text.encode(errors="replace").decode()})
    except (ValueError, RecursionError):
        return "{}"
