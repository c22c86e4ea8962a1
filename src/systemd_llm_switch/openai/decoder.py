"""JSON from bytes. What has so many values or escapes that it would hold up every other request is refused before it
is parsed. Pure."""

from __future__ import annotations

import json
from typing import Any

from systemd_llm_switch.openai.json_cost import (
    MAX_BACKSLASHES,
    MAX_VALUES,
    has_too_many_backslashes,
    has_too_many_values,
)

_PIECE_BYTES = 1 << 16
_BLANKS = b" \t\n\r"


class TooLarge(ValueError):
    """To parse it would take too long."""


class Decoder:
    """Thread-safe. `rules` are the arguments of `json.JSONDecoder`."""

    def __init__(self, **rules: Any) -> None:
        self._decoder = json.JSONDecoder(**rules)

    def decode(self, raw: bytes, most_values: int = MAX_VALUES, errors: str = "strict") -> Any:
        """`errors` is what is done with bytes that are not UTF-8 (`bytes.decode`).

        Raises:
            TooLarge: it holds more than `most_values`, or too many backslashes (`json_cost`).
            ValueError: it is not JSON.
            RecursionError: it is nested too deeply.
        """
        if has_too_many_values(raw, most_values):
            raise TooLarge(
                f"it holds more than {most_values} values (a member of an object counts as five, a list as two)"
            )
        if has_too_many_backslashes(raw):
            raise TooLarge(f"it holds more than {MAX_BACKSLASHES} backslashes")
        # Given bytes, Python would also read UTF-16 and UTF-32, which backends do not.
        return self._decoder.decode(_without_blanks(raw).decode("utf-8", errors))


def _without_blanks(raw: bytes) -> bytes:
    """The same without the white space around it, if that is much: Python's decoder skips it with a pattern, which
    takes half a second for 64 MB."""
    start, end = 0, len(raw)
    while _is_blank(raw[start : start + _PIECE_BYTES]):
        start += _PIECE_BYTES
    while start < end and _is_blank(raw[max(start, end - _PIECE_BYTES) : end]):
        end -= _PIECE_BYTES
    return raw if end - start == len(raw) else raw[start : max(start, end)]


def _is_blank(piece: bytes) -> bool:
    return piece.isspace() and not piece.translate(None, _BLANKS)
