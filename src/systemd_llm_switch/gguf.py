"""The header of a GGUF file: its metadata, and where its tensors are. The file may contain anything, so each size and
count is checked before it is used.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from systemd_llm_switch.quoting import printable

Value = int | float | bool | str | tuple[int | float | bool, ...]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_KEYS = 10_000
_MOST_TENSORS = 200_000
_MOST_NAME_BYTES = 1000
_MOST_ELEMENTS = 5_000_000  # of all arrays; the largest vocabularies have a tenth
_MOST_TEXT_BYTES = 2000  # of a value that is kept; a chat template is cut
_MOST_KEPT_NUMBERS = 2000  # of an array that is kept: one number a layer
_MOST_DIMENSIONS = 8
_MOST_DEPTH = 4  # of arrays in arrays
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
# Tensor types (ggml.h): the weights of a block, and its bytes. A newer type is missing here and is not checked.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 16: (256, 66), 17: (256, 74), 18: (256, 98),
    19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4),
    27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


class NotGguf(Exception):
    """The file is not a whole GGUF file. The message names it, and says what is wrong."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its name, the bytes that it takes in the file, and how many weights it has."""

    name: str
    size: int
    weights: int


@dataclass(frozen=True, slots=True)
class Header:
    """A file's metadata and tensors. Long strings are cut; long arrays and arrays of strings are left out."""

    values: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    file_size: int


def read_header(path: Path) -> Header:
    """Reads the head of the file. Does not block on a FIFO or a device.

    Raises:
        NotGguf
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(descriptor, "rb", buffering=1 << 20) as file:  # noqa: PTH123  (a descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotGguf(f"{printable(str(path))} is not a regular file")
            return _Reader(file, os.fstat(descriptor).st_size).header()
    except _Broken as error:
        raise NotGguf(f"{printable(str(path))} is not a whole GGUF file: {error}") from error
    except OSError as error:
        raise NotGguf(f"cannot read {printable(str(path))}: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise NotGguf(f"{printable(str(path))} is not a valid path") from error


class _Broken(Exception):
    """What is wrong with the file."""


class _Reader:
    """Reads a file forwards. Never reads beyond its end, and checks each count before it allocates anything."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._at = 0
        self._elements = 0

    def header(self) -> Header:
        if self._size == 0:
            raise _Broken("it is empty")
        if self._take(min(4, self._size)) != _MAGIC:
            raise _Broken("it does not begin with GGUF")
        version = self._number("I")
        if version not in _VERSIONS:
            raise _Broken(f"version {version} of the format is unknown")
        tensors, keys = self._count("Q", _MOST_TENSORS, "tensors"), self._count("Q", _MOST_KEYS, "keys")
        values: dict[str, Value] = {}
        for _ in range(keys):
            name = self._text(_MOST_NAME_BYTES, "the name of a key")
            value = self._value(self._number("I"))
            if value is not None:
                values[name] = value
        return Header(values, self._tensors(tensors, values), self._size)

    def _tensors(self, count: int, values: Mapping[str, Value]) -> tuple[Tensor, ...]:
        """The tensors, each with the bytes from its beginning to that of the next one."""
        places = sorted(self._tensor() for _ in range(count))
        align = values.get("general.alignment", 32)
        if not isinstance(align, int) or not 0 < align <= 1 << 20:
            raise _Broken("its alignment is not valid")
        begin = -(-self._at // align) * align
        ends = [*(place[0] for place in places[1:]), self._size - begin]
        for (offset, _, needed, _), end in zip(places, ends, strict=True):
            if offset + needed > min(end, self._size - begin):
                raise _Broken(f"it ends before its data do ({self._size} bytes); download it again")
        return tuple(
            Tensor(name, end - offset, weights) for (offset, name, _, weights), end in zip(places, ends, strict=True)
        )

    def _tensor(self) -> tuple[int, str, int, int]:
        """One tensor: its place in the data, its name, the fewest bytes that it needs, and its weights."""
        name = self._text(_MOST_NAME_BYTES, "the name of a tensor")
        weights = 1
        for _ in range(self._count("I", _MOST_DIMENSIONS, "dimensions")):
            weights *= self._number("Q")
        per_block, size = _BLOCKS.get(self._number("I"), (1, 0))
        return self._number("Q"), name, weights // per_block * size, weights

    def _value(self, kind: int) -> Value | None:
        if kind == _STRING:
            return self._text(self._size, "a value", keep=_MOST_TEXT_BYTES)
        if kind == _ARRAY:
            return self._array(1)
        if kind in _NUMBERS:
            value: Value = struct.unpack(f"<{_NUMBERS[kind]}", self._take(_width(kind)))[0]
            return value
        raise _Broken(f"a value has the unknown type {kind}")

    def _array(self, depth: int) -> Value | None:
        """The numbers of a short array; others are skipped."""
        kind, count = self._number("I"), self._count("Q", _MOST_ELEMENTS, "elements")
        self._elements += count
        if self._elements > _MOST_ELEMENTS or depth > _MOST_DEPTH:
            raise _Broken("its arrays are too large")
        if kind in _NUMBERS:
            size = count * _width(kind)
            if count > _MOST_KEPT_NUMBERS:
                self._skip(size)
                return None
            return struct.unpack(f"<{count}{_NUMBERS[kind]}", self._take(size))
        if kind not in (_STRING, _ARRAY):
            raise _Broken(f"an array has the unknown type {kind}")
        for _ in range(count):
            if kind == _STRING:
                self._skip(self._number("Q"))
            else:
                self._array(depth + 1)
        return None

    def _text(self, most: int, what: str, keep: int = _MOST_NAME_BYTES) -> str:
        size = self._count("Q", most, f"bytes in {what}")
        text = self._take(min(size, keep)).decode(errors="replace")
        self._skip(size - min(size, keep))
        return text

    def _count(self, letter: str, most: int, what: str) -> int:
        count = self._number(letter)
        if count > most:
            raise _Broken(f"it says that it has {count} {what}")
        return count

    def _number(self, letter: str) -> int:
        number: int = struct.unpack(f"<{letter}", self._take(struct.calcsize(f"<{letter}")))[0]
        return number

    def _take(self, size: int) -> bytes:
        self._check(size)
        taken = self._file.read(size)
        if len(taken) != size:
            raise _Broken("it became shorter while it was read")
        return taken

    def _skip(self, size: int) -> None:
        self._check(size)
        self._file.seek(size, os.SEEK_CUR)

    def _check(self, size: int) -> None:
        self._at += size
        if self._at > self._size:
            raise _Broken(f"it ends before its header does ({self._size} bytes); download it again")


def _width(kind: int) -> int:
    return struct.calcsize(f"<{_NUMBERS[kind]}")
