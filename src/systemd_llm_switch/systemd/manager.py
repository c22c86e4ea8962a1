"""systemd's user manager, as this project asks it, and its journal: the only module that runs a program (journalctl).

Knows nothing of models, requests or who decides. Every question blocks, for a millisecond more or less, and a start or
a stop until its job has ended: never call it under a lock or on the hot path (the pidfd of `ProcessWatch` is for that).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

from systemd_llm_switch.systemd.bus import (
    REPLY_TIMEOUT_S,
    UNFINISHED,
    BusClosed,
    BusError,
    Call,
    CallRefused,
    ManagerBus,
    all_properties,
    properties,
)
from systemd_llm_switch.waiting import is_readable

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
_STOPPED = ("inactive", "failed")
_MISSING = ("not-found", "bad-setting", "error", "masked")
_NOT_LOADED = "org.freedesktop.systemd1.NoSuchUnit"
# Raised by reading an answer that is not as org.freedesktop.systemd1(5) has it.
_OF_ANOTHER_FORM = (AttributeError, LookupError, TypeError, ValueError)
# What systemctl makes of a job's result (check_wait_response in its bus-wait-for-jobs.c).
_FINE = ("done", "skipped")
_JOB_FAILURES = {
    "failed": "its job failed",
    "canceled": "its job was canceled by another one",
    "collected": "its job was dropped",
    "timeout": "its job timed out",
    "dependency": "a unit that it depends on failed",
    "assert": "an assertion in its unit file does not hold",
    "once": "it was started once already and cannot be started again",
    UNFINISHED: "it took too long",
}


_T = TypeVar("_T")


class SystemdError(Exception):
    """systemd could not be asked, or refused, or failed at it; the message has its words, and the next step."""


class MainProcess(NamedTuple):
    """The process that a unit runs for one of its starts; `pid` is 0 where there is none."""

    pid: int
    control_group: str
    invocation_id: str


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """What systemd says of a unit at one moment (org.freedesktop.systemd1(5))."""

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
        return self.active_state in _STOPPED

    @property
    def is_running(self) -> bool:
        """Its main process runs and is not being stopped."""
        return self.active_state in ("active", "reloading") and self.main_pid > 0

    @property
    def main_process(self) -> MainProcess:
        return MainProcess(self.main_pid, self.control_group, self.invocation_id)

    @property
    def is_missing(self) -> bool:
        """No start can succeed before somebody mends the unit file."""
        return self.load_state in _MISSING

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
        state = _state(self.active_state, self.sub_state)
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
    """The user manager. Stateless, thread-safe; each method but `journal` is a connection to it, and none forks (see
    `connected` for several questions in a row).

    Raises:
        SystemdError: from every method but `journal`, when systemd cannot be asked, fails, or does not answer in time.
    """

    def __init__(self, timeout_s: float = 150.0, environ: Mapping[str, str] = os.environ) -> None:
        # `stop` blocks until the unit is gone: systemd kills it after 90 s by default (DefaultTimeoutStopUSec, see
        # systemd-system.conf(5)), and must not be given up on just then.
        self._timeout_s = timeout_s
        self._environ = environ

    def connected(self) -> ConnectedSystemd:
        """The same manager, for one thread that asks several questions in a row: see there."""
        return ConnectedSystemd(self._timeout_s, self._environ)

    def show(self, units: Iterable[str]) -> dict[str, UnitStatus]:
        """The state of all units, each one's at one moment. A unit that does not exist is `is_missing`."""
        names = list(dict.fromkeys(units))
        if not names:
            return {}
        calls = [all_properties(name) for name in names]

        def ask(bus: ManagerBus) -> dict[str, UnitStatus]:
            answers = zip(names, bus.call_all(calls), strict=True)
            return {name: _parse_status(name, *answer.values()) for name, answer in answers}

        return self._ask(ask)

    def main_process(self, unit: str) -> MainProcess:
        """The main process of a unit that was started. What `show` has of it, for a fraction of the time: of a unit
        that systemd has loaded, some properties come quicker than all. The pid is the first that is asked for: if that
        process ended meanwhile, and another took its place, whoever opens it finds it gone."""
        calls = properties(unit, ("Service", "MainPID"), ("Service", "ControlGroup"), ("Unit", "InvocationID"))

        def ask(bus: ManagerBus) -> MainProcess:
            pid, control_group, invocation_id = (answer.values()[0][1] for answer in bus.call_all(calls))
            return MainProcess(pid, control_group, invocation_id.hex())

        return self._ask(ask)

    def show_after_exit(self, unit: str, pid: int) -> UnitStatus:
        """The state of a unit whose main process `pid` was seen to end: waits until systemd has seen it too."""
        deadline = time.monotonic() + _REAP_TIMEOUT_S
        status = self.show([unit])[unit]
        while status.main_pid == pid and time.monotonic() < deadline:
            time.sleep(0.01)
            status = self.show([unit])[unit]
        return status

    def running(self, units: Sequence[str]) -> dict[str, str]:
        """Those of the units that are not stopped, and what each does. As `show` has it, but for a fraction of the
        time: it is one call for all of them, and a short answer."""
        if not units:
            return {}

        def ask(bus: ManagerBus) -> dict[str, str]:
            (listed,) = bus.call(Call("ListUnitsByNames", "as", (list(units),)))
            # name, description, load state, active state, sub state, ...; the name may be another one of the unit's.
            states = {unit: (it[3], it[4]) for unit, it in zip(units, listed, strict=True)}
            return {unit: _state(*state) for unit, state in states.items() if state[0] not in _STOPPED}

        return self._ask(ask)

    def stop(self, units: Sequence[str]) -> None:
        """Stops all units side by side and waits for them. A unit that does not exist is no error: `running`
        afterwards is what tells."""
        failed = {
            unit: said
            for unit, said in self._run_jobs("StopUnit", units).items()
            if not (isinstance(said, CallRefused) and said.name == _NOT_LOADED)
        }
        if failed:
            raise SystemdError("; ".join(f"stopping {unit} failed: {_words(said)}" for unit, said in failed.items()))

    def start(self, unit: str) -> None:
        """Starts a unit and waits until systemd calls it started (for Type=exec: it was executed)."""
        for said in self._run_jobs("StartUnit", [unit]).values():
            raise SystemdError(f"starting {unit} failed: {_words(said)}")

    def reset_failed(self, unit: str) -> None:
        """Clears a failed state and the start limit's count. That systemd refuses is no error: of a unit that is not
        loaded it knows neither, and else the start that follows tells."""
        self._ask(lambda bus: bus.call_all([Call("ResetFailedUnit", "s", (unit,))]))

    def _run_jobs(self, method: str, units: Sequence[str]) -> dict[str, str | CallRefused]:
        """Those that did not end well, and what systemd says of it."""
        calls = [Call(method, "ss", (unit, "replace")) for unit in units]
        said = self._ask(lambda bus: bus.run_jobs(calls, self._timeout_s))
        return {unit: result for unit, result in zip(units, said, strict=True) if result not in _FINE}

    def _ask(self, question: Callable[[ManagerBus], _T]) -> _T:
        with self._explained(), self._open() as bus:
            return question(bus)

    def _open(self) -> ManagerBus:
        return ManagerBus(self._environ, min(REPLY_TIMEOUT_S, self._timeout_s))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BusError as error:
            raise SystemdError(
                f"systemd's user manager cannot be asked ({error}); `systemctl --user status`, run as the same user "
                f"and with the same XDG_RUNTIME_DIR, tells whether it runs"
            ) from error
        except CallRefused as error:
            raise SystemdError(f"systemd answered: {error}") from error
        except _OF_ANOTHER_FORM as error:
            raise SystemdError(f"systemd's answer cannot be understood: {error!r}") from error

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


class ConnectedSystemd(Systemd):
    """The user manager over one connection, which is made for the first question and kept while this is entered: to
    make one costs more than most questions do. Before and after, each question has its own. Not thread-safe.

    Enter it only for questions that follow each other within seconds: on a kept connection the manager tells of every
    unit's doings, and keeps for us what we do not read.
    """

    _bus: ManagerBus | None = None
    _is_entered = False

    def __enter__(self) -> Self:
        self._is_entered = True
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_entered = False
        self._close()

    def _ask(self, question: Callable[[ManagerBus], _T]) -> _T:
        if not self._is_entered:
            return super()._ask(question)
        is_kept = self._bus is not None
        with self._explained():
            self._bus = bus = self._bus or self._open()
            try:
                return question(bus)
            except BusError as error:
                self._close()
                if not is_kept or not isinstance(error, BusClosed):
                    raise
        # A `daemon-reexec` ends the connections to the manager's own socket; and all that we ask may be asked twice.
        return self._ask(question)

    def _close(self) -> None:
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.close()


def _parse_status(unit: str, told: Mapping[str, tuple[str, Any]]) -> UnitStatus:
    """
    Raises:
        AttributeError, LookupError, TypeError, ValueError: they are of another form than they should be.
    """

    def value(name: str, default: Any) -> Any:
        return told[name][1] if name in told else default  # only a service has a Result, say

    _, load_error = value("LoadError", ("", ""))
    commands = value("ExecStart", [])  # each a program, its arguments, and when it ran
    files = (value("FragmentPath", ""), *value("DropInPaths", ()))
    return UnitStatus(
        unit=unit,
        load_state=value("LoadState", ""),
        load_error=load_error,
        active_state=value("ActiveState", ""),
        sub_state=value("SubState", ""),
        result=value("Result", ""),
        main_pid=value("MainPID", 0),
        exec_code=value("ExecMainCode", 0),
        exec_status=value("ExecMainStatus", 0),
        invocation_id=value("InvocationID", b"").hex(),
        needs_daemon_reload=value("NeedDaemonReload", False),
        files=tuple(file for file in files if file),
        control_group=value("ControlGroup", ""),
        command=" ".join(commands[0][1]) if commands else "",
    )


def _state(active_state: str, sub_state: str) -> str:
    return active_state if sub_state in ("", active_state, "dead") else f"{active_state}/{sub_state}"


def _words(said: str | CallRefused) -> str:
    if isinstance(said, CallRefused):
        return str(said).rstrip(".")
    return _JOB_FAILURES.get(said, f"its job ended as {said!r}")
