"""Journal lines of units, for people to read: the last ones, or new ones as they come. Runs journalctl(1).

This module is for watching; `journal` is for the reason of one failed start.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from systemd_llm_switch.quoting import printable
from systemd_llm_switch.systemd.programs import ProgramError, run, start

_FIELDS = "MESSAGE,_SYSTEMD_USER_UNIT,USER_UNIT,PRIORITY"
_TIMEOUT_S = 5.0
_AGAIN_S = 1.0  # between the end of a journalctl that nobody asked to end, and the next one
_MOST_OUTPUT_BYTES = 16 << 20
_MOST_MESSAGE_CHARACTERS = 2000


class JournalError(Exception):
    """The journal cannot be read; the message says why."""


class Line(NamedTuple):
    """One entry. `at` is seconds since the epoch, `priority` as in syslog(3)."""

    at: float
    unit: str
    priority: int
    message: str


def last_lines(units: Sequence[str], count: int) -> list[Line]:
    """The last lines of all of them together, the oldest first. Blocks.

    Raises:
        JournalError
    """
    try:
        written = run(*_command(units, count), timeout_s=_TIMEOUT_S, most_bytes=_MOST_OUTPUT_BYTES)
    except ProgramError as error:
        raise JournalError(f"the journal cannot be read: {error}") from error
    lines = written.strip().split("\n")  # not `splitlines`: a message may hold other separators, unescaped
    found = list(_parse(lines))
    complaints = [line for line in lines if line and not line.startswith("{")]
    if complaints and not found:
        raise JournalError(f"the journal cannot be read: {printable(complaints[-1])}")
    return found


class Follower:
    """Reads lines as they come, in its own thread, until `close`. If journalctl ends by itself, another one follows."""

    def __init__(self, units: Sequence[str], count: int, on_line: Callable[[Line], None]) -> None:
        """Begins with the last `count` lines.

        Raises:
            JournalError
        """
        self._units = units
        self._on_line = on_line
        self._is_over = threading.Event()
        self._lock = threading.Lock()  # of `_process`
        try:
            self._process = start(*_command(units, count), "--follow")
        except ProgramError as error:
            raise JournalError(f"the journal cannot be read: {error}") from error
        self._thread = threading.Thread(target=self._read, name="journal", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._process.kill()
            self._process.wait()
            raise JournalError("the journal cannot be followed: the kernel refused a thread") from error

    def close(self) -> None:
        """Ends the reading; `on_line` is not called afterwards. Idempotent."""
        self._is_over.set()
        with self._lock:
            self._process.kill()
        self._process.wait()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _read(self) -> None:
        while True:
            with self._process.stdout as lines:  # type: ignore[union-attr]  # it is a pipe
                for line in _parse(lines):
                    self._on_line(line)
            self._process.wait()
            while not self._is_over.wait(_AGAIN_S):
                if self._start_again():
                    break
            else:
                return

    def _start_again(self) -> bool:
        """Whether another journalctl runs."""
        with self._lock:
            if self._is_over.is_set():
                return False
            try:
                self._process = start(*_command(self._units, 0), "--follow")
            except ProgramError:
                return False
            return True


def _command(units: Sequence[str], count: int) -> list[str]:
    chosen = [f"--user-unit={unit}" for unit in units]
    return [
        "journalctl",
        "--quiet",
        "--no-pager",
        "-o",
        "json",
        f"--output-fields={_FIELDS}",
        "-n",
        str(count),
        *chosen,
    ]


def _parse(lines: Iterable[bytes] | Iterable[str]) -> Iterator[Line]:
    """Reads journalctl's JSON (systemd.journal-fields(7)). A message that is longer than 4 kB or is not text is not a
    string there, and is left out."""
    for line in lines:
        try:
            fields = json.loads(line)
            unit = fields.get("USER_UNIT") or fields.get("_SYSTEMD_USER_UNIT") or ""
            at, priority = int(fields["__REALTIME_TIMESTAMP"]) / 1e6, int(fields.get("PRIORITY", 6))
            message = fields["MESSAGE"]
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if isinstance(message, str) and isinstance(unit, str):
            yield Line(at, unit, priority, message[:_MOST_MESSAGE_CHARACTERS])
