"""Whether a JSON text holds too many values to be parsed in one go. Pure.

Python's parser does not let other threads run before it is done: four seconds for a body of 64 MB that is nothing but
small objects, in which no other request is answered. Long strings (text, images) cost it next to nothing.
"""

from __future__ import annotations

import re

MAX_VALUES = 500_000
"""Far more than any conversation has. Python parses so many in a quarter of a second at most."""
_PORTION = 1 << 22  # bytes that are looked at in one go
_STARTS = (b",", b"[", b"{")
# A string to its end (or the text's), or what a value starts behind. It always matches where a quotation mark stands,
# so that no byte is read twice. Escapes are taken out before: to skip them, a pattern would keep a note of each.
_TOKEN = re.compile(rb'"[^"]*"?|[,\[{]')


def has_too_many_values(raw: bytes, limit: int = MAX_VALUES) -> bool:
    """Whether the text holds more than about `limit` values."""
    if len(raw) <= limit:
        return False
    portions = range(0, len(raw), _PORTION)
    if sum(raw.count(start, at, at + _PORTION) for at in portions for start in _STARTS) <= limit:
        return False  # even if none of them is within a string
    count = 0
    for token in _TOKEN.finditer(raw.replace(rb"\\", b"").replace(rb"\"", b"")):
        count += token[0] in _STARTS
        if count > limit:
            return True
    return False
