"""The saved contexts of one folder: lists them, adds one in two steps, removes them.

A context counts only once it is complete: it is saved under another name, checked, renamed, and described by a small
file beside it. The next `scan` removes incomplete files that a kill or a full disk has left.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from systemd_llm_switch.contexts.entry import (
    CONTEXT,
    FACTS,
    PREFIX,
    UNFINISHED,
    USELESS,
    Entry,
    FileMark,
    parse_entry,
)
from systemd_llm_switch.contexts.folder import Folder

log = logging.getLogger(__name__)

_LONGEST_REASON = 500  # characters
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Store:
    """Thread-safe. Methods that touch the disk block for it, and may raise OSError; `entries` does neither."""

    def __init__(self, path: Path) -> None:
        self.folder = Folder(path)
        self.boot = _BOOT_ID.read_text(encoding="ascii").strip()
        self._lock = threading.Lock()
        self._unfinished: set[str] = set()
        self.entries: tuple[Entry, ...] = ()  # least recently used first
        self.useless: dict[str, str] = {}  # by binding: why

    def scan(self, oldest: float) -> None:
        """Reads the folder again. Removes incomplete contexts, those from before the machine last started (they may not
        have reached the disk), and those that were not used since `oldest` (seconds since the epoch)."""
        with self._lock:
            names = self.folder.names()
            found = {name.removeprefix(PREFIX).partition(".")[0] for name in names}
            entries = [entry for key in found if (entry := self._read(key)) is not None]
            good = [entry for entry in entries if self._is_whole(entry) and entry.used_at >= oldest]
            keep = {name for entry in good for name in (entry.context_name, entry.facts_name)}
            keep |= {f"{PREFIX}{key}{UNFINISHED}" for key in self._unfinished}
            for name in names:
                if name not in keep and not name.endswith(USELESS):
                    self._remove(name)
            self.useless = self._read_useless(name for name in names if name.endswith(USELESS))
            self._set(good)

    def begin(self) -> str:
        """The key of a context that is about to be saved, under `unfinished_name`; `finish` or `abandon` follows."""
        key = secrets.token_hex(8)
        with self._lock:
            self._unfinished.add(key)
        return key

    @staticmethod
    def unfinished_name(key: str) -> str:
        return f"{PREFIX}{key}{UNFINISHED}"

    def finish(self, key: str, size: int, describe: Callable[[FileMark], Entry]) -> Entry:
        """Adds a saved context, whose file must have this size.

        Raises:
            ValueError: the file is not there, or was cut.
        """
        name = self.unfinished_name(key)
        with self._lock:
            mark = self.folder.mark(name)
            if mark is None:
                raise ValueError(f"the backend left no file in {self.folder.path}; does the unit see the same folder?")
            if size <= 0 or mark.size != size:
                raise ValueError(f"the file has {mark.size} bytes instead of {size}; is the disk full?")
            self.folder.make_private_file(name)
            entry = describe(mark)
            self.folder.rename(name, entry.context_name)
            self.folder.write(entry.facts_name, entry.as_text())
            self._unfinished.discard(key)
            self._set([*self.entries, entry])
            return entry

    def abandon(self, key: str) -> None:
        """Removes what was written of an unfinished context. Never raises."""
        with self._lock:
            self._unfinished.discard(key)
            for suffix in (UNFINISHED, FACTS, CONTEXT):
                with contextlib.suppress(OSError):
                    self._remove(f"{PREFIX}{key}{suffix}")

    def is_whole(self, entry: Entry) -> bool:
        """Whether an entry's file is still the one that was saved."""
        return self._is_whole(entry)

    def note_used(self, entry: Entry, at: float) -> None:
        """The context was read back, so it is now the most recently used one."""
        with self._lock:
            if entry in self.entries:
                self.folder.touch(entry.facts_name, at)
                self._set([it.used(at) if it == entry else it for it in self.entries])

    def drop(self, entries: Iterable[Entry]) -> int:
        """Removes contexts; returns the bytes freed."""
        gone = list(entries)
        with self._lock:
            self._set([entry for entry in self.entries if entry not in gone])
            size = 0
            for entry in gone:
                size += self._remove(entry.context_name)
                self._remove(entry.facts_name)
            return size

    def note_useless(self, unit: str, binding: str, reason: str) -> None:
        """Remembers that restoring is of no use to a unit as it is."""
        with self._lock:
            self.useless = {**self.useless, binding: reason}
            self.folder.write(f"{PREFIX}{binding}{USELESS}", json.dumps({"unit": unit, "reason": reason}))

    def forget_useless(self, unit: str, binding: str | None) -> None:
        """Forgets that for a unit, except for this binding."""
        with self._lock:
            for name in self.folder.names():
                if not name.endswith(USELESS) or name == f"{PREFIX}{binding}{USELESS}":
                    continue
                if (known := self._read_verdict(name)) is not None and known[0] == unit:
                    self._remove(name)
                    key = name.removeprefix(PREFIX).removesuffix(USELESS)
                    self.useless = {it: why for it, why in self.useless.items() if it != key}

    def _read(self, key: str) -> Entry | None:
        try:
            text, used_at = self.folder.read(f"{PREFIX}{key}{FACTS}")
            return parse_entry(key, text, used_at)
        except (OSError, ValueError):
            return None

    def _read_useless(self, names: Iterable[str]) -> dict[str, str]:
        found = {}
        for name in names:
            if (known := self._read_verdict(name)) is not None:
                found[name.removeprefix(PREFIX).removesuffix(USELESS)] = known[1][:_LONGEST_REASON]
        return found

    def _read_verdict(self, name: str) -> tuple[str, str] | None:
        """The unit and the reason in a file of `note_useless`; None if it is something else."""
        try:
            value = json.loads(self.folder.read(name)[0])
            return str(value["unit"]), str(value["reason"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def _is_whole(self, entry: Entry) -> bool:
        return entry.boot == self.boot and self.folder.mark(entry.context_name) == entry.mark

    def _remove(self, name: str) -> int:
        return self.folder.remove(name)

    def _set(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: entry.used_at))
