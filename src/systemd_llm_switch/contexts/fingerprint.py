"""The beginning of a conversation as a short list of hashes. Pure.

Two requests that share a beginning share the first hashes. The text itself is not kept, and cannot be read back.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

STRIDE = 512  # characters a hash; about 128 tokens
_MARK_BYTES = 8
_MOST_CHARACTERS = 4_000_000
# First the fields that a chat template or llama-server puts before the conversation, then the conversation itself.
_HEAD_FIELDS = ("tools", "chat_template_kwargs", "system", "instructions")
_BODY_FIELDS = ("messages", "prompt", "input")


class Fingerprint(NamedTuple):
    """`marks` has one hash for each whole stride from the beginning; `size` is the whole length in characters."""

    marks: tuple[bytes, ...] = ()
    size: int = 0

    def common(self, other: Fingerprint) -> int:
        """How many characters two conversations share from their beginning, in whole strides."""
        for count, (mine, theirs) in enumerate(zip(self.marks, other.marks, strict=False)):
            if mine != theirs:
                return count * STRIDE
        return min(len(self.marks), len(other.marks)) * STRIDE

    def as_text(self) -> str:
        """For a file."""
        return base64.b64encode(b"".join(self.marks)).decode("ascii")

    @classmethod
    def of_text(cls, text: str, size: int) -> Fingerprint:
        """Reads what `as_text` wrote.

        Raises:
            ValueError: the text is something else.
        """
        data = base64.b64decode(text, validate=True)
        if len(data) % _MARK_BYTES or not len(data) // _MARK_BYTES * STRIDE <= size:
            raise ValueError("not a fingerprint")
        return cls(tuple(data[at : at + _MARK_BYTES] for at in range(0, len(data), _MARK_BYTES)), size)


NOTHING = Fingerprint()


def fingerprint(body: Mapping[str, object]) -> Fingerprint:
    """The fingerprint of a request's body. Takes about 3 ms for each million characters, and reads no more than four
    million. Never raises: an unreadable body has the fingerprint NOTHING."""
    try:
        text = "".join(_bounded(_pieces(body)))
    except (RecursionError, TypeError, ValueError):
        return NOTHING
    digest = hashlib.blake2b(digest_size=_MARK_BYTES)
    marks = []
    for at in range(0, len(text) - STRIDE + 1, STRIDE):
        digest.update(text[at : at + STRIDE].encode("ascii"))
        marks.append(digest.digest())
    return Fingerprint(tuple(marks), len(text))


def _pieces(body: Mapping[str, object]) -> Iterator[str]:
    for name in _HEAD_FIELDS:
        if body.get(name):
            yield _dump(body[name])
    for name in _BODY_FIELDS:
        value = body.get(name)
        if isinstance(value, list):
            for item in value:
                yield _dump(item)
        elif value is not None:
            yield _dump(value)


def _bounded(pieces: Iterator[str]) -> Iterator[str]:
    left = _MOST_CHARACTERS
    for piece in pieces:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
