"""Reads the arguments of a leaked call: one reader for each style, each from a place in the text to JSON text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from .budget import Budget
from .lenient import Reading, read
from .quote_tokens import QUOTE_TOKEN, as_json, end_of_object
from .strings import SPACE, Exhausted, Unreadable, unescape
from .text import decode, encode

NAME_KEYS = ("name", "function", "function_name", "tool_name", "tool", "action")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "tool_input", "tool_arguments", "params", "action_input")
MAX_CALLS = 64
"""A model that writes more of them at once is caught in a loop."""
_ENVELOPE = frozenset({"type", "id", "index", "tool_call_id"})
_KNOWN_KEYS = _ENVELOPE.union(NAME_KEYS, ARGUMENT_KEYS)
_BEHIND_JSON = re.compile(
    r"\s*+(?:</?[\w|:｜▁-]{1,40}+>|<\||<｜|<function=|\[(?:/[\w.-]{1,99}+|TOOL_CALLS?|END_TOOL_REQUEST|TOOL_REQUEST_END)\]"
    r"|[;,\]{)]|```|[\w.-]{1,99}+\[ARGS\]|assistant(?:commentary|analysis|final)|commentary to=|>|\Z)|[ \t]*+\n"
)
_SURPLUS = re.compile(r"(?>(?:\s*+[}\]])+)(?=\s*+(?:<|\[|```|\Z))")
_BEHIND_OBJECT = re.compile(rf"{_SURPLUS.pattern}|{_BEHIND_JSON.pattern}")
_SEPARATOR = re.compile(r"\s*+[;,]?\s*+")
_FLAG = re.compile(
    r"\s*+--(?P<name>[\w-]{1,99}+)[ =]\s*+"
    r"(?:\"(?P<string>[^\"\\]*+(?>(?:\\.[^\"\\]*+)*))\"\s*+,?+|(?P<plain>[^\s\"}][^\n]*+))",
    re.S,
)
_TOKEN_OR_END = re.compile(r"\s*+(?:<|\Z)")
_CLOSERS = re.compile(r"\s*+\}[}\s]*+")
_ONLY_CLOSERS = re.compile(r"[}\]\s]*+\Z")
_CALL_END_TAG = re.compile(r"</(?:tool_calls?|function_calls?|functioncall|tools?|TOOLCALL)>|<\|/tool_call\|>")
_TOKEN_OF_CALLS = re.compile(
    r"(?>(?:```\s{0,9})?)<[｜|][^<>\s｜|]{1,40}+[｜|]>|</?(?:tool_call|function)[=>]|\[(?:TOOL_CALLS|CALL_ID|ARGS)\]"
    r"|[\w.-]{1,99}+\[(?:ARGS|CALL_ID)\]|(?:assistant)?commentary to=|>>>[\w.-]{1,99}+\n|✿FUNCTION✿"
)
_MESSAGE_KEYS = frozenset({"tool_calls", "role", "content", "refusal"})
_HEADLESS = re.compile(r"[\"']name[\"']\s*+:")
_PYTHON_PART = re.compile(r"'(?>(?:[^'\\]|\\.)*)'|\"(?>(?:[^\"\\]|\\.)*)\"|[\[\](){}]|[^\[\](){}\"']++", re.S)
_RAW_NEWLINE = re.compile(r"\\.|\n", re.S)
_PYTHON_CALL = re.compile(r"\s*+(?P<name>[A-Za-z_][\w.]{0,99}+)(?>(?:\.call)?)\(")
_MAX_PYTHON = 20_000
"""So many characters outside of strings: Python's parser cannot be stopped."""
_ANY_NAME = "call"
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
    tools: frozenset[str] = frozenset()
    """The names of the request's tools."""

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
NOTHING: Found = ([], 0)


def json_behind_name(source: Source, name: str, at: int) -> Found:
    """The object behind a name, and brackets too many behind it."""
    reading = source.json_at(at, _BEHIND_OBJECT)
    if reading is None or (reading.has_words and QUOTE_TOKEN.search(source.text, at, reading.end)):
        return NOTHING
    if reading.has_inner_quotes and (stop := _json_up_to_token(source, at, reading.end)):
        return [LeakedCall(name, source.text[at:stop])], stop
    surplus = _SURPLUS.match(source.text, reading.end)
    return [LeakedCall(name, source.text[at : reading.end])], surplus.end() if surplus else reading.end


def _json_up_to_token(source: Source, at: int, end: int) -> int:
    """Where an object ends that only lacks its bracket before a token of the form; 0 if it is none.

    Its last string would swallow the next call.
    """
    stop = _TOKEN_OF_CALLS.search(source.text, at, end)
    if stop is None:
        return 0
    inside = Source(source.text[at : stop.start()], source.names, source.members, source.budget)
    reading = inside.json_at(0, _ONLY_CLOSERS)
    return 0 if reading is None or reading.is_cut or reading.has_inner_quotes else stop.start()


# -- {p:<|"|>value<|"|>} -----------------------------------------------------------------------------------


def quoted(source: Source, name: str, start: int, ends: re.Pattern[str], *, needs_end: bool) -> Found:
    """An object whose strings stand between tokens, so that nothing in them is escaped; also in parentheses.

    Without an end token it goes up to its last bracket; with `needs_end`, that must be the text's end.
    """
    ending = _end_outside_of_strings(source.text, start, ends)
    stop = ending.start() if ending else len(source.text)
    if ending is None and not needs_end and (closed := end_of_object(source.text, start)) > 0:
        stop = closed
    body = source.text[start:stop].rstrip()
    if body.startswith("("):
        if call := _python_call(f"f{body}") if len(body) < _MAX_PYTHON else None:
            return [LeakedCall(name, call.arguments)], stop
        inner = body[1:].removesuffix(")").strip()
        body = inner if inner.startswith("{") else f"{{{inner}}}"
    written, is_cut = as_json(body, is_whole=ending is not None)
    inside = Source(written, source.names, source.members, source.budget)
    reading = inside.json_at(0, _BEHIND_OBJECT)
    if reading is None or not isinstance(reading.value, dict):
        return NOTHING
    if ending or reading.end == len(written):
        return [LeakedCall(name, written[: reading.end], is_open=ending is None, is_cut=is_cut)], stop
    return NOTHING


def _end_outside_of_strings(text: str, start: int, ends: re.Pattern[str]) -> re.Match[str] | None:
    """The first end token outside of strings, or the first one of all if a closing token is missing.

    It is missing, too, where a bracket comes before the end token, and another token or nothing behind it.
    """
    at, tokens = start, 0
    for ending in ends.finditer(text, start):
        tokens += sum(1 for _ in QUOTE_TOKEN.finditer(text, at, ending.start()))
        at = ending.end()
        is_closed = text[at - 30 : ending.start()].rstrip().endswith(("}", ")"))
        if tokens % 2 == 0 or (is_closed and _TOKEN_OR_END.match(text, at)):
            return ending
    return ends.search(text, start)


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
            return NOTHING
        calls.append(call)
        end = closing
        at = _SEPARATOR.match(source.text, end).end()  # type: ignore[union-attr]
    if in_list and calls:
        closer = source.skip(end)
        if source.text.startswith("]", closer):
            return calls, closer + 1
        if closer < len(source.text):
            return NOTHING
        calls[-1] = LeakedCall(calls[-1].name, calls[-1].arguments, is_open=True)
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
        # Models put the newlines of a file into a string as they are.
        written = _PYTHON_PART.sub(
            lambda part: _RAW_NEWLINE.sub(_escaped_newline, part[0]) if part[0][0] in "\"'" else part[0], written
        )
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
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def python_arguments(text: str, tool: str) -> dict[str, object] | None:
    """The keywords of a Python call to this tool, whose name may be left out."""
    head = _PYTHON_CALL.match(text)
    if len(text) > _MAX_PYTHON or (head and head["name"].rpartition(".")[2] != tool):
        return None
    call = _python_call(text if head else f"{_ANY_NAME}({text})")
    if call is None or call.arguments is None:
        return None
    value: dict[str, object] = decode(call.arguments)
    return value


def _escaped_newline(part: re.Match[str]) -> str:
    """The escape for a newline; one behind a backslash continues the line, as in Python."""
    return "\\n" if part[0] == "\n" else part[0]


def _plain(node: ast.expr) -> object:
    """The value of a literal, with JSON's names for some. Raises ValueError, or TypeError for what JSON cannot hold."""
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


# -- {--p "value"} -----------------------------------------------------------------------------------------


def flags(source: Source, name: str, start: int) -> Found:
    """An object whose members are written as a command's flags."""
    at = source.skip(start)
    in_braces = source.text.startswith("{", at)
    at += in_braces
    values: dict[str, object] = {}
    while flag := _FLAG.match(source.text, at):
        source.budget.check()
        if flag["name"] in values:
            return NOTHING
        plain = flag["plain"] and _without_closers(flag["plain"])
        values[flag["name"]] = plain or unescape(flag["string"] or "")
        at = flag.start("plain") + len(plain) if plain else flag.end()
    closing = _CLOSERS.match(source.text, at)
    return ([LeakedCall(name, encode(values))], closing.end()) if closing and values else NOTHING


def _without_closers(line: str) -> str:
    """A flag's value without what ends the call on the same line: brackets that nothing in the value opened."""
    value = line.partition("[/TOOL_CALL]")[0].rstrip()
    closers = [at for at in range(len(value.rstrip("} \t")), len(value)) if value[at] == "}"]
    surplus = min(value.count("}") - value.count("{"), len(closers))
    return value[: closers[-surplus]].rstrip() if surplus > 0 else value


# -- {"name": …, "arguments": {…}} -------------------------------------------------------------------------


def json_calls(source: Source, at: int, *, is_marked: bool = True) -> Found:
    """One JSON value after the other, with space, commas or semicolons between, each a call or a list of calls."""
    calls: list[LeakedCall] = []
    end = at
    while len(calls) <= MAX_CALLS and source.text[at : at + 1] in ("{", "[") and (reading := source.json_at(at)):
        found = calls_in(source, reading.value, reading, is_marked)
        if not found:
            break
        calls += found
        end = reading.end
        at = _SEPARATOR.match(source.text, end).end()  # type: ignore[union-attr]
    return (calls, end) if calls or not is_marked else _calls_up_to_tag(source, at)


def _calls_up_to_tag(source: Source, at: int) -> Found:
    """Calls with too many or too few brackets: the end tag says where they end."""
    tag = _CALL_END_TAG.search(source.text, at)
    end = tag.start() if tag else len(source.text)
    lost = "{" if _HEADLESS.match(source.text, at) else ""
    if not (lost or source.text.startswith(("{", "["), at)):
        return NOTHING
    start = at + source.text.startswith("{{", at)
    inside = Source(lost + source.text[start:end], source.names, source.members, source.budget)
    reading = inside.json_at(0, _ONLY_CLOSERS)
    return (calls_in(source, reading.value, reading, True), end) if reading else NOTHING


def calls_in(source: Source, value: object, reading: Reading, is_marked: bool) -> list[LeakedCall]:
    """The calls that a JSON value stands for; none if any part of it is something else.

    Behind a mark, the arguments may stand beside the name.
    """
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list) and value.keys() <= _MESSAGE_KEYS:
        value = [] if value.get("content") else value["tool_calls"]
    if isinstance(value, list):
        found = [calls_in(source, item, reading, is_marked) for item in value]
        return [call for calls in found for call in calls] if all(found) else []
    if not isinstance(value, dict):
        return []
    for key in ("function", "function_call"):
        if isinstance(function := value.get(key), dict):
            value = function
    name_key = next((key for key in NAME_KEYS if isinstance(value.get(key), str)), None)
    if name_key is None or _is_schema(value.get("parameters")):
        return []
    name = value[name_key]
    arguments_key = next((key for key in ARGUMENT_KEYS if key in value), None)
    if name_key == "action" and not is_marked and arguments_key != "action_input":
        return []  # an answer in JSON about some action
    beside = {key: part for key, part in value.items() if key != name_key and key not in _ENVELOPE}
    if is_marked and arguments_key is None and beside and beside.keys() <= set(source.members(name)):
        return [LeakedCall(name, encode(beside))]
    if not value.keys() <= _KNOWN_KEYS:
        return []
    arguments = value[arguments_key] if arguments_key else None
    return [LeakedCall(name, arguments if isinstance(arguments, str) else reading.source(arguments))]


def keyed_calls(source: Source, at: int) -> Found:
    """A list of objects whose only member is the call: its name, and its arguments."""
    reading = source.json_at(at)
    if reading is None or not isinstance(reading.value, list):
        return NOTHING
    calls = [
        LeakedCall(name, reading.source(arguments))
        for item in reading.value
        if isinstance(item, dict) and len(item) == 1
        for name, arguments in item.items()
        if isinstance(arguments, dict)
    ]
    return (calls, reading.end) if len(calls) == len(reading.value) else NOTHING


def _is_schema(parameters: object) -> bool:
    """Whether a model repeated the definition of a tool instead of calling it."""
    return (
        isinstance(parameters, dict)
        and parameters.get("type") == "object"
        and isinstance(parameters.get("properties"), dict)
    )
