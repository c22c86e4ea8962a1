"""One unit as systemd describes it, and a watch on its main process. Asks systemd nothing: `manager` does."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
_STOPPED = ("inactive", "failed")
# How a unit names others that are started with it.
_BRINGS = ("Requires", "Wants", "BindsTo", "Upholds", "TriggeredBy", "JoinsNamespaceOf")
_MISSING = ("not-found", "bad-setting", "error", "masked")


class MainProcess(NamedTuple):
    """The process that a unit runs, or ran, for one of its starts. `pid` is 0 without a process; `started_at` is
    seconds since the epoch, 0 if it never started."""

    pid: int
    control_group: str
    invocation_id: str
    started_at: float


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """The state of a unit at one moment, as systemd reports it (org.freedesktop.systemd1(5))."""

    unit: str
    load_state: str
    load_error: str
    active_state: str
    sub_state: str
    result: str
    main_pid: int
    exec_code: int
    exec_status: int
    exec_pid: int  # the main process of the last start, which may be over
    exec_started_at: float
    invocation_id: str
    needs_daemon_reload: bool
    files: tuple[str, ...]
    control_group: str
    command: str  # its command line: the words joined by spaces, without quotes
    arguments: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    """The unit's own variables, each as `NAME=value`."""
    is_alone: bool = False
    """Nothing is started with it that could pass connections on: no service, no socket, no second command, no network
    of its own."""

    @property
    def is_stopped(self) -> bool:
        """None of its processes runs. `activating (auto-restart)` counts as running, because it will start again."""
        return has_stopped(self.active_state)

    @property
    def is_running(self) -> bool:
        """Its main process runs and is not being stopped."""
        return self.active_state in ("active", "reloading") and self.main_pid > 0

    @property
    def main_process(self) -> MainProcess:
        """The process that runs now."""
        return MainProcess(self.main_pid, self.control_group, self.invocation_id, self.exec_started_at)

    @property
    def last_process(self) -> MainProcess:
        """The process of the last start, which may be over."""
        return MainProcess(self.exec_pid, self.control_group, self.invocation_id, self.exec_started_at)

    @property
    def is_missing(self) -> bool:
        """No start can succeed until the unit file is repaired."""
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
        state = describe_state(self.active_state, self.sub_state)
        return f"{state} ({', '.join(parts)})" if parts else state


class ProcessWatch:
    """Watches a process by a pidfd: `has_exited()` is one poll of about 1 µs, without a fork and immune to pid reuse.

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
        # Closed only here, when no thread can poll it any more: the kernel reuses a closed descriptor's number at once.
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._fd)


def refused_status(unit: str, reason: str) -> UnitStatus:
    """The status of a name that systemd does not accept: a unit that cannot exist, and so is stopped."""
    properties = {"LoadState": ("s", "error"), "LoadError": ("(ss)", ("", reason)), "ActiveState": ("s", "inactive")}
    return parse_status(unit, properties)


def has_stopped(active_state: str) -> bool:
    """Whether a unit in this ActiveState runs nothing."""
    return active_state in _STOPPED


def describe_state(active_state: str, sub_state: str) -> str:
    """`active/running`; the sub-state is left out where it adds nothing."""
    return active_state if sub_state in ("", active_state, "dead") else f"{active_state}/{sub_state}"


def parse_status(unit: str, properties: Mapping[str, tuple[str, Any]]) -> UnitStatus:
    """A unit's status from all its properties, each a signature and a value.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: the properties have another form than documented.
    """

    def value(name: str, default: Any) -> Any:
        return properties[name][1] if name in properties else default  # only a service has a Result, for example

    _, load_error = value("LoadError", ("", ""))
    commands = value("ExecStart", [])  # each a program, its arguments, and when it ran
    brought = [name for kind in _BRINGS for name in value(kind, ()) if name.endswith((".service", ".socket"))]
    own_network = value("PrivateNetwork", False) or value("NetworkNamespacePath", "")
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
        exec_pid=value("ExecMainPID", 0),
        exec_started_at=value("ExecMainStartTimestamp", 0) / 1e6,
        invocation_id=value("InvocationID", b"").hex(),
        needs_daemon_reload=value("NeedDaemonReload", False),
        files=tuple(file for file in files if file),
        control_group=value("ControlGroup", ""),
        command=" ".join(commands[0][1]) if commands else "",
        arguments=tuple(commands[0][1]) if commands else (),
        environment=tuple(value("Environment", ())),
        is_alone=not (brought or own_network or value("ExecStartPost", []) or len(commands) > 1),
    )
