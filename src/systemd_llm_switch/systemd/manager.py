"""systemd's user manager: the state of units, starts and stops.

Must not know models, requests or decisions. Every question blocks for about a millisecond; a start or a stop blocks
until its job has ended. Never call it under a lock or on the hot path (`unit.ProcessWatch` is for that).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Self, TypeVar

from systemd_llm_switch.quoting import printable
from systemd_llm_switch.systemd.bus import (
    REPLY_TIMEOUT_S,
    UNFINISHED,
    BusCall,
    BusClosed,
    BusError,
    BusReply,
    CallRefused,
    Limit,
    ManagerBus,
    all_properties,
    properties,
)
from systemd_llm_switch.systemd.unit import (
    MainProcess,
    UnitStatus,
    describe_state,
    has_stopped,
    parse_status,
    refused_status,
)

_REAP_TIMEOUT_S = 1.0  # systemd notices a dead child within milliseconds
# A manager that re-executes itself (`daemon-reexec`) closes its connections and refuses new ones for 50 to 250 ms.
_REEXEC_TIMEOUT_S = 1.0
_REEXEC_STEP_S = 0.02
_BAD_NAME = "org.freedesktop.DBus.Error.InvalidArgs"
_NOT_LOADED = "org.freedesktop.systemd1.NoSuchUnit"
# Raised when an answer does not have the form that org.freedesktop.systemd1(5) documents.
_MALFORMED = (AttributeError, LookupError, TypeError, ValueError)
# How systemctl interprets a job's result (check_wait_response in its bus-wait-for-jobs.c).
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
    """systemd could not be asked, refused, or failed. The message has its answer and the next step."""


class JobUnfinished(SystemdError):
    """A start or a stop did not end in time; systemd goes on with it."""


class Systemd:
    """The user manager. Stateless and thread-safe. Each method makes a new connection, and none forks; use `connected`
    for several questions in a row.

    Raises:
        SystemdError: from every method, when systemd cannot be asked, fails, or does not answer in time.
    """

    def __init__(self, timeout_s: float = 150.0, environ: Mapping[str, str] = os.environ) -> None:
        # `stop` blocks until the unit is gone. systemd kills it after 90 s by default (DefaultTimeoutStopUSec, see
        # systemd-system.conf(5)), and we must not give up before that.
        self._timeout_s = timeout_s
        self._environ = environ

    def connected(self) -> ConnectedSystemd:
        """The same manager, for one thread that asks several questions in a row."""
        return ConnectedSystemd(self._timeout_s, self._environ)

    def show(self, units: Iterable[str]) -> dict[str, UnitStatus]:
        """The state of all units; each state is one snapshot. A unit that does not exist is `is_missing`, and so is a
        unit whose name systemd does not accept."""
        names = list(dict.fromkeys(units))
        if not names:
            return {}
        calls = [all_properties(name) for name in names]

        def ask(bus: ManagerBus) -> dict[str, UnitStatus]:
            answers = zip(names, bus.call_all(calls), strict=True)
            return {name: _status(name, answer) for name, answer in answers}

        return self._ask(ask)

    def main_process(self, unit: str) -> MainProcess:
        """The main process of a unit that was started.

        `show` knows it too, but is slower: systemd returns a few properties of a loaded unit faster than all. The pid
        is asked for first. So if that process ends meanwhile and another takes its place, opening the pid fails.
        """
        wanted = ("MainPID", "ControlGroup", "ExecMainStartTimestamp")
        calls = properties(unit, *(("Service", name) for name in wanted), ("Unit", "InvocationID"))

        def ask(bus: ManagerBus) -> MainProcess:
            pid, control_group, started_us, invocation_id = (it.values()[0][1] for it in bus.call_all(calls))
            return MainProcess(pid, control_group, invocation_id.hex(), started_us / 1e6)

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
        """The units that are not stopped, with their states. Faster than `show`: one call for all, and a short
        answer."""
        if not units:
            return {}
        return self._ask(lambda bus: _running(units, bus))

    def stop(self, units: Sequence[str], limit: Limit | None = None) -> None:
        """Stops all units side by side and waits for them. A unit that does not exist is not an error; ask `running`
        afterwards what still runs.

        Raises:
            JobUnfinished: at the deadline.
            Interrupted: as soon as the limit's descriptor is readable.
        """
        failed = {
            unit: result
            for unit, result in self._run_jobs("StopUnit", units, limit).items()
            if not (isinstance(result, CallRefused) and result.name in (_NOT_LOADED, _BAD_NAME))
        }
        if failed:
            reasons = (f"stopping {unit} failed: {_words(result)}" for unit, result in failed.items())
            kind = JobUnfinished if UNFINISHED in failed.values() else SystemdError
            raise kind("; ".join(reasons))

    def start(self, unit: str, limit: Limit | None = None) -> None:
        """Starts a unit and waits until systemd calls it started (for Type=exec: it was executed).

        Raises:
            JobUnfinished, Interrupted: as `stop` does.
        """
        for result in self._run_jobs("StartUnit", [unit], limit).values():
            kind = JobUnfinished if result == UNFINISHED else SystemdError
            raise kind(f"starting {unit} failed: {_words(result)}")

    def reset_failed(self, unit: str) -> None:
        """Clears a failed state and the start limit's count. A refusal is ignored: systemd refuses if the unit is not
        loaded, and any other reason also makes the following start fail."""
        self._ask(lambda bus: bus.call_all([BusCall("ResetFailedUnit", "s", (unit,))]))

    def _run_jobs(self, method: str, units: Sequence[str], limit: Limit | None) -> dict[str, str | CallRefused]:
        """The units whose job did not succeed, with the job's result."""
        calls = [BusCall(method, "ss", (unit, "replace")) for unit in units]
        latest = time.monotonic() + self._timeout_s
        limit = Limit(latest) if limit is None else limit._replace(deadline=min(latest, limit.deadline))
        results = self._ask(lambda bus: bus.run_jobs(calls, limit))
        return {unit: result for unit, result in zip(units, results, strict=True) if result not in _FINE}

    def _ask(self, question: Callable[[ManagerBus], _T]) -> _T:
        """Asks again for up to a second if the manager hangs up. This is safe: all our questions may be asked twice."""
        closed_at: float | None = None
        with self._explained():
            while True:
                try:
                    return self._ask_once(question)
                except BusClosed:
                    now = time.monotonic()
                    closed_at = now if closed_at is None else closed_at
                    if now >= closed_at + _REEXEC_TIMEOUT_S:
                        raise
                time.sleep(_REEXEC_STEP_S)

    def _ask_once(self, question: Callable[[ManagerBus], _T]) -> _T:
        with self._open() as bus:
            return question(bus)

    def _open(self) -> ManagerBus:
        return ManagerBus(self._environ, min(REPLY_TIMEOUT_S, self._timeout_s))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BusError as error:
            raise SystemdError(
                f"systemd's user manager cannot be asked ({error}); check that it runs with `systemctl --user status`, "
                f"as the same user and with the same XDG_RUNTIME_DIR"
            ) from error
        except CallRefused as error:
            raise SystemdError(f"systemd answered: {printable(str(error))}") from error
        except _MALFORMED as error:
            raise SystemdError(f"systemd's answer cannot be understood: {printable(repr(error))}") from error


class ConnectedSystemd(Systemd):
    """The user manager over one connection. It is made for the first question and kept within the `with` block, because
    connecting costs more than most questions. Outside the block, each question makes its own. Not thread-safe.

    Use the block only for questions that follow each other within seconds. On a kept connection the manager reports
    every change of every unit, and stores for us what we do not read.
    """

    _bus: ManagerBus | None = None
    _is_entered = False

    def __enter__(self) -> Self:
        self._is_entered = True
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_entered = False
        self._close()

    def _ask_once(self, question: Callable[[ManagerBus], _T]) -> _T:
        if not self._is_entered:
            return super()._ask_once(question)
        self._bus = bus = self._bus or self._open()
        try:
            return question(bus)
        except BusError:
            self._close()
            raise

    def _close(self) -> None:
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.close()


def _status(unit: str, answer: BusReply) -> UnitStatus:
    if _is_name_refused(answer):
        return refused_status(unit, printable(str(answer.refusal)))
    return parse_status(unit, *answer.values())


def _running(units: Sequence[str], bus: ManagerBus) -> dict[str, str]:
    (answer,) = bus.call_all([_list(units)])
    if _is_name_refused(answer) or len(answer.values()[0]) != len(units):
        # systemd refuses the whole list for some bad names, and leaves out others. A unit with such a name cannot run.
        answers = zip(units, bus.call_all([_list([unit]) for unit in units]), strict=True)
        rows = [(unit, row) for unit, it in answers if not _is_name_refused(it) for row in it.values()[0]]
    else:
        rows = list(zip(units, answer.values()[0], strict=True))
    # A row: name, description, load state, active state, sub state, ...; the name may be an alias of the unit.
    return {unit: describe_state(row[3], row[4]) for unit, row in rows if not has_stopped(row[3])}


def _list(units: Sequence[str]) -> BusCall:
    return BusCall("ListUnitsByNames", "as", (list(units),))


def _is_name_refused(answer: BusReply) -> bool:
    return answer.refusal is not None and answer.refusal.name == _BAD_NAME


def _words(result: str | CallRefused) -> str:
    if isinstance(result, CallRefused):
        return printable(str(result)).rstrip(".")
    return _JOB_FAILURES.get(result, f"its job ended as {result!r}")
