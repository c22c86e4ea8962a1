"""Reads the arguments of a leaked call: one reader for each style, each from a place in the text to JSON text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from .budget import Budget
from .lenient import Reading, read
from .strings import SPACE, Exhausted, Unreadable
from .text import decode, encode

NAME_KEYS = ("name", "function", "function_name", "tool_name", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "tool_input", "tool_arguments", "params")
MAX_CALLS = 64
"""A model that writes more of them at once is caught in a loop."""
_KNOWN_KEYS = frozenset({*NAME_KEYS, *ARGUMENT_KEYS, "type", "id", "index", "tool_call_id"})
_TAG = r"<(?>(?:[｜|]DSML[｜|]|antml:)?)"
_END_TAG = r"</(?>(?:[｜|]DSML[｜|]|antml:)?)"
_SPACE_TAG = r"(?>(?:\]<\]minimax\[>\[)?)"
_CALL_END = r"</(?:invoke|function)>"
_PARAMETER = re.compile(
    rf"\s*+{_TAG}parameter(?:=|(?P<attribute>\s{{1,9}}+name=))[\"']?(?P<name>[^\s\"'<>]{{1,99}}+)[\"']?"
    r"(?>(?:\s++string=[\"'](?P<string>true|false)[\"'])?)\s*+>"
)
_PARAMETER_END = re.compile(
    rf"{_END_TAG}parameter>(?=\s*+(?:{_END_TAG}parameter>|{_TAG}parameter(?:=|\s)"
    rf"|{_END_TAG}(?:function|invoke)>|</?(?:[\w.-]{{1,20}}+:)?tool_calls?>|<[|｜]|</[|｜]|\Z))"
    rf"|(?=\n{_TAG}parameter(?:=|\s)|\n{_END_TAG}function>|\n{_END_TAG}invoke>|\n</tool_call>)"
)
_PARAMETER_ENDS = re.compile(rf"(?>(?:\s*+{_END_TAG}parameter>)*)")
_TAGS = re.compile(
    rf"(?P<opening>{_TAG}(?:(?:function|invoke)(?:=|\s{{1,9}}+name=)[^<>\n]{{1,120}}+>|tool_call>"
    rf"|(?P<started>parameter)(?:=|\s{{1,9}}+name=)[\"']?(?P<name>[^\s\"'<>]{{1,99}}+)[^<>\n]{{0,60}}+>))"
    rf"|{_END_TAG}(?:function|invoke|tool_call|(?P<ended>parameter))>"
)
_CUT_TAG = re.compile(r"\n</[a-z]{0,20}\Z")
_PAIR = re.compile(
    r"\s*+(?>(?:<arg_key>\s*+)?)(?P<name>[^<\n]{1,99}+)</arg_key>\s*+(?>(?:<arg_value>)?)(?P<value>.*?)"
    r"(?:</arg_value>(?>(?:\s*+</arg_value>)*)|(?=</tool_call>\s*+\Z))", re.S
)  # fmt: skip
_PAIR_WITHOUT_KEY_END = re.compile(
    r"\s*+<arg_key>\s*+(?P<name>[^<\n]{1,99}+)\s*+<arg_value>(?P<value>.*?)</arg_value>", re.S
)
_PAIR_OPEN = re.compile(r"\s*+<arg_")
_BEHIND_JSON = re.compile(r"\s*+(?:</?[\w|:｜▁]{1,40}+>|<\||<｜|<function=|\[/?TOOL_CALLS\]|[;,\]{)]|```|\Z)|[ \t]*+\n")
_SEPARATOR = re.compile(r"\s*+[;,]?\s*+")
_ONLY_CLOSERS = re.compile(r"[}\]\s]*+\Z")
_CALL_END_TAG = re.compile(r"</(?:tool_calls?|function_calls?|functioncall|tools?|TOOLCALL)>|<\|/tool_call\|>")
_HEADLESS = re.compile(r"[\"']name[\"']\s*+:")
_PYTHON_PART = re.compile(r"'(?>(?:[^'\\]|\\.)*)'|\"(?>(?:[^\"\\]|\\.)*)\"|[\[\](){}]|[^\[\](){}\"']++", re.S)
_PYTHON_CALL = re.compile(r"\s*+(?P<name>[A-Za-z_][\w.]{0,99}+)(?>(?:\.call)?)\(")
_MAX_DEPTH = 64
"""Tags that are open at once. No document needs more, and each value of a model in a loop would be read to the end."""
_MAX_PYTHON = 20_000
"""So many characters outside of strings: Python's parser cannot be stopped."""
_MAX_PYTHON_STRINGS = 2_000_000
_PYTHON_NAMES = {"true": True, "false": False, "null": None}
Members = Callable[[str], Collection[str]]


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
class Source:
    """A text, and what the request's tools say about it."""

    text: str
    names: frozenset[str]
    """Folded names of members that are expected, for `lenient.read`."""
    members: Members
    """The names that a tool declares for its arguments; none for an unknown tool."""
    budget: Budget
    elements: re.Pattern[str] | None = None
    """The start of a call as an element, for the request's tools."""

    def skip(self, at: int) -> int:
        return SPACE.match(self.text, at).end()  # type: ignore[union-attr]

    def json_at(self, at: int, tail: re.Pattern[str] = _BEHIND_JSON) -> Reading | None:
        """The JSON value that starts here, read leniently, or None."""
        self.budget.check()
        try:
            reading = read(self.text, at, names=self.names, tail=tail, budget=self.budget)
        except Exhausted:
            raise
        except Unreadable:
            return None
        return reading if tail.match(self.text, reading.end) else None


Found = tuple[list[LeakedCall], int]
"""Calls, and where their text ends."""
_NOTHING: Found = ([], 0)


def json_behind_name(source: Source, name: str, at: int) -> Found:
    reading = source.json_at(at)
    if reading is None:
        return _NOTHING
    return [LeakedCall(name, source.text[at : reading.end])], reading.end


# -- <parameter=p>value</parameter> ------------------------------------------------------------------------


def parameters(source: Source, name: str, start: int) -> Found:
    """Parameters in tags, or JSON between the call's own tags."""
    text = source.text
    json_start = source.skip(start)
    if text[json_start : json_start + 1] == "{":
        return json_behind_name(source, name, json_start)
    declared = source.members(name)
    within, at = _elements(source, name, start, _CALL_END)
    if within:
        return [LeakedCall(name, encode(within), is_open=True)], at
    values: dict[str, object] = {}
    at, is_cut = start, False
    while not is_cut and (parameter := _PARAMETER.match(text, at)):
        source.budget.check()
        raw, at, is_cut = _parameter_value(text, parameter, declared)
        values[parameter["name"]] = _as_declared(raw, parameter["string"])
    if text.startswith("<param", source.skip(at)) and ">" not in text[at:]:
        at, is_cut = len(text), True
    return [LeakedCall(name, encode(values), is_open=True, is_cut=is_cut)], at


def _parameter_value(text: str, opening: re.Match[str], declared: Collection[str]) -> tuple[str, int, bool]:
    """A value, where reading goes on, and whether the text ends within it.

    Templates with `name=` put no newlines around a value: one at its end is then its own, unless the end tag is
    doubled.
    """
    start = opening.end()
    end = _nested_end(text, start, declared)
    if end < 0:
        plain = _PARAMETER_END.search(text, start)
        if plain is None:
            return _value(_CUT_TAG.sub("", text[start:])), len(text), True
        end = plain.start()
    behind = _behind_ends(text, end)
    raw = text[start:end]
    is_own = opening["attribute"] and not raw.startswith("\n") and text.count("</", end, behind) < 2
    return raw if is_own else _value(raw), behind, False


def _nested_end(text: str, start: int, declared: Collection[str]) -> int:
    """Where a value ends that may be a document about this very form: what is opened in it, is closed in it.

    A parameter that the tool does not declare is such a document's. An end tag that another one follows ends the value.
    -1 if the tags do not pair.
    """
    depths = {"parameter": 0, "call": 0}
    inner_end = -1
    for tag in _TAGS.finditer(text, start):
        kind = "parameter" if tag["started"] or tag["ended"] else "call"
        if tag["opening"]:
            starts_line = text.startswith("\n", tag.start() - 1)
            is_next = kind == "parameter" and starts_line and not any(depths.values())
            if is_next and (not declared or tag["name"] in declared):
                return tag.start() - 1
            depths[kind] += 1
            if depths[kind] > _MAX_DEPTH:
                return -1
        elif depths[kind]:
            depths[kind] -= 1
            inner_end = tag.start() if kind == "parameter" and not any(depths.values()) else inner_end
        elif kind == "parameter" and _PARAMETER_END.match(text, tag.start()):
            return tag.start()
        elif kind == "call":
            if inner_end >= 0 and not text[_behind_ends(text, inner_end) : tag.start()].strip():
                return inner_end
            if text.startswith("\n", tag.start() - 1):
                return tag.start() - 1
    return -1


def _behind_ends(text: str, at: int) -> int:
    """Behind the end tags of parameters that start here."""
    return _PARAMETER_ENDS.match(text, at).end()  # type: ignore[union-attr]


def _value(raw: str) -> str:
    """A value without the one newline on each side that the template adds."""
    return raw.removeprefix("\n").removesuffix("\n")


def _as_declared(raw: str, is_string: str | None) -> object:
    """DSML says of each parameter whether it is a string or JSON."""
    if is_string != "false":
        return raw
    try:
        value: object = decode(raw)
    except (ValueError, RecursionError):
        return raw
    return value


# -- <arg_key>p</arg_key><arg_value>value</arg_value> ------------------------------------------------------


def pairs(source: Source, name: str, start: int) -> Found:
    values: dict[str, object] = {}
    at = start
    while pair := _PAIR.match(source.text, at) or _PAIR_WITHOUT_KEY_END.match(source.text, at):
        source.budget.check()
        values[pair["name"].strip()] = pair["value"]
        at = pair.end()
    is_cut = _PAIR_OPEN.match(source.text, at) is not None
    end = len(source.text) if is_cut else at
    return [LeakedCall(name, encode(values), is_open=True, is_cut=is_cut)], end


# -- {p:<|"|>value<|"|>} -----------------------------------------------------------------------------------


def quoted(source: Source, name: str, start: int, quote: str, ends: re.Pattern[str]) -> Found:
    """An object whose strings stand between tokens, so that nothing in them is escaped."""
    ending = ends.search(source.text, start)
    stop = ending.start() if ending else len(source.text)
    parts = source.text[start:stop].split(quote)
    written = "".join(part if position % 2 == 0 else encode(part) for position, part in enumerate(parts))
    is_cut = len(parts) % 2 == 0
    inside = Source(written, source.names, source.members, source.budget)
    reading = inside.json_at(0)
    if reading is None or not isinstance(reading.value, dict):
        return _NOTHING
    if ending or reading.end == len(written.rstrip()):
        return [LeakedCall(name, written[: reading.end], is_open=ending is None, is_cut=is_cut)], stop
    return _NOTHING


# -- f(p=value) --------------------------------------------------------------------------------------------


def python_calls(source: Source, start: int) -> Found:
    """One Python call or more, in a list or one a line."""
    at = source.skip(start)
    in_list = source.text.startswith("[", at)
    at += in_list
    calls: list[LeakedCall] = []
    end = at
    while len(calls) <= MAX_CALLS and (head := _PYTHON_CALL.match(source.text, at)):
        source.budget.check()
        closing = _closing(source.text, head.end() - 1)
        call = None if closing < 0 else _python_call(source.text[source.skip(at) : closing])
        if call is None:
            return _NOTHING
        calls.append(call)
        end = closing
        at = _SEPARATOR.match(source.text, end).end()  # type: ignore[union-attr]
    if in_list and calls:
        closer = source.skip(end)
        if not source.text.startswith("]", closer):
            return _NOTHING
        end = closer + 1
    return calls, end


def _closing(text: str, at: int) -> int:
    """The position behind the matching closing bracket; -1 if it is missing or too far away."""
    depth = code = 0
    limit = at + _MAX_PYTHON_STRINGS
    while at < limit and code < _MAX_PYTHON and (part := _PYTHON_PART.match(text, at)):
        code += 0 if part[0][0] in "\"'" else len(part[0])
        depth += (part[0] in ("(", "[", "{")) - (part[0] in (")", "]", "}"))
        at = part.end()
        if depth == 0:
            return at
    return -1


def _python_call(written: str) -> LeakedCall | None:
    """A Python call whose arguments are keywords with plain values, or one dictionary; `print` around it goes."""
    try:
        node = ast.parse(written.strip(), mode="eval").body
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and len(node.args) == 1:
            node = node.args[0]
        if not isinstance(node, ast.Call):
            return None
        name = ast.unparse(node.func).removesuffix(".call")
        if len(node.args) == 1 and not node.keywords and isinstance(node.args[0], ast.Dict):
            return LeakedCall(name, encode(_plain(node.args[0])))
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            return None
        return LeakedCall(name, encode({str(keyword.arg): _plain(keyword.value) for keyword in node.keywords}))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _plain(node: ast.expr) -> object:
    """The value of a literal, with JSON's names for some. Raises ValueError."""
    if isinstance(node, ast.Name) and node.id in _PYTHON_NAMES:
        return _PYTHON_NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {
            str(ast.literal_eval(key)): _plain(part) for key, part in zip(node.keys, node.values, strict=True) if key
        }
    value: object = ast.literal_eval(node)
    json.dumps(value)
    return value


# -- <p>value</p> ------------------------------------------------------------------------------------------


def elements(source: Source, name: str, start: int) -> Found:
    """A tool as an element, with an element for each of its parameters, up to the tool's own end tag."""
    values, at = _elements(source, name, start, rf"</{re.escape(name)}>")
    closing = source.skip(at)
    if values is None or not source.text.startswith(f"</{name}>", closing):
        return _NOTHING
    return [LeakedCall(name, encode(values))], closing + len(name) + 3


def _elements(source: Source, name: str, start: int, closing: str) -> tuple[dict[str, object] | None, int]:
    """The values of declared parameters that are written as elements, and where they end.

    A value ends where another parameter, or the call's own end tag, comes behind its end tag.
    """
    declared = "|".join(map(re.escape, sorted(source.members(name), key=len, reverse=True))) or "(?!)"
    opening = re.compile(rf"\s*+{_SPACE_TAG}<({declared})>")
    values: dict[str, object] = {}
    at = source.skip(start)
    while tag := opening.match(source.text, at):
        source.budget.check()
        ending = rf"{_SPACE_TAG}</{re.escape(tag[1])}>(?=\s*+{_SPACE_TAG}(?:<(?:{declared})>|{closing}))"
        end = re.compile(ending).search(source.text, tag.end())
        if end is None:
            return None, at
        values[tag[1]] = _value(source.text[tag.end() : end.start()])
        at = end.end()
    return values, at


# -- {"name": …, "arguments": {…}} -------------------------------------------------------------------------


def json_calls(source: Source, at: int) -> Found:
    """One JSON value after the other, with space, commas or semicolons between, each a call or a list of calls."""
    calls: list[LeakedCall] = []
    end = at
    while len(calls) <= MAX_CALLS and source.text[at : at + 1] in ("{", "[") and (reading := source.json_at(at)):
        found = calls_in(reading.value, reading)
        if not found:
            break
        calls += found
        end = reading.end
        at = _SEPARATOR.match(source.text, end).end()  # type: ignore[union-attr]
    return (calls, end) if calls else _calls_up_to_tag(source, at)


def _calls_up_to_tag(source: Source, at: int) -> Found:
    """Calls with too many or too few brackets: the end tag says where they end."""
    tag = _CALL_END_TAG.search(source.text, at)
    lost = "{" if _HEADLESS.match(source.text, at) else ""
    if tag is None or not (lost or source.text.startswith(("{", "["), at)):
        return _NOTHING
    start = at + source.text.startswith("{{", at)
    inside = Source(lost + source.text[start : tag.start()], source.names, source.members, source.budget)
    reading = inside.json_at(0, _ONLY_CLOSERS)
    return (calls_in(reading.value, reading), tag.start()) if reading else _NOTHING


def calls_in(value: object, reading: Reading) -> list[LeakedCall]:
    """The calls that a JSON value stands for; none if any part of it is something else."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    if isinstance(value, list):
        found = [calls_in(item, reading) for item in value]
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
