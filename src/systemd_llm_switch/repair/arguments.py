"""A tool call's arguments: whatever the model wrote in, a string with a JSON object that fits its tool out.

The rule: nothing is invented, and nothing that was begun and not finished is presented as whole. Where that leaves
no object, the text stays exactly as the model wrote it, and is marked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .lenient import Reading, Unreadable, read
from .model import Schema
from .schema import Misfit, coerce, declared_names, misfit
from .text import decode, encode, fold

UNREPAIRABLE = "unrepairable_arguments"
UNFIT = "unfit_arguments"
_MAX_ENCODINGS = 3
_NO_KINDS: tuple[str, ...] = ()
_WRAPPERS = frozenset({"arguments", "parameters", "params", "args", "input", "toolinput", "properties"})
_LEADING = re.compile(r"(?:\ufeff|\s|```\w*\n|<\|?[\w|]+\|?>)+")
_TRAILING = re.compile(r"(?:\s|```|</?\|?[\w|]+\|?>|[}\];])*\Z")
_ESCAPED_OBJECT = re.compile(r"\{\s*\\+[\"']")
_HEADLESS = re.compile(r"[\"'][\w$.-]+[\"']\s*:")


@dataclass(frozen=True, slots=True)
class Mended:
    """Arguments as they are to be sent, and the kinds of repair that led there."""

    text: str
    kinds: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether the text holds an object that fits its tool."""
        return not {UNREPAIRABLE, UNFIT}.intersection(self.kinds)


@dataclass(frozen=True, slots=True)
class _Found:
    """An object found in a text; `reading` says how, and is None where the text was valid JSON."""

    value: dict[str, object]
    kinds: tuple[str, ...]
    reading: Reading | None = None


def mend_arguments(arguments: object, schema: Schema | None, *, truncated: bool) -> Mended:
    """The arguments as a string with a JSON object that fits the tool's schema (None: the tool is not known).

    `truncated` says that the model was stopped: then only the outermost bracket may be missing, and only if all that
    the tool needs is there. Raises ValueError or RecursionError only for arguments that are no string and no JSON.
    """
    if isinstance(arguments, str):
        text, before = arguments, _NO_KINDS
    else:
        text, before = ("", _NO_KINDS) if arguments is None else (encode(arguments), ("arguments_object",))
    try:
        found = _find(text, schema, 0)
        return _settled(text, found, schema, before, truncated)
    except (ValueError, RecursionError):
        return Mended(text, (*before, UNREPAIRABLE))


def _find(text: str, schema: Schema | None, encodings: int) -> _Found:
    """The object in the text. Raises ValueError or RecursionError where there is none."""
    try:
        value = decode(text)
    except ValueError:
        return _read(text, schema, encodings)
    if type(value) is list and len(value) == 1 and type(value[0]) is dict:
        return _Found(value[0], ("arguments_wrapper",))
    if isinstance(value, str) and encodings < _MAX_ENCODINGS:
        inner = _find(value, schema, encodings + 1)
        return _Found(inner.value, ("arguments_encoding", *inner.kinds), inner.reading)
    if value is None:
        return _Found({}, ("arguments_syntax",))
    if type(value) is not dict:
        raise Unreadable("no object")
    return _Found(value, ())


def _read(text: str, schema: Schema | None, encodings: int) -> _Found:
    lead = _LEADING.match(text)
    start = lead.end() if lead else 0
    if start == len(text):
        return _Found({}, ("arguments_syntax",))
    if _ESCAPED_OBJECT.match(text, start) and encodings < _MAX_ENCODINGS:
        inner = _find(decode(f'"{text[start:]}"'), schema, encodings + 1)
        return _Found(inner.value, ("arguments_encoding", *inner.kinds), inner.reading)
    if _HEADLESS.match(text, start):
        text, start = "{" + text[start:], 0
    names = declared_names(schema) if schema else frozenset()
    reading = read(text, start, names=names, tail=_TRAILING)
    rest = text[reading.end :].strip()
    if not _TRAILING.match(rest) and rest != text[start : reading.end].strip():
        raise Unreadable("text behind the object")
    value = reading.value
    if isinstance(value, str) and encodings < _MAX_ENCODINGS and not reading.has_words:
        inner = _find(value, schema, encodings + 1)
        return _Found(inner.value, ("arguments_encoding", *inner.kinds), inner.reading)
    if type(value) is not dict:
        raise Unreadable("no object")
    return _Found(value, ("arguments_syntax",), reading)


def _settled(text: str, found: _Found, schema: Schema | None, before: tuple[str, ...], truncated: bool) -> Mended:
    """The object, made to fit. Raises Unreadable where it cannot be had whole."""
    kinds = (*before, *found.kinds)
    if schema is None:
        _check_whole(found, found.value, schema, truncated)
        return Mended(encode(found.value) if found.kinds else text, kinds)
    value, changed = _fitted(text, found, schema)
    _check_whole(found, value, schema, truncated)
    miss = misfit(value, schema)
    if found.kinds and miss is Misfit.MISSING:
        raise Unreadable("a required member is missing")
    if not found.kinds and (miss is not Misfit.NONE or not changed):
        return Mended(text, (*before, UNFIT) if miss else before)
    kinds += tuple(f"arguments_{what}" for what in sorted(changed))
    return Mended(encode(value), (*kinds, UNFIT) if miss else kinds)


def _fitted(text: str, found: _Found, schema: Schema) -> tuple[dict[str, object], frozenset[str]]:
    """The object with its names and types set right, taken out of a wrapper that models like to add."""
    if misfit(found.value, schema) is Misfit.NONE and not _has_strange_names(found.value, schema):
        return found.value, frozenset()
    reading = found.reading or _reread(text, found.value)
    value, changed = coerce(reading.value if reading else found.value, schema, _source(reading))
    if len(found.value) == 1 and misfit(value, schema) is not Misfit.NONE:
        name, inner = next(iter(found.value.items()))
        if fold(name) in _WRAPPERS and type(inner) is dict:
            unwrapped, inner_changed = coerce(inner, schema, _source(reading))
            if misfit(unwrapped, schema) is Misfit.NONE and type(unwrapped) is dict:
                return unwrapped, inner_changed | {"wrapper"}
    return (value, changed) if type(value) is dict else (found.value, frozenset())


def _has_strange_names(value: dict[str, object], schema: Schema) -> bool:
    members = schema.get("properties")
    return isinstance(members, dict) and not value.keys() <= members.keys()


def _reread(text: str, value: dict[str, object]) -> Reading | None:
    """Valid JSON read once more, to know how its parts were written."""
    try:
        reading = read(text)
    except Unreadable:
        return None
    return reading if reading.value == value else None


def _source(reading: Reading | None) -> Callable[[object], str | None]:
    return reading.source if reading else lambda value: None


def _check_whole(found: _Found, value: dict[str, object], schema: Schema | None, truncated: bool) -> None:
    """Raises Unreadable if the object is not all that the model meant to write."""
    reading = found.reading
    if reading is None:
        if found.kinds and not found.value and (schema is None or (truncated and schema.get("properties"))):
            raise Unreadable("no arguments")
        return
    if reading.has_words and (schema is None or misfit(value, schema) is not Misfit.NONE):
        raise Unreadable("strings without quotes")
    if reading.valueless and schema is None:
        raise Unreadable("a member without a value")
    if truncated and (reading.is_cut or any(depth > 1 for depth in reading.open_depths)):
        raise Unreadable("cut within a value")
    if truncated and reading.open_depths and not _has_all(value, schema):
        raise Unreadable("cut before all was there")


def _has_all(value: dict[str, object], schema: Schema | None) -> bool:
    """Whether the tool needs nothing more: all that it requires is there, or all that it knows."""
    if schema is None:
        return False
    required, members = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and required:
        return all(name in value for name in required)
    return not isinstance(members, dict) or members.keys() <= value.keys()


def has_all_needed(text: str, schema: Schema) -> bool:
    """Whether sound arguments hold all that the tool needs, so that nothing can be missing behind them."""
    return _has_all(decode(text), schema)
