"""What JSON costs Python to parse, and the bounds on it: values, escapes, digits, and the memory they take. Pure.

Python's parser does not let other threads run before it is done: four seconds for a text of 64 MB that is nothing but
small objects, in which no other request is answered. Long strings (text, images) cost it much less.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from systemd_llm_switch.quoting import quoted

_MOST_DIGITS = 1000  # of a number: three times as many as the largest float has
_MOST_SHOWN_DIGITS = 40
MAX_VALUES = 500_000
"""Far more than any conversation has. Python parses so many in about a tenth of a second."""
MAX_BACKSLASHES = 4_000_000
"""In strings. Python reads so many escapes in some 40 ms."""
# Bytes that are looked at in one go: for characters, and for whole strings, which takes longer.
_GLANCE = 1 << 22
_PORTION = 1 << 17
# What a value starts behind. A member of an object counts as five values, and a list as two: Python takes that much
# longer, for the key, and for the garbage collector.
_COSTS = {b",": 1, b"[": 2, b"{": 1, b":": 4}
_FEW_VALUES = 20_000
_SOME_VALUES = 100_000  # not counted exactly: that takes three times as long as to parse the text
_BYTES_A_VALUE = 64
_STRING = re.compile(rb'"[^"]*"')  # where escapes were taken out before


def bounded_int(digits: str) -> int:
    """The `parse_int` of a decoder. Python's time to read a number grows with the square of its digits: 64 MB of long
    ones would take three seconds.

    Raises:
        ValueError: it is too long.
    """
    if len(digits) > _MOST_DIGITS:
        raise _too_large(digits)
    return int(digits)


def bounded_float(digits: str) -> float:
    """The `parse_float` of a decoder: a number that a backend can read. Python would read 1e999 as infinity, and write
    it as `Infinity`.

    Raises:
        ValueError: it is too long or too large.
    """
    if len(digits) > _MOST_DIGITS or math.isinf(number := float(digits)):
        raise _too_large(digits)
    return number


def _too_large(digits: str) -> ValueError:
    return ValueError(f"the number {quoted(digits, _MOST_SHOWN_DIGITS)} is too large")


def has_too_many_values(raw: bytes, limit: int = MAX_VALUES) -> bool:
    """Whether the text holds more than about `limit` values."""
    # In sound JSON a value takes a byte at least, and a member about five; Python stops where it is not sound.
    return len(raw) > limit and _at_most(raw) > limit and _count(raw, limit) > limit


def has_too_many_backslashes(raw: bytes) -> bool:
    """Whether the text holds more than MAX_BACKSLASHES."""
    return len(raw) > 2 * MAX_BACKSLASHES and _occurrences(raw, b"\\") > MAX_BACKSLASHES


def parsed_bytes(raw: bytes) -> int:
    """About how much memory the values of a text take once they are parsed, beyond the text; 0 if that is little. `[],`
    becomes a list of 56 bytes."""
    most = _at_most(raw)
    if most <= _FEW_VALUES:
        return 0
    return (most if most <= _SOME_VALUES else _count(raw, MAX_VALUES)) * _BYTES_A_VALUE


def _at_most(raw: bytes) -> int:
    """The count if nothing of the text were within a string."""
    return sum(cost * _occurrences(raw, start) for start, cost in _COSTS.items())


def _occurrences(raw: bytes, character: bytes) -> int:
    return sum(raw.count(character, at, at + _GLANCE) for at in range(0, len(raw), _GLANCE))


def _count(raw: bytes, limit: int) -> int:
    """The count; it ends when it exceeds the limit."""
    count = 0
    for portion in _outside_of_strings(raw):
        count += sum(cost * portion.count(start) for start, cost in _COSTS.items())
        if count > limit:
            break
    return count


def _outside_of_strings(raw: bytes) -> Iterator[bytes]:
    """The text without its strings, portion by portion. No byte is read twice."""
    is_in_string = False
    for portion in _without_escapes(raw):
        if is_in_string:
            _, quote, portion = portion.partition(b'"')
            is_in_string = not quote
        rest, quote, _ = _STRING.sub(b"", portion).partition(b'"')
        is_in_string = is_in_string or bool(quote)
        yield rest


def _without_escapes(raw: bytes) -> Iterator[bytes]:
    """The text without escaped backslashes and quotation marks, portion by portion."""
    held = b""
    for at in range(0, len(raw), _PORTION):
        portion = held + raw[at : at + _PORTION]
        backslashes = len(portion) - len(portion.rstrip(b"\\"))
        held = b"\\" if backslashes % 2 else b""  # it escapes what comes next
        yield portion.removesuffix(held).replace(rb"\\", b"").replace(rb"\"", b"")
