"""One saved context: the facts about its file, and the small file beside it that holds them. Pure."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from typing import Any

from systemd_llm_switch.contexts.fingerprint import Fingerprint

PREFIX = "llm-switch-"
CONTEXT, FACTS, UNFINISHED, USELESS = ".ctx", ".json", ".part", ".useless"
# Only names of this form are ours. Nothing else in a folder is read or removed.
OURS = re.compile(r"llm-switch-[0-9a-f]{16}(?:\.ctx|\.json|\.part|\.useless)")
_VERSION = 1
_MOST = 2**62  # tokens, bytes, seconds; we never write a larger number


@dataclass(frozen=True, slots=True)
class FileMark:
    """Identifies a file, to check that it is still the one that was saved."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A context on the disk. `read_s` is how long the model needed to read it; `used_at` is seconds since the epoch."""

    key: str
    unit: str
    binding: str
    boot: str
    tokens: int
    read_s: float
    fingerprint: Fingerprint
    mark: FileMark
    used_at: float

    @property
    def context_name(self) -> str:
        return f"{PREFIX}{self.key}{CONTEXT}"

    @property
    def facts_name(self) -> str:
        return f"{PREFIX}{self.key}{FACTS}"

    @property
    def size(self) -> int:
        return self.mark.size

    def reusable(self, wanted: Fingerprint) -> int:
        """An estimate of how many of its tokens a request with that beginning can use."""
        whole = max(self.fingerprint.size, 1)
        return int(self.tokens * min(1.0, self.fingerprint.common(wanted) / whole))

    def used(self, at: float) -> Entry:
        return replace(self, used_at=at)

    def as_text(self) -> str:
        """For the file beside it, whose modification time says when the context was last used."""
        mark = [self.mark.size, self.mark.mtime_ns, self.mark.inode]
        value = {
            "version": _VERSION, "unit": self.unit, "binding": self.binding, "boot": self.boot, "tokens": self.tokens,
            "read_s": self.read_s, "size": self.fingerprint.size, "marks": self.fingerprint.as_text(), "file": mark,
        }  # fmt: skip
        return json.dumps(value)


def parse_entry(key: str, text: str, used_at: float) -> Entry:
    """Reads what `as_text` wrote.

    Raises:
        ValueError: the text is something else.
    """
    try:
        value: Any = json.loads(text)
        if value["version"] != _VERSION:
            raise ValueError("another version")
        size, mtime_ns, inode = map(_count, value["file"])
        known = Fingerprint.of_text(str(value["marks"]), _count(value["size"]))
        return Entry(
            key=key,
            unit=str(value["unit"]),
            binding=str(value["binding"]),
            boot=str(value["boot"]),
            tokens=_count(value["tokens"]),
            read_s=_seconds(value["read_s"]),
            fingerprint=known,
            mark=FileMark(size, mtime_ns, inode),
            used_at=used_at,
        )
    except (KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not the facts of a context: {error!r}") from error


def _count(value: Any) -> int:
    """
    Raises:
        ValueError: not a number that we write.
    """
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError("not a count")
    return value


def _seconds(value: Any) -> float:
    """
    Raises:
        ValueError: not a number that we write.
    """
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= _MOST:
        raise ValueError("not a time")
    return float(value)
