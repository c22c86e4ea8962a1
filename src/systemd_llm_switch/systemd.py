"""systemd's user manager: the only module that runs `systemctl` and `journalctl`.

Knows nothing of models, requests or who decides. Every call forks and blocks for some milliseconds: never call
it under a lock or on the hot path (the pidfd of `ProcessWatch` is for that).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from systemd_llm_switch.waiting import is_readable

_PROPERTIES = (
    "Id",
    "LoadState",
    "LoadError",
    "ActiveState",
    "SubState",
    "Result",
    "MainPID",
    "ExecMainCode",
    "ExecMainStatus",
    "InvocationID",
    "NeedDaemonReload",
    "FragmentPath",
    "DropInPaths",
    "ControlGroup",
    "ExecStart",
)
# systemd.exec(5), "Process Exit Codes": what systemd itself could not do before the program ran.
_SPAWN_FAILURES = {
    200: "cannot enter WorkingDirectory",
    203: "cannot execute the binary (missing or not executable)",
    208: "cannot set up standard input",
    209: "cannot set up standard output",
    217: "unknown User",
    226: "cannot set up the namespaces that the unit's sandboxing asks for",
    238: "cannot set up the state directory",
    243: "cannot set up credentials",
}
_REAP_TIMEOUT_S = 1.0  # systemd notices a dead child within milliseconds
_DULL_LINES = ("Starting ", "Started ", "Stopping ", "Stopped ")  # the manager's own, in every journal
_NO_SUCH_UNIT = ("not-found", "bad-setting", "error", "masked")


class SystemdError(Exception):
    """A systemctl call failed; the message is systemctl's own, with the next step."""


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """What systemd says of a unit at one moment (`systemctl show`; org.freedesktop.systemd1(5))."""

    unit: str
    load_state: str
    load_error: str
    active_state: str
    sub_state: str
    result: str
    main_pid: int
    exec_code: int
    exec_status: int
    invocation_id: str
    needs_daemon_reload: bool
    files: tuple[str, ...]
    control_group: str
    command: str  # what it runs, its words joined by spaces, without quotes

    @property
    def is_stopped(self) -> bool:
        """Nothing of it runs. `activating (auto-restart)` counts as running: it will be back."""
        return self.active_state in ("inactive", "failed")

    @property
    def is_running(self) -> bool:
        """Its main process runs and is not being stopped."""
        return self.active_state in ("active", "reloading") and self.main_pid > 0

    @property
    def is_missing(self) -> bool:
        """No start can succeed before somebody mends the unit file."""
        return self.load_state in _NO_SUCH_UNIT

    @property
    def was_out_of_memory(self) -> bool:
        """The kernel, or systemd-oomd, killed it for memory."""
        return self.result == "oom-kill"

    def describe(self) -> str:
        """The state in words: `failed (Result: exit-code, exit status 1)`."""
        if self.is_missing:
            detail = {"not-found": "no such unit", "masked": "masked"}.get(self.load_state, self.load_error)
            return f"{self.load_state} ({detail or 'systemd cannot load it'})"
        parts = [f"Result: {self.result}"] if self.result not in ("", "success") else []
        if self.exec_code == os.CLD_EXITED:
            meaning = _SPAWN_FAILURES.get(self.exec_status)
            parts.append(f"exit status {self.exec_status}" + (f", {meaning}" if meaning else ""))
        elif self.exec_code in (os.CLD_KILLED, os.CLD_DUMPED):
            with contextlib.suppress(ValueError):
                parts.append(f"killed by {signal.Signals(self.exec_status).name}")
        state = (
            self.active_state
            if self.sub_state in ("", self.active_state, "dead")
            else (f"{self.active_state}/{self.sub_state}")
        )
        return f"{state} ({', '.join(parts)})" if parts else state


class ProcessWatch:
    """Holds a process by a pidfd: `has_exited()` is one poll of about 1 µs, no fork, immune to pid reuse.

    See pidfd_open(2).

    Raises:
        ProcessLookupError: from the constructor, when the process is already gone.
    """

    __slots__ = ("_fd", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def has_exited(self) -> bool:
        """Whether the process ended (a zombie has). Thread-safe."""
        return is_readable(self._fd)

    def fileno(self) -> int:
        """Readable once the process has ended."""
        return self._fd

    def __del__(self) -> None:
        # Closed only when nobody can poll it any more: a closed fd's number is reused at once.
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._fd)


class Systemd:
    """The user manager. Stateless, thread-safe; each method is one or two forks.

    Raises:
        SystemdError: from every method but `journal`, when systemctl fails or does not answer in time.
    """

    def __init__(self, timeout_s: float = 150.0) -> None:
        # `stop` blocks until the unit is gone: systemd kills it after 90 s by default (DefaultTimeoutStopUSec, see
        # systemd-system.conf(5)), and must not be given up on just then.
        self._timeout_s = timeout_s

    def show(self, units: Iterable[str]) -> dict[str, UnitStatus]:
        """The state of all units in one call. A unit that does not exist is `is_missing`."""
        names = list(dict.fromkeys(units))
        if not names:
            return {}
        done = self._systemctl("show", "-p", ",".join(_PROPERTIES), "--", *names)
        blocks = done.stdout.strip("\n").split("\n\n")
        if done.returncode or len(blocks) != len(names):
            raise self._failure("show", names, done)
        return {name: _parse_status(name, block) for name, block in zip(names, blocks, strict=True)}

    def show_after_exit(self, unit: str, pid: int) -> UnitStatus:
        """The state of a unit whose main process `pid` was seen to end: waits until systemd has seen it too."""
        deadline = time.monotonic() + _REAP_TIMEOUT_S
        status = self.show([unit])[unit]
        while status.main_pid == pid and time.monotonic() < deadline:
            time.sleep(0.01)
            status = self.show([unit])[unit]
        return status

    def stop(self, units: Sequence[str]) -> None:
        """Stops all units side by side and waits for them. A unit that does not exist is no error: `show`
        afterwards is what tells."""
        done = self._systemctl("stop", "--", *units)
        if done.returncode not in (0, 5):  # 5: a unit is not loaded (systemctl(1), "Exit status")
            raise self._failure("stop", units, done)

    def start(self, unit: str) -> None:
        """Starts a unit and waits until systemd calls it started (for Type=exec: it was executed)."""
        done = self._systemctl("start", "--", unit)
        if done.returncode:
            raise self._failure("start", [unit], done)

    def reset_failed(self, unit: str) -> None:
        """Clears a failed state and the start limit's count."""
        self._systemctl("reset-failed", "--", unit)

    def journal(self, invocation_id: str, lines: int = 12) -> list[str]:
        """The last lines of one start of a unit: the program's own and the manager's. Never raises; where the
        journal cannot be read, the line says so."""
        if not invocation_id:
            return []
        match = [f"_SYSTEMD_INVOCATION_ID={invocation_id}", "+", f"USER_INVOCATION_ID={invocation_id}"]
        command = ["journalctl", "--quiet", "--no-pager", "-o", "cat", "-n", str(lines), *match]
        try:
            done = self._run(command, timeout_s=5)
        except SystemdError as error:
            return [f"(the journal cannot be read: {error})"]
        stripped = (line.strip() for line in done.stdout.splitlines())
        found = [line for line in stripped if line and not line.startswith(_DULL_LINES)]
        if not found and done.stderr.strip():
            return [f"(the journal cannot be read: {done.stderr.strip().splitlines()[-1]})"]
        return found

    def _systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run(["systemctl", "--user", "--no-pager", *arguments], self._timeout_s)

    @staticmethod
    def _run(command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except FileNotFoundError as error:
            raise SystemdError(f"{command[0]} is not installed; this proxy needs systemd") from error
        except subprocess.TimeoutExpired as error:
            raise SystemdError(f"`{' '.join(command)}` did not end within {timeout_s:g} s") from error
        except OSError as error:  # no descriptor for its pipes, say, or no process for it
            raise SystemdError(f"`{' '.join(command)}` could not be run: {error}") from error

    @staticmethod
    def _failure(verb: str, units: Iterable[str], done: subprocess.CompletedProcess[str]) -> SystemdError:
        words = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        return SystemdError(f"`systemctl --user {verb} {' '.join(units)}` failed: {words}")


def _parse_status(unit: str, block: str) -> UnitStatus:
    values = dict(line.partition("=")[::2] for line in block.splitlines())

    def number(name: str) -> int:
        text = values.get(name, "")
        return int(text) if text.isdigit() else 0

    return UnitStatus(
        unit=unit,
        load_state=values.get("LoadState", ""),
        load_error=values.get("LoadError", "").strip(' "'),
        active_state=values.get("ActiveState", ""),
        sub_state=values.get("SubState", ""),
        result=values.get("Result", ""),
        main_pid=number("MainPID"),
        exec_code=number("ExecMainCode"),
        exec_status=number("ExecMainStatus"),
        invocation_id=values.get("InvocationID", ""),
        needs_daemon_reload=values.get("NeedDaemonReload") == "yes",
        files=tuple(f"{values.get('FragmentPath', '')} {values.get('DropInPaths', '')}".split()),
        control_group=values.get("ControlGroup", ""),
        command=values.get("ExecStart", "").partition("argv[]=")[2].partition(" ; ")[0],
    )
