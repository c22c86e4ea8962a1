"""Loading and unloading on systemd: stop units and confirm it, bring one up and wait until it is ready.

Blocks; never called under a lock. Knows nothing of who waits.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from systemd_llm_switch.backend.backend import Backend, Readiness
from systemd_llm_switch.backend.exchange import BackendLost, Exchange
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.errors import ModelStartFailed, ModelStartTimeout, ProxyError
from systemd_llm_switch.switching.failures import Failures, Fingerprint
from systemd_llm_switch.switching.read_ahead import model_files
from systemd_llm_switch.systemd.listeners import control_groups, holds_any, listening_sockets
from systemd_llm_switch.systemd.manager import MainProcess, ProcessWatch, Systemd, SystemdError, UnitStatus
from systemd_llm_switch.waiting import is_readable

# Health is asked for in small steps at first (a small model is ready within a second), in larger ones later: a
# fiftieth of the time waited, so that the steps never cost more than 2 % of a load. While nothing listens, to ask is a
# connection that is refused, some 20 µs; later it takes a millisecond from both sides, and from the load.
_FIRST_STEP_S = 0.001
_FIRST_LOADING_STEP_S = 0.005
_LARGEST_STEP_S = 0.25
_STEP_PART = 0.02
# How long a stopped predecessor's port may take to fall silent; the kernel closes it with the process.
_SILENCE_TIMEOUT_S = 5.0
_MEMORY_WORDS = ("out of memory", "outofdevicememory", "failed to allocate", "cannot allocate memory")


class LoadAborted(Exception):
    """Nobody wants the model any more; its unit is still to be stopped."""


class StopUnconfirmed(Exception):
    """Units that were to stop still run, or nobody can tell; what they hold is not free. `states` says of each what it
    does now, `said` is what systemd said."""

    def __init__(self, states: Mapping[str, str], said: Sequence[str] = ()) -> None:
        listed = ", ".join(f"unit {unit} did not stop ({state})" for unit, state in states.items())
        super().__init__("; ".join([listed, *said, f"see `systemctl --user status {next(iter(states))}`"]))
        self.units = frozenset(states)


class Resident:
    """A unit whose backend was ready: which process it is, and how it was started.

    `since` is seconds since the epoch; `began` and `ready` are `time.monotonic`.
    """

    def __init__(self, model: Model, backend: Backend, watch: ProcessWatch, invocation_id: str, began: float) -> None:
        self.model = model
        self.backend = backend
        self.watch = watch
        self.invocation_id = invocation_id
        self.began = began
        self.ready = time.monotonic()
        self.since = time.time()

    def check(self, exchange: Exchange) -> None:
        """A connection is this process's if the process lives once it is made; else somebody else may have taken
        the port, and must not answer for it. (A kept connection is the process's that it was made to.)

        Raises:
            BackendLost
        """
        if exchange.is_new and self.watch.has_exited():
            raise BackendLost("its process ended before the request came", was_unread=True)


def stop_units(systemd: Systemd, units: Sequence[str], beside: Sequence[str] = ()) -> frozenset[str]:
    """Stops units side by side and confirms it; tells which of those `beside` them run.

    Raises:
        StopUnconfirmed: some still run, or systemd cannot be asked whether they do.
        SystemdError: there are no `units`, and systemd cannot be asked.
    """
    said = []
    if units:
        try:
            systemd.stop(units)
        except SystemdError as error:  # which of them stopped all the same is what `running` tells
            said.append(str(error))
    try:
        running = systemd.running([*units, *beside])
    except SystemdError as error:
        if not units:
            raise
        raise StopUnconfirmed(dict.fromkeys(units, "as far as is known"), [*said, str(error)]) from error
    unstopped = {unit: running[unit] for unit in units if unit in running}
    if unstopped:
        raise StopUnconfirmed(unstopped, said)
    return frozenset(running)


def fingerprint(status: UnitStatus) -> Fingerprint:
    """What tells that somebody has worked on a unit since."""
    files = []
    for path in status.files:
        try:
            files.append((path, os.stat(path).st_mtime_ns))  # noqa: PTH116  (a path as systemd gave it)
        except OSError:
            files.append((path, 0))
    return Fingerprint(
        tuple(files), status.needs_daemon_reload, status.active_state, status.result, status.invocation_id
    )


class StartRefused(Exception):
    """A start that cannot succeed was not tried, and nothing was stopped for it; `error` says why."""

    def __init__(self, error: ProxyError) -> None:
        super().__init__(error.message)
        self.error = error


class PortTaken(ModelStartFailed):
    """Something that is no unit of ours listens where the model would; its own unit is not to blame."""


class Launched(NamedTuple):
    """A unit that was started, or adopted, and is not known to be ready; `began` is `time.monotonic`."""

    watch: ProcessWatch
    invocation_id: str
    began: float


class Start:
    """Brings one model up. `abort_fd` is readable once nobody wants it any more; `rivals` are the other units, which
    somebody may have started by hand."""

    def __init__(
        self, systemd: Systemd, model: Model, backend: Backend, abort_fd: int, rivals: Sequence[str] = ()
    ) -> None:
        self._systemd = systemd
        self._model = model
        self._backend = backend
        self._abort_fd = abort_fd
        self._rivals = rivals
        self._began = time.monotonic()

    def check(self, status: UnitStatus, failures: Failures) -> None:
        """Looks at the unit before anything is stopped for it.

        Raises:
            StartRefused: it is missing, or in a crash loop.
        """
        if status.is_missing:
            raise StartRefused(self._failure(status))
        refusal = failures.refusal(status.unit, fingerprint(status), time.monotonic())
        if refusal is not None:
            raise StartRefused(refusal)

    def launch(self, status: UnitStatus) -> Launched:
        """Starts the unit unless it runs already.

        `status` is what systemd said of it after everything else was stopped. A unit that runs was started by
        hand or by an earlier proxy: it is adopted.

        Raises:
            ModelStartFailed: it could not be started, or has ended already.
            SystemdError: systemd could not be asked.
            OSError: there is no room for one more open file.
        """
        began = time.monotonic()
        process = status.main_process
        if not status.is_running:
            self._start_unit(status)
            process = self._systemd.main_process(status.unit)
        return Launched(self._watch(process), process.invocation_id, began)

    def wait_until_ready(self, launched: Launched, health_timeout_s: float) -> Resident:
        """Waits until the backend of what was launched is ready; the time-out counts from its launch.

        Raises:
            ModelStartFailed, ModelStartTimeout: it did not come up; its unit may still run.
            LoadAborted: `abort_fd` became readable.
            OSError: there is no room for one more open file.
        """
        watch = launched.watch
        deadline = launched.began + health_timeout_s
        poll = select.poll()
        poll.register(watch.fileno(), select.POLLIN)
        poll.register(self._abort_fd, select.POLLIN)
        waiting_since = time.monotonic()
        readiness = Readiness.SILENT
        while True:
            # `readiness` would need ten times as long to see that still nothing listens.
            if readiness is not Readiness.SILENT or not self._backend.is_silent():
                readiness = self._backend.readiness()
            events = dict(poll.poll(0))
            if watch.fileno() in events:
                raise self._failure(self._systemd.show_after_exit(self._model.unit, watch.pid))
            if readiness is Readiness.READY and not self._is_a_rivals(watch.pid):
                return Resident(self._model, self._backend, watch, launched.invocation_id, self._began)
            waited = time.monotonic() - waiting_since
            if time.monotonic() >= deadline:
                raise self._timeout(health_timeout_s, readiness, launched.invocation_id)
            first_step = _FIRST_STEP_S if readiness is Readiness.SILENT else _FIRST_LOADING_STEP_S
            step = min(_LARGEST_STEP_S, max(first_step, waited * _STEP_PART))
            poll.poll(int(step * 1000))
            if is_readable(self._abort_fd):
                raise LoadAborted

    def _start_unit(self, status: UnitStatus) -> None:
        if not status.is_stopped:
            # In auto-restart, `start` would wait out RestartSec; while it stops, it would be stopped again.
            self._systemd.stop([status.unit])
            self._systemd.reset_failed(status.unit)
        if status.active_state == "failed":
            self._systemd.reset_failed(status.unit)
        self._wait_until_silent()
        try:
            self._systemd.start(status.unit)
        except SystemdError as error:
            status = self._show()
            if status.result != "start-limit-hit":
                raise self._failure(status, str(error)) from error
            self._start_over_the_limit(status.unit)

    def _start_over_the_limit(self, unit: str) -> None:
        """Models that are switched back and forth are started more often than systemd's start limit likes; the
        limit is for crash loops, and a crash ends our wait anyway."""
        self._systemd.reset_failed(unit)
        try:
            self._systemd.start(unit)
        except SystemdError as error:
            raise self._failure(self._show(), str(error)) from error

    def _wait_until_silent(self) -> None:
        """Whoever answers later must be the unit that is about to start."""
        deadline = time.monotonic() + _SILENCE_TIMEOUT_S
        step_s = _FIRST_STEP_S
        while not self._backend.is_silent():
            if time.monotonic() > deadline:
                raise PortTaken(
                    f"model {self._model.id!r} was not started: {self._backend.url} is taken by {self._taker()}"
                )
            time.sleep(step_s)
            step_s = min(_LARGEST_STEP_S, step_s * 2)

    def _taker(self) -> str:
        """Who listens where the model would, and how to stop it: most often the unit of a model whose line was taken
        out of the config while it ran."""
        for group in control_groups(listening_sockets(self._backend.port)):
            unit = group.rpartition("/")[2]
            # A unit of that name may be another user's, or the system's.
            if unit.endswith(".service") and self._systemd.show([unit])[unit].control_group == group:
                return f"unit {unit}: `systemctl --user stop {unit}` stops it; in the config, it would be switched"
        return "something that is none of the configured units; find it with `ss -ltnp` and stop it"

    def _watch(self, process: MainProcess) -> ProcessWatch:
        """Holds the unit's main process; since systemd told of it, it may have died and its pid been reused."""
        try:
            watch = ProcessWatch(process.pid)
            cgroup = Path(f"/proc/{process.pid}/cgroup").read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise  # that is our own fault
            raise self._failure(self._show()) from error
        if process.control_group and process.control_group not in cgroup:
            raise self._failure(self._show())
        return watch

    def _is_a_rivals(self, pid: int) -> bool:
        """Whether it is another unit that answers: one that somebody started while this one was about to listen. It
        will find the port taken and end; until then it must not pass for ready."""
        sockets = listening_sockets(self._backend.port)
        if holds_any(pid, sockets):  # and so it is, nearly always
            return False
        running = self._systemd.running(self._rivals)
        return any(holds_any(it.main_pid, sockets) for it in self._systemd.show(running).values() if it.main_pid)

    def _show(self) -> UnitStatus:
        return self._systemd.show([self._model.unit])[self._model.unit]

    def _failure(self, status: UnitStatus, said: str = "") -> ModelStartFailed:
        """The error with all that is known: systemd's result, what to do, and the last lines of this start. Those
        come last: they are long, and a client may show the beginning only."""
        lines = self._systemd.journal(status.invocation_id)
        parts = [f"model {self._model.id!r} failed to start: unit {status.unit}: {_reason(status, said)}."]
        parts.append(_next_step(status, lines))
        if lines:
            parts.append(quote_journal(lines))
        memory = status.was_out_of_memory or _tells_of_memory(lines)
        return ModelStartFailed(" ".join(parts), permanent=_is_permanent(status, memory), out_of_memory=memory)

    def _timeout(self, after_s: float, readiness: Readiness, invocation_id: str) -> ModelStartTimeout:
        seen = "nothing listened" if readiness is Readiness.SILENT else "it was still loading"
        lines = self._systemd.journal(invocation_id)
        return ModelStartTimeout(
            f"model {self._model.id!r} was not ready within {after_s:g} s (server.health_timeout): {seen} at "
            f"{self._backend.url}. Unit {self._model.unit} was stopped again. {quote_journal(lines)}".strip(),
            param="model",
        )


def quote_journal(lines: Sequence[str]) -> str:
    """The last lines of a start as a sentence; empty where there are none."""
    return f"Last journal lines: {' | '.join(lines)}" if lines else ""


def _reason(status: UnitStatus, said: str) -> str:
    if status.is_missing or status.result not in ("", "success") or not status.is_stopped:
        return status.describe()
    return said or f"it was stopped, or ended by itself, while it loaded; now {status.describe()}"


def _next_step(status: UnitStatus, lines: Sequence[str]) -> str:
    if status.load_state == "not-found":
        return "Install it (./setup.sh), or correct `unit:` in the config."
    if status.needs_daemon_reload:
        return "Its unit file changed on disk: run `systemctl --user daemon-reload`, then try again."
    lost = next((file for file in model_files(status.command) if not file.exists()), None)
    if lost is not None and any(str(lost) in line for line in lines):
        return f"There is no model file {lost}; `./setup.sh --check` names the command that downloads it."
    return f"See `journalctl --user -u {status.unit}` and `systemctl --user status {status.unit}`."


def _is_permanent(status: UnitStatus, memory: bool) -> bool:
    """Whether a client's own retries are of no use: a missing file stays missing until somebody acts."""
    exited = status.exec_code == os.CLD_EXITED and status.exec_status != 0
    return status.is_missing or (exited and not memory)


def _tells_of_memory(lines: list[str]) -> bool:
    return any(word in line.lower() for line in lines for word in _MEMORY_WORDS)
