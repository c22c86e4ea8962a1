"""The journal lines of one start of a unit, read with journalctl(1)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from systemd_llm_switch.systemd.programs import ProgramError, run
from systemd_llm_switch.systemd.unit import MainProcess

_TIMEOUT_S = 5.0
_ENTRIES = 30  # entries to read, so that enough are left after the dull ones are dropped
_LINES = 12
_DULL_LINES = ("Starting ", "Started ", "Stopping ", "Stopped ")  # the manager writes these for every unit
_TOO_LONG = "(a line of more than 4096 bytes)"
# journald reads a line a moment after it was written, so the last lines of a process that has just ended may be missing
# yet.
_ARRIVAL_TIMEOUT_S = 1.0
_ARRIVAL_STEP_S = 0.05
_CLOCK_SLACK_S = 1.0


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The last lines of a start, from the program and from the manager. `has_words` says whether the program wrote any.
    If not, it was silent or the journal could not be read."""

    lines: tuple[str, ...] = ()
    has_words: bool = False


def read(process: MainProcess, *, has_ended: bool = False) -> Excerpt:
    """The last lines of one start. Blocks; never raises: if the journal cannot be read, the only line says so.

    With `has_ended`, waits up to a second for the process's own lines and for the manager's line about its exit.
    """
    if not process.invocation_id:
        return Excerpt()
    deadline = time.monotonic() + _ARRIVAL_TIMEOUT_S
    while True:
        try:
            entries = _entries(run(*_command(process), timeout_s=_TIMEOUT_S))
        except ProgramError as error:
            return Excerpt((f"(the journal cannot be read: {error})",))
        has_words = any(pid == process.pid for pid, _ in entries)
        is_complete = has_words and any(pid != process.pid and "exited" in text for pid, text in entries)
        if is_complete or not (has_ended and process.pid) or time.monotonic() >= deadline:
            return Excerpt(_lines(entries), has_words)
        time.sleep(_ARRIVAL_STEP_S)


def _command(process: MainProcess) -> list[str]:
    """Finds the lines of the program and of the manager by the start's id. If a process ends before journald looks at
    it, its lines have no id and no unit, but always the pid. The time excludes older processes with the same pid."""
    match = [f"_SYSTEMD_INVOCATION_ID={process.invocation_id}", "+", f"USER_INVOCATION_ID={process.invocation_id}"]
    if process.pid and process.started_at:
        match += ["+", f"_PID={process.pid}", f"--since=@{process.started_at - _CLOCK_SLACK_S:.6f}"]
    # With --since, -n alone would count from the oldest.
    return ["journalctl", "--quiet", "--no-pager", "-r", "-n", str(_ENTRIES), "-o", "json",
            "--output-fields=MESSAGE,_PID", *match]  # fmt: skip


def _entries(output: str) -> list[tuple[int, str]]:
    """Each entry's pid and text, the oldest first. A line that is not an entry is an error message of journalctl."""
    entries = []
    # Not `splitlines`: a message may hold other separators, unescaped.
    for line in filter(None, reversed(output.split("\n"))):
        try:
            fields = json.loads(line)
            pid, message = int(fields.get("_PID", 0)), fields.get("MESSAGE")
        except (ValueError, TypeError, AttributeError):
            pid, message = 0, f"(journalctl: {line})"
        if isinstance(message, list):  # bytes that are not UTF-8, or not printable
            message = bytes(it for it in message if isinstance(it, int) and 0 <= it < 256).decode("utf-8", "replace")
        entries.append((pid, message if isinstance(message, str) else _TOO_LONG))
    return entries


def _lines(entries: list[tuple[int, str]]) -> tuple[str, ...]:
    stripped = (line.strip() for _, text in entries for line in text.splitlines())
    return tuple(line for line in stripped if line and not line.startswith(_DULL_LINES))[-_LINES:]
