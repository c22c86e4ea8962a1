"""systemd's user manager, as this project asks it: the state of units, their starts and stops.

Knows nothing of models, requests or decisions. Every question blocks, for about a millisecond; a start or a stop blocks
until its job has ended. Never call it under a lock or on the hot path (`unit.ProcessWatch` is for that).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Self, TypeVar

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
from systemd_llm_switch.systemd.unit import MainProcess, UnitStatus, describe_state, has_stopped, parse_status

_REAP_TIMEOUT_S = 1.0  # systemd notices a dead child within milliseconds
_NOT_LOADED = "org.freedesktop.systemd1.NoSuchUnit"
# Raised by reading an answer that is not as org.freedesktop.systemd1(5) has it.
_MALFORMED = (AttributeError, LookupError, TypeError, ValueError)
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
    """systemd could not be asked, refused, or failed. The message has its words, and the next step."""


class Systemd:
    """The user manager. Stateless and thread-safe. Each method makes a connection of its own, and none forks; use
    `connected` for several questions in a row.

    Raises:
        SystemdError: from every method, when systemd cannot be asked, fails, or does not answer in time.
    """

    def __init__(self, timeout_s: float = 150.0, environ: Mapping[str, str] = os.environ) -> None:
        # `stop` blocks until the unit is gone. systemd kills it after 90 s by default (DefaultTimeoutStopUSec, see
        # systemd-system.conf(5)), and we must not give up just then.
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
            return {name: parse_status(name, *answer.values()) for name, answer in answers}

        return self._ask(ask)

    def main_process(self, unit: str) -> MainProcess:
        """The main process of a unit that was started.

        `show` has the same in more time: of a loaded unit, systemd returns some properties quicker than all. The pid is
        asked for first: if that process ends meanwhile and another takes its place, whoever opens the pid finds it
        gone.
        """
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
        """Those of the units that are not stopped, and what each does. Quicker than `show`: one call for all of them,
        and a short answer."""
        if not units:
            return {}

        def ask(bus: ManagerBus) -> dict[str, str]:
            (listed,) = bus.call(Call("ListUnitsByNames", "as", (list(units),)))
            # name, description, load state, active state, sub state, ...; the name may be an alias of the unit.
            states = {unit: (it[3], it[4]) for unit, it in zip(units, listed, strict=True)}
            return {unit: describe_state(*state) for unit, state in states.items() if not has_stopped(state[0])}

        return self._ask(ask)

    def stop(self, units: Sequence[str]) -> None:
        """Stops all units side by side and waits for them. A unit that does not exist is not an error; ask `running`
        afterwards what still runs."""
        failed = {
            unit: result
            for unit, result in self._run_jobs("StopUnit", units).items()
            if not (isinstance(result, CallRefused) and result.name == _NOT_LOADED)
        }
        if failed:
            reasons = (f"stopping {unit} failed: {_words(result)}" for unit, result in failed.items())
            raise SystemdError("; ".join(reasons))

    def start(self, unit: str) -> None:
        """Starts a unit and waits until systemd calls it started (for Type=exec: it was executed)."""
        for result in self._run_jobs("StartUnit", [unit]).values():
            raise SystemdError(f"starting {unit} failed: {_words(result)}")

    def reset_failed(self, unit: str) -> None:
        """Clears a failed state and the start limit's count. A refusal is ignored: systemd refuses for a unit that is
        not loaded, and any other reason shows at the start that follows."""
        self._ask(lambda bus: bus.call_all([Call("ResetFailedUnit", "s", (unit,))]))

    def _run_jobs(self, method: str, units: Sequence[str]) -> dict[str, str | CallRefused]:
        """The units whose job did not end well, and what systemd says of it."""
        calls = [Call(method, "ss", (unit, "replace")) for unit in units]
        results = self._ask(lambda bus: bus.run_jobs(calls, self._timeout_s))
        return {unit: result for unit, result in zip(units, results, strict=True) if result not in _FINE}

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
                f"systemd's user manager cannot be asked ({error}); check that it runs with `systemctl --user status`, "
                f"as the same user and with the same XDG_RUNTIME_DIR"
            ) from error
        except CallRefused as error:
            raise SystemdError(f"systemd answered: {error}") from error
        except _MALFORMED as error:
            raise SystemdError(f"systemd's answer cannot be understood: {error!r}") from error


class ConnectedSystemd(Systemd):
    """The user manager over one connection, which is made for the first question and kept while this is entered: to
    connect costs more than most questions do. Before and after, each question has its own. Not thread-safe.

    Enter it only for questions that follow each other within seconds. On a kept connection the manager reports every
    unit's doings, and stores for us what we do not read.
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
        # A `daemon-reexec` ends the connections to the manager's own socket. All our questions may be asked twice.
        return self._ask(question)

    def _close(self) -> None:
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.close()


def _words(result: str | CallRefused) -> str:
    if isinstance(result, CallRefused):
        return str(result).rstrip(".")
    return _JOB_FAILURES.get(result, f"its job ended as {result!r}")
