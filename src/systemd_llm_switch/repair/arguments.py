"""A tool call's arguments: whatever the model wrote in, a string with a JSON object that fits its tool out.

The rule: nothing is invented, and nothing that was begun and not finished is presented as whole. Where that leaves
no object, the text stays exactly as the model wrote it, and is marked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .coercion import coerce, not_known
from .lenient import Reading, best_reading, read
from .model import RepairKind, Schema
from .schema import Misfit, declared_names, members, misfit, required_names
from .second_opinion import second_opinion
from .strings import Exhausted, Unreadable
from .text import decode, encode, fold

UNREPAIRABLE: RepairKind = "unrepairable_arguments"
UNFIT: RepairKind = "unfit_arguments"
_SYNTAX: RepairKind = "arguments_syntax"
_ENCODING: RepairKind = "arguments_encoding"
_WRAPPER: RepairKind = "arguments_wrapper"
_MAX_ENCODINGS = 3
_WRAPPER_NAMES = frozenset({"arguments", "parameters", "params", "args", "input", "toolinput", "properties"})
_LEADING = re.compile(r"(?:\ufeff|\s|```\w*\n|<\|?[\w|]{1,40}>)*")
_END_MARK = re.compile(r"<(?:/(?:tool_call|function|parameters?|arguments)|\|/?\w{1,40}\|)>\Z")
_MAX_END_MARKS = 8
_TAIL = re.compile(r"(?:\s|```|</?\|?[\w|]{1,40}>|[}\];])*(?:(?:\n|//|#)[^{}\[\]\"]*)?\Z")
"""What may follow the object without mattering: brackets, marks, a comment, sentences."""
_ESCAPED_OBJECT = re.compile(r"\{\s*\\+[\"']")
_SURE_END = re.compile(r"(?:\"[^\s\"'(){}\[\]=,]+|\\n|[.!?;)}\]])\"\Z")
"""A string of one word, or one that ends as a file or a sentence does; an opening quote comes behind anything else."""
_HEADLESS = re.compile(r"[\"'][\w$.-]+[\"']\s*:")


@dataclass(frozen=True, slots=True)
class Mended:
    """Arguments as they are to be sent, and the kinds of repair that led there."""

    text: str
    kinds: tuple[RepairKind, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether the text holds an object that fits its tool."""
        return UNREPAIRABLE not in self.kinds and UNFIT not in self.kinds


@dataclass(frozen=True, slots=True)
class _Found:
    """An object found in a text, and what had to be done to find it."""

    value: dict[str, object]
    kinds: tuple[RepairKind, ...] = ()
    reading: Reading | None = None
    """How it was read; None where the text was valid JSON, or empty."""


def mend_arguments(arguments: object, schema: Schema | None, *, truncated: bool) -> Mended:
    """The arguments as a string with a JSON object that fits the tool's schema (None: the tool is not known).

    `truncated` says that the model was stopped: then only the outermost bracket may be missing, and only if all that
    the tool needs is there. Raises ValueError or RecursionError for arguments that are no text and not even JSON.
    """
    if isinstance(arguments, str):
        return _mended_text(arguments, schema, truncated)
    if arguments is None:
        return _mended_text("", schema, truncated)
    mended = _mended_text(encode(arguments), schema, truncated)
    return replace(mended, kinds=("arguments_object", *mended.kinds))


def has_all_needed(text: str, schema: Schema) -> bool:
    """Whether sound arguments hold all that the tool needs, so that nothing can be missing behind them."""
    return _has_all(decode(text), schema)


def _mended_text(text: str, schema: Schema | None, truncated: bool) -> Mended:
    try:
        value = decode(text)
        if type(value) is dict and (schema is None or misfit(value, schema) is Misfit.NONE):
            return Mended(text)
    except (ValueError, RecursionError):
        value = None
    try:
        found = _found_in(value, text, schema, truncated)
        return _settled(text, found, schema, truncated)
    except (ValueError, RecursionError):
        return Mended(text, (UNREPAIRABLE,))


# -- finding the object ------------------------------------------------------------------------------------


def _found_in(value: object, text: str, schema: Schema | None, truncated: bool, encodings: int = 0) -> _Found:
    """The object in the text, whose JSON value is already known (None: it has none). Raises Unreadable."""
    if type(value) is dict:
        return _Found(value)
    if type(value) is list and len(value) == 1 and type(value[0]) is dict:
        return _Found(value[0], (_WRAPPER,))
    if isinstance(value, str) and encodings < _MAX_ENCODINGS:
        return _decoded(value, schema, truncated, encodings)
    if value is not None:
        raise Unreadable("no object")
    return _read_object(text, schema, truncated, encodings)


def _decoded(text: str, schema: Schema | None, truncated: bool, encodings: int) -> _Found:
    """The object in a text that was itself encoded as a string."""
    try:
        value = decode(text)
    except ValueError:
        value = None
    inner = _found_in(value, text, schema, truncated, encodings + 1)
    return replace(inner, kinds=(_ENCODING, *(kind for kind in inner.kinds if kind != _ENCODING)))


def _read_object(text: str, schema: Schema | None, truncated: bool, encodings: int) -> _Found:
    leading = _LEADING.match(text)[0]  # type: ignore[index]
    start = len(leading)
    text = _without_end_marks(text)
    if "```" in leading:
        text = text.removesuffix("```").rstrip()
    if start >= len(text) or text.strip() == "null":
        return _Found({}, (_SYNTAX,))
    if _ESCAPED_OBJECT.match(text, start) and encodings < _MAX_ENCODINGS:
        return _decoded(decode(f'"{text[start:].strip()}"'), schema, truncated, encodings)
    if _HEADLESS.match(text, start):
        text, start = "{" + text[start:], 0
    try:
        reading = best_reading(text, start, declared_names([schema]) if schema else frozenset(), _TAIL)
    except Exhausted:
        raise
    except Unreadable:
        if truncated or type(value := second_opinion(text)) is not dict:
            raise
        return _Found(value, (_SYNTAX,))
    if isinstance(reading.value, str) and encodings < _MAX_ENCODINGS and not reading.has_words:
        return _decoded(reading.value, schema, truncated or reading.is_cut, encodings)
    if type(reading.value) is not dict:
        raise Unreadable("no object")
    return _Found(reading.value, (_SYNTAX,), reading)


def _without_end_marks(text: str) -> str:
    text = text.rstrip()
    for _ in range(_MAX_END_MARKS):
        mark = _END_MARK.search(text, max(len(text) - 45, 0))
        if mark is None:
            break
        text = text[: mark.start()].rstrip()
    return text


# -- making it fit -----------------------------------------------------------------------------------------


def _settled(text: str, found: _Found, schema: Schema | None, truncated: bool) -> Mended:
    """The object as it can be sent. Raises Unreadable where it cannot be had whole."""
    if schema is None:
        _check_whole(found, found.value, None, truncated)
        return Mended(encode(found.value), found.kinds)
    value, changed = _fitted(text, found, schema)
    _check_whole(found, value, schema, truncated)
    miss = misfit(value, schema)
    if miss and not found.kinds:
        return Mended(text, (UNFIT,))
    if miss is Misfit.MISSING:
        raise Unreadable("a required member is missing")
    if miss:
        return Mended(encode(found.value), (*found.kinds, UNFIT))
    return Mended(encode(value), (*found.kinds, *sorted(changed)))


def _fitted(text: str, found: _Found, schema: Schema) -> tuple[dict[str, object], frozenset[RepairKind]]:
    """The object with names and types set right, taken out of a wrapper that models like to add."""
    if misfit(found.value, schema) is Misfit.NONE:
        return found.value, frozenset()
    reading = found.reading or _reread(text, found.value)
    value = reading.value if reading else found.value
    attempts: tuple[tuple[object, tuple[RepairKind, ...]], ...] = ((value, ()), (_unwrapped(value), (_WRAPPER,)))
    for candidate, wrapper in attempts:
        coerced, changed = coerce(candidate, schema, reading.source if reading else not_known)
        if type(coerced) is dict and misfit(coerced, schema) is Misfit.NONE:
            return coerced, changed.union(wrapper)
    coerced, changed = coerce(value, schema, reading.source if reading else not_known)
    return (coerced, changed) if type(coerced) is dict else (found.value, frozenset())


def _unwrapped(value: object) -> object:
    """The object inside `{"arguments": {…}}` and the like."""
    if type(value) is dict and len(value) == 1:
        name, inner = next(iter(value.items()))
        return inner if fold(name) in _WRAPPER_NAMES else None
    return None


def _reread(text: str, value: dict[str, object]) -> Reading | None:
    """Valid JSON read once more, to know how its parts were written."""
    try:
        reading = read(text)
    except Unreadable:
        return None
    return reading if reading.value == value else None


def _check_whole(found: _Found, value: dict[str, object], schema: Schema | None, truncated: bool) -> None:
    """Raises Unreadable if the object may not be all that the model meant to write."""
    reading = found.reading
    if reading is None:
        if truncated and found.kinds and not found.value and not _has_all(value, schema):
            raise Unreadable("cut before the arguments")
        return
    if reading.has_not_a_number:
        raise Unreadable("a number that JSON cannot say")
    if reading.has_words and (schema is None or misfit(value, schema) is not Misfit.NONE):
        raise Unreadable("strings without quotes")
    if reading.valueless and schema is None:
        raise Unreadable("a member without a value")
    if truncated and (reading.is_cut or reading.valueless or any(depth > 1 for depth in reading.open_depths)):
        raise Unreadable("cut within a value")
    if truncated and (reading.has_inner_quotes or reading.has_raw_newlines):
        raise Unreadable("cut, and any quote may be one of the text's own")
    if truncated and reading.open_depths and (reading.doubts or _ends_in_doubt(reading) or not _has_all(value, schema)):
        raise Unreadable("cut before all was there")


def _ends_in_doubt(reading: Reading) -> bool:
    """Whether the last quote of a text may as well open one within the string, as in `"print("` and `"x = "]`."""
    text = reading.text.rstrip("}] \n\r\t")
    if not text.endswith(("'", '"', "`", "”")):
        return False
    return not _SURE_END.search(text)


def _has_all(value: dict[str, object], schema: Schema | None) -> bool:
    """Whether the tool needs nothing more: all that it requires is there, or all that it knows."""
    if schema is None:
        return False
    required = required_names(schema)
    return all(name in value for name in required) if required else members(schema).keys() <= value.keys()
