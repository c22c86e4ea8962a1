"""Asks json-repair about a text that our own reader refuses. Its result counts only if nothing was lost or added."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .text import encode

_MAX_LENGTH = 1000
_MAX_OPENERS = 20
"""json-repair's time grows with the square of some texts, and cannot be stopped. Within these bounds it takes at most
a tenth of a second."""
_ESCAPE = re.compile(r"\\[nrtbf]")
_LITERAL = re.compile(r"\b(?:None|NULL|null)\b")
_ESCAPED_QUOTE = ('\\"', "'", "`")
_NOT_A_LETTER = re.compile(r"[\W_]+")


def second_opinion(text: str) -> object:
    """The object or list that json-repair reads in the text; None where it cannot be trusted. Never raises."""
    if len(text) > _MAX_LENGTH or sum(map(text.count, "{[(")) > _MAX_OPENERS:
        return None
    from json_repair import loads  # costs 20 ms and some MiB, and most replies never need it

    try:
        value: object = loads(text, skip_json_loads=True)
        return value if isinstance(value, dict | list) and _is_faithful(value, text) else None
    except Exception:  # a foreign library on arbitrary text may raise anything: then it has no opinion
        return None


def _is_faithful(value: object, text: str) -> bool:
    """Whether the value has the text's letters and digits, all of them and in their order, and each string in it
    is in the text with its white space, and with no quote of the syntax left on it."""
    strings = list(_strings(value))
    return _letters(encode(value)) == _letters(text) and all(
        part in text and not part.startswith(_ESCAPED_QUOTE) and not part.endswith(_ESCAPED_QUOTE) for part in strings
    )


def _letters(text: str) -> str:
    return _NOT_A_LETTER.sub("", _LITERAL.sub("null", _ESCAPE.sub("", text))).casefold()


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        written = encode(value)[1:-1]
        yield f'"{written}"' if not written or written != written.strip() else written
    elif isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
