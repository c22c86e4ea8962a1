"""The forms in which local models write a tool call as text, and nothing about where such a text may be believed.

Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`; Qwen3-Coder: `<function=f><parameter=p>…`;
Mistral: `[TOOL_CALLS][{…}]` and `[TOOL_CALLS]f[ARGS]{…}`; Llama 3: `{"name": …, "parameters": {…}}`, also behind
`<|python_tag|>` or as `<function=f>{…}</function>`; GLM: `<tool_call>f<arg_key>…</arg_key><arg_value>…</arg_value>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .budget import Budget
from .lenient import Reading, read
from .strings import SPACE, Exhausted, Unreadable
from .text import encode

MARKER = re.compile(
    r"<(?P<tag>tool_calls?|function_calls?|functioncall|tools?)>|<\|tool_call\|>|<\|python_tag\|>|\[TOOL_CALLS\]"
    r"|<(?P<function>function|invoke)(?:=|\s{1,9}name=)"
)
MAX_CALLS = 64
"""A model that writes more of them at once is caught in a loop."""
THOUGHTS_END = "</think>"
NAME_KEYS = ("name", "function", "function_name", "tool_name", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "tool_input", "tool_arguments", "params")
_KNOWN_KEYS = frozenset({*NAME_KEYS, *ARGUMENT_KEYS, "type", "id", "index"})
_FUNCTION = re.compile(r"\s*+<(?P<kind>function|invoke)(?:=|\s{1,9}+name=)[\"']?(?P<name>[\w./:-]{1,99}+)[\"']?\s*+>")
_FUNCTION_END = re.compile(r"\s*+</(?:function|invoke)>")
_PARAMETER = re.compile(r"\s*+<parameter(?:=|\s{1,9}+name=)[\"']?(?P<name>[^\s\"'<>]{1,99}+)[\"']?\s*+>")
_PARAMETER_END = re.compile(
    r"</parameter>(?=\s*+(?:<parameter(?:=|\s)|</function>|</invoke>|</?tool_call>|<\||\Z))"
    r"|(?=\n<parameter(?:=|\s)|\n</function>|\n</invoke>|\n</tool_call>)"
)
_CUT_TAG = re.compile(r"\n</[a-z]{0,20}\Z")
_END_TAG = re.compile(r"</(?:tool_calls?|function_calls?|functioncall|tools?)>|<\|/tool_call\|>")
_END_MARK = re.compile(rf"\s*+(?:{_END_TAG.pattern}|<\|tool_call\|>|<tool_call>\s*+\Z|<[/|][\w|]{{0,20}}\Z)")
"""What ends a call: also a start tag by mistake, or an end tag that was cut."""
_GLM_NAME = re.compile(r"(?P<name>[\w./:-]{1,99}+)\s*+(?=<arg_key>|</tool_call>)")
_GLM_PAIR = re.compile(
    r"\s*+<arg_key>\s*+(?P<name>[^<]{1,99}+)</arg_key>\s*+<arg_value>(?P<value>.*?)</arg_value>", re.S
)
_GLM_OPEN = re.compile(r"\s*+<arg_")
_MISTRAL_NAME = re.compile(r"(?P<name>[\w./:-]{1,99}+)\s*+(?:\[CALL_ID\][\w-]{1,99}+)?+\s*+(?:\[ARGS\])?+\s*+(?=\{)")
_BEHIND_JSON = re.compile(r"\s*+(?:</?[\w|]{1,40}+>|<\||<function=|\[TOOL_CALLS\]|[;,\]{]|```|\Z)|[ \t]*+\n")
_SEPARATOR = re.compile(r"\s*+;?\s*+")
_START_TAGS = re.compile(r"\s*+(?:<tool_call>\s*+)*+")
_ONLY_CLOSERS = re.compile(r"[}\]\s]*+\Z")


@dataclass(frozen=True, slots=True)
class LeakedCall:
    """A call as the model wrote it; `arguments` is JSON text, as broken as it was (None: there was none)."""

    name: str
    arguments: str | None
    is_open: bool = False
    """The text ended before the call's own end mark; what came before it is whole."""
    is_cut: bool = False
    """The text ended within a value."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One stretch of the text that is nothing but calls."""

    start: int
    end: int
    calls: tuple[LeakedCall, ...]
    is_closed: bool = False
    """The mark that ends it came, so nothing in it was cut."""


_Found = tuple[list[LeakedCall], int]
"""Calls, and where their text ends."""


def read_marked(text: str, marker: re.Match[str], names: frozenset[str], budget: Budget) -> Leak | None:
    """The leak that this marker starts; None if what follows is no call. `names` are as for `lenient.read`."""
    if marker["function"]:
        calls, end = _tagged_functions(text, marker.start(), budget)
    elif marker[0] == "[TOOL_CALLS]":
        calls, end = _mistral_calls(text, _skip(text, marker.end()), names, budget)
    else:
        start = _START_TAGS.match(text, marker.end()).end()  # type: ignore[union-attr]
        calls, end = _tagged_calls(text, start, names, budget)
    return _leak(text, marker.start(), calls, end)


def read_bare(text: str, start: int, names: frozenset[str], budget: Budget) -> Leak | None:
    """Calls as JSON without any mark; each must carry its arguments, or it might be anything."""
    calls, end = _json_calls(text, start, names, budget)
    return None if any(call.arguments is None for call in calls) else _leak(text, start, calls, end)


def _leak(text: str, start: int, calls: list[LeakedCall], end: int) -> Leak | None:
    end_mark = _END_MARK.match(text, end)
    end = end_mark.end() if end_mark else end
    return Leak(start, end, tuple(calls), is_closed=end_mark is not None) if calls else None


def _skip(text: str, at: int) -> int:
    return SPACE.match(text, at).end()  # type: ignore[union-attr]


def _tagged_calls(text: str, at: int, names: frozenset[str], budget: Budget) -> _Found:
    if _FUNCTION.match(text, at):
        return _tagged_functions(text, at, budget)
    if text[at : at + 1] not in ("{", "["):
        return _glm_call(text, at)
    calls, end = _json_calls(text, at, names, budget)
    return (calls, end) if calls else _calls_up_to_tag(text, at, names, budget)


def _calls_up_to_tag(text: str, at: int, names: frozenset[str], budget: Budget) -> _Found:
    """Calls with too many or too few brackets: the end tag says where they end."""
    tag = _END_TAG.search(text, at)
    if tag is None:
        return [], at
    start = at + text.startswith("{{", at)
    inside = text[start : tag.start()]
    reading = _read(inside, 0, names, budget, _ONLY_CLOSERS)
    return (_calls_in(reading.value, reading) if reading else []), tag.start()


# -- <function=f><parameter=p>…</parameter></function>, or JSON between the tags --------------------------


def _tagged_functions(text: str, start: int, budget: Budget) -> _Found:
    calls: list[LeakedCall] = []
    end = start
    while head := _FUNCTION.match(text, end):
        call, after = _function(text, head, budget)
        if call is None:
            break
        calls.append(call)
        end = after
    return calls, end


def _function(text: str, head: re.Match[str], budget: Budget) -> tuple[LeakedCall | None, int]:
    json_start = _skip(text, head.end())
    if text[json_start : json_start + 1] == "{":
        reading = _read(text, json_start, frozenset(), budget)
        if reading is None:
            return None, head.end()
        end = _FUNCTION_END.match(text, reading.end)
        return LeakedCall(head["name"], text[json_start : reading.end]), end.end() if end else reading.end
    values, at, is_cut = _parameters(text, head.end())
    if closing := _FUNCTION_END.match(text, at):
        return LeakedCall(head["name"], encode(values)), closing.end()
    if text[at:].strip() and not _END_MARK.match(text, at):
        return None, at
    return LeakedCall(head["name"], encode(values), is_open=True, is_cut=is_cut), at


def _parameters(text: str, at: int) -> tuple[dict[str, str], int, bool]:
    """The values by name, where they end, and whether the last one was cut."""
    values: dict[str, str] = {}
    while parameter := _PARAMETER.match(text, at):
        end = _PARAMETER_END.search(text, parameter.end())
        if end is None:
            values[parameter["name"]] = _value(_CUT_TAG.sub("", text[parameter.end() :]))
            return values, len(text), True
        values[parameter["name"]] = _value(text[parameter.end() : end.start()])
        at = end.end()
    is_cut = text.startswith("<param", _skip(text, at)) and ">" not in text[at:]
    return values, len(text) if is_cut else at, is_cut


def _value(raw: str) -> str:
    """A value without the one newline on each side that the template adds."""
    return raw.removeprefix("\n").removesuffix("\n")


# -- the other forms ---------------------------------------------------------------------------------------


def _glm_call(text: str, at: int) -> _Found:
    name = _GLM_NAME.match(text, at)
    if not name:
        return [], at
    values: dict[str, str] = {}
    at = name.end()
    while pair := _GLM_PAIR.match(text, at):
        values[pair["name"].rstrip()] = pair["value"]
        at = pair.end()
    is_cut = _GLM_OPEN.match(text, at) is not None
    is_open = not text.startswith("</tool_call>", _skip(text, at))
    return [LeakedCall(name["name"], encode(values), is_open, is_cut)], len(text) if is_cut else at


def _mistral_calls(text: str, at: int, names: frozenset[str], budget: Budget) -> _Found:
    if text[at : at + 1] in ("[", "{"):
        return _json_calls(text, at, names, budget)
    name = _MISTRAL_NAME.match(text, at)
    reading = _read(text, name.end(), names, budget) if name else None
    if name is None or reading is None:
        return [], at
    return [LeakedCall(name["name"], text[name.end() : reading.end])], reading.end


def _json_calls(text: str, at: int, names: frozenset[str], budget: Budget) -> _Found:
    """One JSON value after the other, with space or semicolons between, each a call or a list of calls."""
    calls: list[LeakedCall] = []
    end = at
    while len(calls) <= MAX_CALLS and text[at : at + 1] in ("{", "[") and (reading := _read(text, at, names, budget)):
        found = _calls_in(reading.value, reading)
        if not found:
            break
        calls += found
        end = reading.end
        at = _SEPARATOR.match(text, end).end()  # type: ignore[union-attr]
    return calls, end


def _read(
    text: str, at: int, names: frozenset[str], budget: Budget, tail: re.Pattern[str] = _BEHIND_JSON
) -> Reading | None:
    try:
        reading = read(text, at, names=names, tail=tail, budget=budget)
    except Exhausted:
        raise
    except Unreadable:
        return None
    return reading if tail.match(text, reading.end) else None


def _calls_in(value: object, reading: Reading) -> list[LeakedCall]:
    """The calls that a JSON value stands for; none if any part of it is something else."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    if isinstance(value, list):
        found = [_calls_in(item, reading) for item in value]
        return [call for calls in found for call in calls] if all(found) else []
    if not isinstance(value, dict):
        return []
    if isinstance(function := value.get("function"), dict):
        value = function
    name = next((value[key] for key in NAME_KEYS if isinstance(value.get(key), str)), None)
    if name is None or not value.keys() <= _KNOWN_KEYS or _is_schema(value.get("parameters")):
        return []
    arguments = next((value[key] for key in ARGUMENT_KEYS if key in value), None)
    return [LeakedCall(name, arguments if isinstance(arguments, str) else reading.source(arguments))]


def _is_schema(parameters: object) -> bool:
    """Whether a model repeated the definition of a tool instead of calling it."""
    return (
        isinstance(parameters, dict)
        and parameters.get("type") == "object"
        and isinstance(parameters.get("properties"), dict)
    )
