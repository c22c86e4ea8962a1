"""Arguments that are not JSON alone: a Python call, tags, escapes outside of strings, the same object twice.

Each has one meaning or none: what is left over, or is not declared, makes it unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from . import tagged
from .budget import Budget
from .strings import SPACE
from .text import decode, decode_start
from .written import Source, python_arguments

_CALL = re.compile(r"\s*+(?>(?:(?P<tool>[\w.:-]{1,99}+)\s*+\(\s*+)?)[A-Za-z_]\w{0,99}+\s*+=(?!=)")
_TAG = re.compile(r"\s*+<(?P<name>/?[\w-]{1,99}+)")
_TAGS_OF_FORMS = ("parameter", "param", "arg_key")
_ENDS = re.compile(r"(?>(?:\s*+</[\w:-]{1,99}+>)*)\s*+\Z")
_MARKS = re.compile(r"[{}\[\]\"]")
_PART = re.compile(r"(?P<string>\"(?>(?:[^\"\\]|\\.)*)\")|\\[nrt]|(?P<rest>[^\"\\]++)", re.S)


def read_other_writing(text: str, tool: str, declared: Collection[str], budget: Budget) -> dict[str, object] | None:
    """The declared members that a text holds in another writing; None if it is none of them."""
    if "\\" in text and (value := _with_escapes_outside(text)):
        return value
    if text.lstrip().startswith("{"):
        value = _before_words(text)
    elif _CALL.match(text):
        value = python_arguments(text, tool)
    elif (tag := _TAG.match(text)) and (tag["name"] in declared or tag["name"] in _TAGS_OF_FORMS):
        value = _in_tags(text, tool, declared, budget)
    else:
        return None
    return value if value and set(value) <= set(declared) else None


def _before_words(text: str) -> dict[str, object] | None:
    """A sound object before words, or before itself once more."""
    at, value = SPACE.match(text).end(), None  # type: ignore[union-attr]
    while text.startswith("{", at):
        try:
            found, end = decode_start(text, at)
        except (ValueError, RecursionError):
            return None
        if value is not None and found != value:
            return None
        value, at = found, SPACE.match(text, end).end()  # type: ignore[union-attr]
    return None if _MARKS.search(text, at) else value


def _with_escapes_outside(text: str) -> dict[str, object] | None:
    """An object between whose members a model wrote `\\n` as two characters."""
    if not text.lstrip().startswith("{"):
        return None
    parts, at = [], 0
    while part := _PART.match(text, at):
        parts.append(part["string"] or part["rest"] or " ")
        at = part.end()
    if at < len(text):
        return None
    try:
        value = decode("".join(parts))
    except (ValueError, RecursionError):
        return None
    return value if type(value) is dict else None


def _in_tags(text: str, tool: str, declared: Collection[str], budget: Budget) -> dict[str, object] | None:
    source = Source(text, frozenset(), lambda _: declared, budget)
    reader = tagged.pairs if text.lstrip().startswith("<arg_key") else tagged.parameters
    calls, end = reader(source, tool, 0)
    if not calls or calls[0].is_cut or not _ENDS.match(text, end):
        return None
    value: dict[str, object] = decode(calls[0].arguments or "{}")
    return value
