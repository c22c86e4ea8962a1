"""Large values, written as JSON piece by piece. Pure.

Python's own encoder does not let other threads run before it is done: more than a second for a text of 60 MB. Such
bodies are few long strings (text, images), so each of these is written in pieces.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from json.encoder import encode_basestring_ascii
from typing import Any

from systemd_llm_switch.openai.shapes import dump

_LARGE_BYTES = 1 << 20  # from here on, to write a value in pieces is worth the work
_PIECE_CHARACTERS = 1 << 18


def dump_like(raw: bytes, value: Any) -> bytes:
    """The same bytes as `dump` makes, of a value that is about as large as these bytes."""
    return dump(value) if len(raw) < _LARGE_BYTES else dump_large(value)


def dump_large(value: Any) -> bytes:
    """The same bytes as `dump` makes."""
    mark = f"long string {secrets.token_hex(16)}"  # nobody can know it, and so have it in a string of their own
    long: list[str] = []
    around = dump(_shortened(value, mark, long)).split(b'"%b"' % mark.encode("ascii"))
    written = [around[0]]
    for text, rest in zip(long, around[1:], strict=True):
        written += (b'"', *_pieces(text), b'"', rest)
    return b"".join(written)


def _shortened(value: Any, mark: str, long: list[str]) -> Any:
    """The value with the mark in place of each long string, which is added to `long`."""
    if isinstance(value, str) and len(value) > _PIECE_CHARACTERS:
        long.append(value)
        return mark
    if isinstance(value, dict):
        return {name: _shortened(part, mark, long) for name, part in value.items()}
    if isinstance(value, list):
        return [_shortened(part, mark, long) for part in value]
    return value


def _pieces(text: str) -> Iterator[bytes]:
    """A string as JSON, without its quotation marks. No character changes another one, so it may be cut anywhere."""
    for at in range(0, len(text), _PIECE_CHARACTERS):
        yield encode_basestring_ascii(text[at : at + _PIECE_CHARACTERS])[1:-1].encode("ascii")
