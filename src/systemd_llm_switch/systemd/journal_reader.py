"""Journal lines of units, for people to read: the last ones, or new ones as they come. Runs journalctl(1).

This module is for watching; `journal` is for the reason of one failed start.
"""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

from systemd_llm_switch.quoting import printable
from systemd_llm_switch.systemd.programs import Process, ProgramError, run, start
from systemd_llm_switch.waiting import Client

_FIELDS = "MESSAGE,_SYSTEMD_USER_UNIT,USER_UNIT,PRIORITY"
_TIMEOUT_S = 5.0
_AGAIN_S = 1.0  # between the end of a journalctl that nobody asked to end, and the next one
_MOST_OUTPUT_BYTES = 16 << 20
_MOST_MESSAGE_CHARACTERS = 2000
_PIECE_BYTES = 1 << 16
_NOBODY = Client(None)


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
    """Reads lines as they come, in its own thread, until `close`. If journalctl ends by itself, another one follows.
    Only that thread knows the process, so `close` need not know which one runs."""

    def __init__(self, units: Sequence[str], count: int, on_line: Callable[[Line], None]) -> None:
        """Begins with the last `count` lines.

        Raises:
            JournalError
        """
        self._units = units
        self._on_line = on_line
        with ExitStack() as undo:
            try:
                self._over = os.eventfd(0, os.EFD_CLOEXEC)  # readable after `close`
                undo.callback(os.close, self._over)
                process = undo.enter_context(start(*_command(units, count), "--follow"))
                undo.callback(process.kill)
                self._thread = threading.Thread(target=self._read, args=(process,), name="journal", daemon=True)
                self._thread.start()
            except ProgramError as error:
                raise JournalError(f"the journal cannot be read: {error}") from error
            except OSError as error:
                raise JournalError(f"the journal cannot be followed: {error.strerror}") from error
            except RuntimeError as error:
                raise JournalError("the journal cannot be followed: the kernel refused a thread") from error
            undo.pop_all()

    def close(self) -> None:
        """Ends the reading; `on_line` is not called afterwards. Called once, by another thread than `on_line` is."""
        os.eventfd_write(self._over, 1)
        self._thread.join()
        os.close(self._over)

    def _read(self, process: Process | None) -> None:
        while process is not None:
            with process:
                try:
                    for line in _parse(self._lines(process)):
                        self._on_line(line)
                finally:
                    process.kill()
            process = self._start_again()

    def _lines(self, process: Process) -> Iterator[bytes]:
        """What it writes, until it ends or `close` is called."""
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        poll.register(self._over, select.POLLIN)
        rest = b""
        while self._over not in dict(poll.poll()):
            data = os.read(pipe, _PIECE_BYTES)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from lines

    def _start_again(self) -> Process | None:
        """Another journalctl, after a moment; None after `close`."""
        while not _NOBODY.wait_readable(self._over, _AGAIN_S):
            with suppress(ProgramError):
                return start(*_command(self._units, 0), "--follow")
        return None


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
