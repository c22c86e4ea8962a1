"""The forms in which local models write a tool call as text, and nothing about where such a text may be believed.

Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`; Qwen3-Coder: `<function=f><parameter=p>…`;
Mistral: `[TOOL_CALLS][{…}]` and `[TOOL_CALLS]f[ARGS]{…}`; Llama 3: `{"name": …, "parameters": {…}}`, also behind
`<|python_tag|>` or as `<function=f>{…}</function>`; GLM: `<tool_call>f<arg_key>…</arg_key><arg_value>…</arg_value>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .lenient import Reading, Unreadable, read
from .text import encode

MARKER = re.compile(
    r"<(?P<tag>tool_calls?|function_call|functioncall|tools?)>|<\|tool_call\|>"
    r"|<(?P<function>function|invoke)(?:=|\s+name=)"
    r"|\[TOOL_CALLS\]"
    r"|<\|python_tag\|>"
)
_NAME_KEYS = ("name", "function", "function_name", "tool_name", "tool")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "tool_input", "tool_arguments", "params")
_FUNCTION = re.compile(r"<(?P<kind>function|invoke)(?:=|\s+name=)[\"']?(?P<name>[\w./:-]+)[\"']?\s*>")
_PARAMETER = re.compile(r"\s*<parameter(?:=|\s+name=)[\"']?(?P<name>[^\s\"'<>]+)[\"']?\s*>")
_PARAMETER_END = re.compile(
    r"</parameter>(?=\s*(?:<parameter(?:=|\s+name=)|</function>|</invoke>|</tool_call>|<tool_call>|<\||\Z))"
    r"|(?=\n<parameter(?:=|\s+name=)|\n</function>|\n</invoke>|\n</tool_call>)"
)
_GLM_NAME = re.compile(r"\s*(?P<name>[\w./:-]+)\s*(?=<arg_key>|</tool_call>)")
_GLM_PAIR = re.compile(r"\s*<arg_key>\s*(?P<name>[^<]*?)\s*</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>", re.DOTALL)
_MISTRAL_NAME = re.compile(r"\s*(?P<name>[\w./:-]+)\s*(?:\[CALL_ID\][\w-]*)?\s*(?:\[ARGS\])?\s*(?=\{)")
_AFTER = re.compile(r"\s*(?:</?[\w|]+\|?>|<\||\[TOOL_CALLS\]|[;,\]]|```|\Z)|[ \t]*\n")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class LeakedCall:
    """A call as the model wrote it; `arguments` is JSON text, as broken as it was."""

    name: str
    arguments: str | None
    is_open: bool = False
    """The text ended before the call's own end mark; what came before it is whole."""
    is_cut: bool = False
    """The text ended within a value."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One place in the text that is nothing but calls."""

    start: int
    end: int
    calls: tuple[LeakedCall, ...]


def read_marked(text: str, marker: re.Match[str], names: frozenset[str]) -> Leak | None:
    """The leak that starts with this marker; None if what follows is no call."""
    if marker["function"]:
        found = _tagged_functions(text, marker.start())
    elif marker[0] == "[TOOL_CALLS]":
        found = _mistral_calls(text, marker.end(), names)
    else:
        found = _tagged_calls(text, marker, names)
    return Leak(marker.start(), found[1], found[0]) if found and found[0] else None


def read_bare(text: str, start: int, names: frozenset[str]) -> Leak | None:
    """Calls as JSON without any mark, up to the end of the text; each must carry its arguments."""
    found = _json_calls(text, start, names)
    if not found or any(call.arguments is None for call in found[0]):
        return None
    return Leak(start, found[1], found[0])


_Found = tuple[tuple[LeakedCall, ...], int] | None
"""Calls, and where their text ends."""


def _tagged_calls(text: str, marker: re.Match[str], names: frozenset[str]) -> _Found:
    at = _SPACE.match(text, marker.end()).end()  # type: ignore[union-attr]
    if _FUNCTION.match(text, at):
        found = _tagged_functions(text, at)
    elif text[at : at + 1] in ("{", "["):
        found = _json_calls(text, at, names)
    else:
        found = _glm_call(text, at)
    if not found:
        return None
    closing = re.compile(rf"\s*(?:</{marker['tag'] or 'tool_call'}>|<\|/?tool_call\|>)").match(text, found[1])
    return found[0], closing.end() if closing else found[1]


def _tagged_functions(text: str, start: int) -> _Found:
    calls: list[LeakedCall] = []
    at = start
    while head := _FUNCTION.match(text, _SPACE.match(text, at).end()):  # type: ignore[union-attr]
        found = _function_body(text, head)
        if found is None:
            break
        call, at = found
        calls.append(call)
    return tuple(calls), at


def _function_body(text: str, head: re.Match[str]) -> tuple[LeakedCall, int] | None:
    at = _SPACE.match(text, head.end()).end()  # type: ignore[union-attr]
    if text[at : at + 1] == "{":
        return _function_json(text, head, at)
    at = head.end()
    values: dict[str, str] = {}
    is_cut = False
    while not is_cut and (parameter := _PARAMETER.match(text, at)):
        end = _PARAMETER_END.search(text, parameter.end())
        is_cut = end is None
        values[parameter["name"]] = _value(text[parameter.end() : end.start() if end else len(text)])
        at = end.end() if end else len(text)
    closing = re.compile(rf"\s*</{head['kind']}>").match(text, at)
    if not closing and not is_cut and text[at:].strip() and not _AFTER.match(text, at):
        return None
    return LeakedCall(head["name"], encode(values), closing is None, is_cut), closing.end() if closing else at


def _function_json(text: str, head: re.Match[str], at: int) -> tuple[LeakedCall, int] | None:
    reading = _read(text, at, frozenset())
    if reading is None:
        return None
    closing = re.compile(rf"\s*</{head['kind']}>").match(text, reading.end)
    return LeakedCall(head["name"], text[at : reading.end]), closing.end() if closing else reading.end


def _value(raw: str) -> str:
    """A value without the one newline on each side that the template adds."""
    return raw.removeprefix("\n").removesuffix("\n")


def _glm_call(text: str, at: int) -> _Found:
    name = _GLM_NAME.match(text, at)
    if not name:
        return None
    values: dict[str, str] = {}
    at = name.end()
    while pair := _GLM_PAIR.match(text, at):
        values[pair["name"]] = _value(pair["value"])
        at = pair.end()
    is_cut = text.startswith("<arg_key>", _SPACE.match(text, at).end())  # type: ignore[union-attr]
    return (LeakedCall(name["name"], encode(values), is_cut, is_cut),), len(text) if is_cut else at


def _mistral_calls(text: str, at: int, names: frozenset[str]) -> _Found:
    at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
    if text[at : at + 1] in ("[", "{"):
        return _json_calls(text, at, names)
    name = _MISTRAL_NAME.match(text, at)
    reading = _read(text, name.end(), names) if name else None
    if name is None or reading is None:
        return None
    return (LeakedCall(name["name"], text[name.end() : reading.end]),), reading.end


def _json_calls(text: str, at: int, names: frozenset[str]) -> _Found:
    """One JSON value after the other, separated by space or semicolons, each a call or a list of calls."""
    calls: list[LeakedCall] = []
    end = at
    while text[at : at + 1] in ("{", "[") and (reading := _read(text, at, names)):
        found = _calls_in(reading.value, reading)
        if not found:
            break
        calls += found
        end = reading.end
        at = _SEPARATOR.match(text, end).end()  # type: ignore[union-attr]
    return (tuple(calls), end) if calls else None


_SEPARATOR = re.compile(r"\s*;?\s*")


def _read(text: str, at: int, names: frozenset[str]) -> Reading | None:
    try:
        reading = read(text, at, names=names, tail=_AFTER)
    except Unreadable:
        return None
    return reading if _AFTER.match(text, reading.end) else None


def _calls_in(value: object, reading: Reading) -> list[LeakedCall]:
    """The calls that a JSON value stands for; none if any part of it is something else."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    if isinstance(value, list):
        found = [_calls_in(item, reading) for item in value]
        return [call for calls in found for call in calls] if all(found) else []
    if not isinstance(value, dict):
        return []
    function = value.get("function")
    if isinstance(function, dict):
        value = function
    name = next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), None)
    if name is None or not value.keys() <= {*_NAME_KEYS, *_ARGUMENT_KEYS, "type", "id"}:
        return []
    arguments = next((value[key] for key in _ARGUMENT_KEYS if key in value), None)
    return [LeakedCall(name, arguments if isinstance(arguments, str) else reading.source(arguments))]
