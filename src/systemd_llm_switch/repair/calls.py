"""Repairs a reply's tool calls: each gets a unique id, a type, a declared name and sound arguments."""

from __future__ import annotations

import os

from .arguments import UNREPAIRABLE, repair_arguments
from .budget import Budget, BudgetSpent
from .form_reader import read_name_and_arguments
from .model import Repair, RequestFacts
from .written import Source

_ARGUMENT_KEYS = ("arguments", "parameters", "input")
Call = dict[str, object]


def repair_tool_calls(
    calls: list[Call], facts: RequestFacts, budget: Budget, *, truncated: bool
) -> tuple[list[Call], tuple[Repair, ...]]:
    """Tool calls with what clients stumble over set right; the identical list if nothing was to be changed.

    `truncated` says that the model was stopped before it had finished, so the last call may be cut. Never mutates,
    never raises.
    """
    repairs: list[Repair] = []
    taken: set[str] = set()
    last = len(calls) - 1
    repaired = [
        _repaired_call(call, facts, budget, truncated and position == last, taken, repairs)
        for position, call in enumerate(calls)
    ]
    if all(new is old for new, old in zip(repaired, calls, strict=True)):
        return calls, tuple(repairs)
    return repaired, tuple(repairs)


def repair_function(
    function: Call, facts: RequestFacts, budget: Budget, *, truncated: bool
) -> tuple[Call, tuple[Repair, ...]]:
    """Repairs the name and the arguments of a call (or a legacy `function_call`); identical if both are sound."""
    written_name = function.get("name")
    function = _with_arguments_of_name(function, facts, budget)
    changes: Call = {}
    name = function.get("name")
    known = facts.known_name(name) if isinstance(name, str) else None
    tool = known or (name if isinstance(name, str) else None)
    repairs: list[Repair] = []
    if known is not None and known != written_name:
        changes["name"] = known
        repairs.append(Repair("tool_name", tool))
    key = next((key for key in _ARGUMENT_KEYS if key in function), "arguments")
    written = function.get(key)
    try:
        schema = None if known is None else facts.schema_of(known)
        repaired = repair_arguments(written, schema, budget, truncated=truncated, tool=tool or "")
    except BudgetSpent:
        return {**function, **changes} if changes else function, (*repairs, Repair("repair_budget", tool))
    except (ValueError, RecursionError):
        return {**function, **changes} if changes else function, (*repairs, Repair(UNREPAIRABLE, tool))
    repairs += [Repair(kind, tool) for kind in repaired.kinds]
    if not changes and key == "arguments" and repaired.text == written:
        return function, tuple(repairs)
    others = {name: part for name, part in function.items() if name != key}
    return {**others, **changes, "arguments": repaired.text}, tuple(repairs)


def _with_arguments_of_name(function: Call, facts: RequestFacts, budget: Budget) -> Call:
    """The call with the arguments that a backend's parser left in the name: `f<arg_key>p</arg_key>…`."""
    name = function.get("name")
    if not isinstance(name, str) or "<arg_key>" not in name or function.get("arguments") not in (None, "", "{}"):
        return function
    source = Source(name, frozenset(), facts.members_of, budget)
    try:
        found = read_name_and_arguments(source)
    except (BudgetSpent, ValueError, RecursionError):
        return function
    return {**function, "name": found.name, "arguments": found.arguments} if found else function


def new_call_id() -> str:
    """A unique id: clients merge calls with equal ids, in a whole conversation."""
    return f"call_{os.urandom(12).hex()}"


def function_of(call: Call) -> Call | None:
    """The part of a call with its name and arguments, even if a model left out the level `function`."""
    function = call.get("function")
    if isinstance(function, dict):
        return function
    if isinstance(call.get("name"), str) and any(key in call for key in _ARGUMENT_KEYS):
        return {key: call[key] for key in ("name", *_ARGUMENT_KEYS) if key in call}
    return None


def _repaired_call(
    call: Call, facts: RequestFacts, budget: Budget, truncated: bool, taken: set[str], repairs: list[Repair]
) -> Call:
    function = function_of(call) if isinstance(call, dict) else None
    if function is None or call.get("type", "function") not in ("function", None, ""):
        return call
    changes: Call = {}
    new_function, function_repairs = repair_function(function, facts, budget, truncated=truncated)
    tool = new_function.get("name")
    tool = tool if isinstance(tool, str) else None
    call_id = call.get("id")
    if not isinstance(call_id, str) or not call_id or call_id in taken:
        call_id = changes["id"] = new_call_id()
        repairs.append(Repair("tool_call_id", tool))
    taken.add(call_id)
    if call.get("type") != "function":
        changes["type"] = "function"
        repairs.append(Repair("tool_call_type", tool))
    repairs.extend(function_repairs)
    if new_function is not call.get("function"):
        changes["function"] = new_function
        if function is not call.get("function"):
            repairs.append(Repair("tool_call_shape", tool))
            call = {key: part for key, part in call.items() if key not in function}
    return {**call, **changes} if changes else call
