"""Repairs a tool call's arguments: takes what the model wrote, and returns a string with a JSON object for the tool.

The rule: nothing is invented, and an incomplete value is never presented as complete. If that leaves no object, the
text stays exactly as the model wrote it, and is marked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from html import unescape

from .budget import Budget
from .coercion import NAMES, TYPES, coerce, not_known
from .lenient import Reading, best_reading, read
from .model import RepairKind
from .other_writings import read_other_writing
from .quote_tokens import as_json
from .schema import Judge, Misfit, Node
from .second_opinion import second_opinion
from .strings import Ambiguous, Exhausted, Unreadable
from .text import decode, encode, fold

UNREPAIRABLE: RepairKind = "unrepairable_arguments"
UNFIT: RepairKind = "unfit_arguments"
_SYNTAX: RepairKind = "arguments_syntax"
_ENCODING: RepairKind = "arguments_encoding"
_WRAPPER: RepairKind = "arguments_wrapper"
_MAX_ENCODINGS = 3
_WRAPPER_NAMES = frozenset({"arguments", "parameters", "params", "args", "input", "toolinput", "properties", "file"})
_MAX_WRAPPERS = 4
_GEMMA_VALUE = re.compile(
    r'\s*+\{(?>(?:[^"<\s]|\s++(?!<)|"(?>(?:[^"<\n]|<(?!\|"\|>)){0,99})")*)(?<=[:\[,{(])\s*+<\|"\|>'
)
"""A value between Gemma's tokens, before which no plain string holds one: JSON about Gemma stays as it is."""
_CHANGED: dict[str, RepairKind] = {NAMES: "arguments_names", TYPES: "arguments_types"}
_LEADING = re.compile(r"(?>(?:\ufeff|\s|```\w*+\n|<\|?[\w|]{1,40}+>)*)")
_END_MARK = re.compile(r"<(?:/(?:tool_call|function|parameters?|arguments)|\|/?\w{1,40}\|)>\Z")
_MAX_END_MARKS = 8
_FILLER = r"(?:[^\S\n]|```|</?\|?[\w|]{1,40}+>|[}\];])"
_WORDS = r"[^{}\[\]\"]*+\Z"
_TAIL = re.compile(rf"(?>(?:{_FILLER}*+\n)+){_WORDS}|(?>(?:{_FILLER}|\n)*)(?:(?://|#){_WORDS}|\Z)")
"""What may follow the object without mattering: brackets, marks, a comment, sentences."""
_LOOSE_TAIL = re.compile(rf"\s*+\)?+;?+(?:{_TAIL.pattern})")
"""The same behind `tool({…})`."""
_MAX_STARTS = 4
_OBJECT_STARTS = tuple("{[\"'`“")
_NAME_KEYS = ("name", "tool", "tool_name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
_CALL_KEYS = frozenset({*_NAME_KEYS, *_ARGUMENT_KEYS, "type", "id", "index"})
_ESCAPED_OBJECT = re.compile(r"\{\s*+\\++[\"']")
_SURE_END = re.compile(r"(?:\"[^\s\"'(){}\[\]=,]++|\\n|[.!?;)}\]])\"\Z")
"""A string of one word, or one that ends as a file or a sentence does; an opening quote comes behind anything else."""
_HEADLESS = re.compile(r"[\"'][\w$.-]++[\"']\s*+:")


@dataclass(frozen=True, slots=True)
class Repaired:
    """The arguments to send, and the kinds of repair that were made."""

    text: str
    kinds: tuple[RepairKind, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether the text holds an object that fits its tool."""
        return UNREPAIRABLE not in self.kinds and UNFIT not in self.kinds


@dataclass(frozen=True, slots=True)
class _Found:
    """An object found in a text, and the repairs that it took to read it."""

    value: dict[str, object]
    kinds: tuple[RepairKind, ...] = ()
    reading: Reading | None = None
    """How it was read; None where the text was valid JSON, or empty."""


def repair_arguments(
    arguments: object, schema: Node | None, budget: Budget, *, truncated: bool, tool: str = ""
) -> Repaired:
    """The arguments as a string with a JSON object that fits the tool's schema (None: the tool is not known).

    `truncated` says that the model was stopped: then only the outermost bracket may be missing, and only if all that
    the tool needs is there. Raises ValueError or RecursionError for arguments that are no text and not even JSON.
    """
    if isinstance(arguments, str):
        return _Attempt(schema, truncated, budget, tool).repaired(arguments)
    if arguments is None:
        return _Attempt(schema, truncated, budget, tool).repaired("")
    repaired = _Attempt(schema, truncated, budget, tool).repaired(encode(arguments))
    return replace(repaired, kinds=("arguments_object", *repaired.kinds))


def has_all_needed(text: str, schema: Node) -> bool:
    """Whether sound arguments hold all that the tool needs, so that nothing can be missing behind them."""
    return _has_all(decode(text), schema)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt to repair the arguments of one call."""

    schema: Node | None
    truncated: bool
    budget: Budget
    tool: str

    def repaired(self, text: str) -> Repaired:
        """The arguments repaired, or the text as it is with the reason. Raises BudgetSpent."""
        try:
            value = decode(text)
            if type(value) is dict and (self.schema is None or self.fits(value)):
                return Repaired(text)
        except (ValueError, RecursionError):
            value = None
        self.budget.allow(len(text))
        self.budget.check()
        try:
            found = self.found_in(value, text)
            return self.settled(text, found)
        except (ValueError, RecursionError):
            return Repaired(text, (UNREPAIRABLE,))

    def fits(self, value: object) -> bool:
        return self.schema is not None and Judge(self.budget).fits(value, self.schema)

    # -- finding the object ------------------------------------------------------------------------------

    def found_in(self, value: object, text: str, encodings: int = 0) -> _Found:
        """The object in the text, whose JSON value is already known (None: it has none). Raises Unreadable."""
        if type(value) is dict:
            return _Found(value)
        if type(value) is list and (member := self.only_list(value)):
            return _Found({member: value}, (_WRAPPER,))
        if value == []:  # no arguments, as PHP writes them
            return _Found({}, (_WRAPPER,))
        if type(value) is list and len(value) == 1 and type(value[0]) is dict:
            return _Found(value[0], (_WRAPPER,))
        if isinstance(value, str) and encodings < _MAX_ENCODINGS:
            return self.decoded(value, encodings)
        if value is not None:
            raise Unreadable("not an object")
        return self.read_object(text, encodings)

    def only_list(self, value: list[object]) -> str | None:
        """The only member that the tool needs, if this list is its value, without the object around it."""
        schema = self.schema
        names = () if schema is None else schema.required or tuple(schema.members)
        if schema is None or len(names) != 1 or not value:
            return None
        coerced, _ = coerce({names[0]: value}, schema, not_known, self.budget)
        is_meant = type(coerced) is dict and type(coerced.get(names[0])) is list and self.fits(coerced)
        return names[0] if is_meant and "array" in schema.members[names[0]].types else None

    def decoded(self, text: str, encodings: int) -> _Found:
        """The object in a text that was itself encoded as a string."""
        try:
            value = decode(text)
        except ValueError:
            value = None
        inner = self.found_in(value, text, encodings + 1)
        return replace(inner, kinds=(_ENCODING, *(kind for kind in inner.kinds if kind != _ENCODING)))

    def read_object(self, text: str, encodings: int) -> _Found:
        text = _plain(text)
        if self.schema and not self.truncated:
            other = read_other_writing(text, self.tool, self.schema.members, self.budget)
            if other is not None:
                return _Found(other, (_SYNTAX,))
        if _GEMMA_VALUE.match(text):  # a backend took Gemma's arguments over as they were written
            text, _ = as_json(text, is_whole=not self.truncated)
        leading = _LEADING.match(text)[0]  # type: ignore[index]
        start = len(leading)
        text = _without_end_marks(text)
        if "```" in leading:
            text = text.removesuffix("```").rstrip()
        if start >= len(text) or text.strip() in ("null", "None"):
            return _Found({}, (_SYNTAX,))
        if _ESCAPED_OBJECT.match(text, start) and encodings < _MAX_ENCODINGS:
            return self.decoded(decode(f'"{text[start:].strip()}"'), encodings)
        if _HEADLESS.match(text, start):
            text, start = "{" + text[start:], 0
        try:
            if not self.truncated and self.schema and text[start] not in _OBJECT_STARTS:
                reading = self.read_behind_words(text, start)
            else:
                reading = best_reading(text, start, self.names, _TAIL, self.budget)
        except (Exhausted, Ambiguous):
            raise
        except Unreadable:
            if self.truncated or type(value := second_opinion(text)) is not dict:
                raise
            return _Found(value, (_SYNTAX,))
        if isinstance(reading.value, str) and encodings < _MAX_ENCODINGS and not reading.has_words:
            inner = replace(self, truncated=self.truncated or reading.is_cut)
            return inner.decoded(reading.value, encodings)
        if type(reading.value) is list and (member := self.only_list(reading.value)):
            return _Found({member: reading.value}, (_SYNTAX, _WRAPPER), reading)
        if type(reading.value) is list and len(reading.value) == 1 and type(reading.value[0]) is dict:
            return _Found(reading.value[0], (_SYNTAX, _WRAPPER), reading)
        if type(reading.value) is not dict:
            raise Unreadable("not an object")
        return _Found(reading.value, (_SYNTAX,), reading)

    def read_behind_words(self, text: str, start: int) -> Reading:
        """The one object behind a sentence, a fence or `tool(`; braces in the words are passed over."""
        at = text.find("{", start)
        for _ in range(_MAX_STARTS):
            if at < 0:
                break
            try:
                reading = read(text, at, names=self.names, tail=_LOOSE_TAIL, budget=self.budget)
            except Exhausted:
                raise
            except Unreadable:
                at = text.find("{", at + 1)
                continue
            if reading.value and not reading.strange_names and not reading.has_words:
                if reading.has_inner_quotes or not _LOOSE_TAIL.match(text, reading.end):
                    break
                return reading
            at = text.find("{", max(reading.end, at + 1))
        raise Unreadable("not one object behind words")

    @property
    def names(self) -> frozenset[str]:
        return self.schema.names if self.schema else frozenset()

    # -- making it fit -----------------------------------------------------------------------------------

    def settled(self, text: str, found: _Found) -> Repaired:
        """The object as it can be sent. Raises Unreadable where it cannot be had whole."""
        if self.schema is None:
            self.check_whole(found, found.value)
            return Repaired(encode(found.value), found.kinds)
        value, changed = self.fitted(text, found, self.schema)
        self.check_whole(found, value)
        miss = Judge(self.budget).misfit(value, self.schema)
        if miss and not found.kinds:
            return Repaired(text, (UNFIT,))
        if miss is Misfit.MISSING:
            raise Unreadable("a required member is missing")
        if miss:
            return Repaired(encode(found.value), (*found.kinds, UNFIT))
        return Repaired(encode(value), (*found.kinds, *sorted(changed)))

    def fitted(self, text: str, found: _Found, schema: Node) -> tuple[dict[str, object], frozenset[RepairKind]]:
        """The object with names and types set right, taken out of a wrapper that models like to add."""
        if self.fits(found.value):
            return found.value, frozenset()
        reading = found.reading or self.reread(text, found.value)
        value = reading.value if reading else found.value
        source = reading.source if reading else not_known
        attempts: tuple[tuple[object, tuple[RepairKind, ...]], ...] = (
            (value, ()),
            (_unwrapped(value, self.tool), (_WRAPPER,)),
            (_without_call(value, self.tool), (_WRAPPER,)),
        )
        for candidate, wrapper in attempts:
            coerced, changed = coerce(candidate, schema, source, self.budget)
            if type(coerced) is dict and self.fits(coerced):
                return coerced, frozenset(map(_CHANGED.__getitem__, changed)).union(wrapper)
        coerced, changed = coerce(value, schema, source, self.budget)
        if type(coerced) is not dict:
            return found.value, frozenset()
        return coerced, frozenset(map(_CHANGED.__getitem__, changed))

    def reread(self, text: str, value: dict[str, object]) -> Reading | None:
        """Valid JSON read once more, to know how its parts were written."""
        try:
            reading = read(text, budget=self.budget)
        except Unreadable:
            return None
        return reading if reading.value == value else None

    def check_whole(self, found: _Found, value: dict[str, object]) -> None:
        """Raises Unreadable if the object may not be all that the model meant to write."""
        reading = found.reading
        if reading is None:
            if self.truncated and found.kinds and not found.value and not _has_all(value, self.schema):
                raise Unreadable("cut before the arguments")
            return
        if reading.has_not_a_number:
            raise Unreadable("a number that JSON cannot express")
        if reading.has_words and not self.fits(value):
            raise Unreadable("strings without quotes")
        if reading.valueless and self.schema is None:
            raise Unreadable("a member without a value")
        if self.truncated:
            _check_not_cut(reading, value, self.schema)


def _plain(text: str) -> str:
    """The text without a page's entities for its quotes, and without its repetitions."""
    if '"' not in text and text.lstrip().startswith("{&quot;"):
        text = unescape(text)
    for count in (2, 3):
        length = len(text) // count
        part = text[:length]
        if (
            length * count == len(text)
            and part.startswith("{")
            and part * count == text
            and part.rstrip().endswith("}")
        ):
            return part
    return text


def _without_end_marks(text: str) -> str:
    text = text.rstrip()
    object_end = text.rfind("}") + 1
    behind = text[object_end:].lstrip()
    if behind.startswith("<|") and not any(quote in behind for quote in "\"'`"):
        return text[:object_end]
    for _ in range(_MAX_END_MARKS):
        mark = _END_MARK.search(text, max(len(text) - 45, 0))
        if mark is None:
            break
        text = text[: mark.start()].rstrip()
    return text


def _unwrapped(value: object, tool: str) -> object:
    """The object inside `{"arguments": {…}}` and the like, or inside the tool's own name; also in several of them."""
    inner = value
    for _ in range(_MAX_WRAPPERS):
        if type(inner) is list and len(inner) == 1:
            inner = inner[0]
        if type(inner) is not dict or len(inner) != 1:
            break
        name, part = next(iter(inner.items()))
        if fold(name) not in _WRAPPER_NAMES and fold(name) != fold(tool):
            break
        inner = part
    return None if inner is value else inner


def _without_call(value: object, tool: str) -> object:
    """The arguments of a whole call to this tool in the place of its arguments."""
    if type(value) is dict and type(function := value.get("function")) is dict:
        value = function
    if type(value) is not dict or not value.keys() <= _CALL_KEYS:
        return None
    name = next((value[key] for key in _NAME_KEYS if key in value), None)
    if fold(str(name)) != fold(tool):
        return None
    inner = next((value[name] for name in _ARGUMENT_KEYS if name in value), None)
    try:
        return decode(inner) if isinstance(inner, str) else inner
    except (ValueError, RecursionError):
        return None


def _check_not_cut(reading: Reading, value: dict[str, object], schema: Node | None) -> None:
    """Raises Unreadable if the model was stopped before it had written all of the object."""
    if reading.is_cut or reading.valueless or any(depth > 1 for depth in reading.open_depths):
        raise Unreadable("cut within a value")
    if reading.has_inner_quotes or reading.has_raw_newlines:
        raise Unreadable("cut, and any quote may be one of the text's own")
    if reading.open_depths and (reading.doubts or _ends_in_doubt(reading) or not _has_all(value, schema)):
        raise Unreadable("cut before all was there")


def _ends_in_doubt(reading: Reading) -> bool:
    """Whether the last quote of a text may as well open one within the string, as in `"print("` and `"x = "]`."""
    text = reading.text.rstrip("}] \n\r\t")
    if not text.endswith(("'", '"', "`", "”")):
        return False
    return not _SURE_END.search(text)


def _has_all(value: dict[str, object], schema: Node | None) -> bool:
    """Whether the tool needs nothing more: all required members are there, or all declared ones."""
    if schema is None:
        return False
    return all(name in value for name in schema.required or schema.members)
