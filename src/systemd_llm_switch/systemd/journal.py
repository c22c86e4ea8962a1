"""What a unit's start left in the journal: the only module that runs a program (journalctl(1))."""

from __future__ import annotations

import subprocess

_TIMEOUT_S = 5.0
_DULL_LINES = ("Starting ", "Started ", "Stopping ", "Stopped ")  # the manager's own, in every journal


class JournalError(Exception):
    """The journal cannot be read; the message says why."""


def last_lines(invocation_id: str, count: int = 12) -> list[str]:
    """The last lines of one start of a unit, the program's own and the manager's. Blocks; never raises: where the
    journal cannot be read, the only line says so."""
    if not invocation_id:
        return []
    match = [f"_SYSTEMD_INVOCATION_ID={invocation_id}", "+", f"USER_INVOCATION_ID={invocation_id}"]
    command = ["journalctl", "--quiet", "--no-pager", "-o", "cat", "-n", str(count), *match]
    try:
        done = _run(command)
    except JournalError as error:
        return [f"(the journal cannot be read: {error})"]
    stripped = (line.strip() for line in done.stdout.splitlines())
    found = [line for line in stripped if line and not line.startswith(_DULL_LINES)]
    if not found and done.stderr.strip():
        return [f"(the journal cannot be read: {done.stderr.strip().splitlines()[-1]})"]
    return found


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise JournalError(f"{command[0]} is not installed; this proxy needs systemd") from error
    except subprocess.TimeoutExpired as error:
        raise JournalError(f"`{' '.join(command)}` did not end within {_TIMEOUT_S:g} s") from error
    except OSError as error:  # no free descriptor for its pipes, for example, or no free process
        raise JournalError(f"`{' '.join(command)}` could not be run: {error}") from error
