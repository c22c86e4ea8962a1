"""Repairs the conversation that a client replays: a call with broken arguments must not block all further requests."""

from __future__ import annotations

import json
import re

from .arguments import repair_arguments
from .budget import Budget, BudgetSpent
from .model import Repair, RepairKind
from .schema import ANYTHING
from .text import decode, encode, is_encodable

MALFORMED = "malformed_arguments"
"""The member that holds the text of arguments that nothing could be made of: the model sees what it wrote."""
KIND: RepairKind = "history_arguments"
KIND_OF_ID: RepairKind = "history_id"
_OF_CALLS = frozenset(("tool_calls", "tool_call_id", "function_call"))
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
Message = dict[str, object]


def repair_history(
    body: dict[str, object], budget: Budget | None = None
) -> tuple[dict[str, object], tuple[Repair, ...]]:
    """A request whose replayed tool calls all have a string with a JSON object as arguments, and an id or none.

    llama-server answers 500 to anything else (an id that is null among it), for as long as it is in the history. The
    identical object if nothing was to be changed. Never mutates, never raises. What a broken call meant no longer
    matters, only that it can be read.
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body, ()
    with budget or Budget() as allowance:
        attempt = _Attempt(allowance)
        repaired = [attempt.message(message) for message in messages]
    repairs = tuple(attempt.repairs)
    return ({**body, "messages": repaired}, repairs) if repairs else (body, ())


class _Attempt:
    """The repair of one request's history; `repairs` grows."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.repairs: list[Repair] = []

    def message(self, message: object) -> object:
        if not isinstance(message, dict) or _OF_CALLS.isdisjoint(message):
            return message
        changes: Message = {}
        message = self.without_null_id(message, "tool_call_id")
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            repaired = [self.call(call) for call in calls]
            if any(new is not old for new, old in zip(repaired, calls, strict=True)):
                changes["tool_calls"] = repaired
        legacy = message.get("function_call")
        if isinstance(legacy, dict) and (function := self.function(legacy)) is not legacy:
            changes["function_call"] = function
        return {**message, **changes} if changes else message

    def call(self, call: object) -> object:
        if not isinstance(call, dict):
            return call
        call = self.without_null_id(call, "id")
        if not isinstance(function := call.get("function"), dict):
            return call
        repaired = self.function(function)
        return call if repaired is function else {**call, "function": repaired}

    def without_null_id(self, owner: Message, name: str) -> Message:
        if name not in owner or owner[name] is not None:
            return owner
        self.repairs.append(Repair(KIND_OF_ID))
        return {key: value for key, value in owner.items() if key != name}

    def function(self, function: Message) -> Message:
        arguments = function.get("arguments")
        if _is_sound(arguments):
            return function
        name = function.get("name")
        tool = name if isinstance(name, str) else None
        self.repairs.append(Repair(KIND, tool))
        return {**function, "arguments": self.as_object(arguments, tool)}

    def as_object(self, arguments: object, tool: str | None) -> str:
        """The arguments as a JSON object, or their text under a name that marks it as malformed."""
        try:
            text = arguments if isinstance(arguments, str) else encode(arguments)
            try:
                repaired = repair_arguments(arguments, ANYTHING, self.budget, truncated=False)
                if repaired.is_sound and _is_sound(repaired.text):
                    return repaired.text
            except BudgetSpent:
                self.repairs.append(Repair("repair_budget", tool))
            return encode({MALFORMED: text.encode(errors="replace").decode()})
        except (ValueError, RecursionError):
            return "{}"


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
