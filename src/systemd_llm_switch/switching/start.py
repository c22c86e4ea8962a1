"""The start of one unit: check it, start it, watch it until its backend is ready. Blocks; never call it under a lock.

Must not know requests. `diagnosis` explains failures.
"""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.backend.health import UNREACHED, HealthReply, Readiness
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.contexts.records import Loaded
from systemd_llm_switch.contexts.unit import Command
from systemd_llm_switch.errors import ProxyError
from systemd_llm_switch.switching.address import elsewhere
from systemd_llm_switch.switching.diagnosis import Diagnosis
from systemd_llm_switch.switching.failures import Condition, Failures
from systemd_llm_switch.switching.resident import Resident
from systemd_llm_switch.systemd.bus import Interrupted, Limit
from systemd_llm_switch.systemd.listeners import holds_any, listening_sockets
from systemd_llm_switch.systemd.manager import JobUnfinished, Systemd, SystemdError
from systemd_llm_switch.systemd.unit import MainProcess, ProcessWatch, UnitStatus
from systemd_llm_switch.waiting import is_readable, remaining_s

# Health is polled in small steps at first, since a small model is ready within a second. Later a step is a fiftieth of
# the time waited so far, so that polling never costs more than 2 % of a load. While nothing listens, a poll is a
# refused connection of some 20 µs; later it costs the proxy and the loading backend a millisecond each.
_FIRST_STEP_S = 0.001
_FIRST_LOADING_STEP_S = 0.005
_LARGEST_STEP_S = 0.25
_STEP_PART = 0.02
_HEALTH_TIMEOUT_S = 2.0
_LAST_HEALTH_TIMEOUT_S = 0.5
# How long the port of a stopped unit may still accept connections; the kernel closes it with the process.
_SILENCE_TIMEOUT_S = 5.0
# How long a unit whose process runs may need to find its port taken.
_FOREIGN_ANSWER_S = 5.0


class LoadAborted(Exception):
    """The model is not wanted any more. Its unit must still be stopped."""


class StartRefused(Exception):
    """The start cannot succeed, so it was not tried and nothing was stopped for it. `error` says why."""

    def __init__(self, error: ProxyError) -> None:
        super().__init__(error.message)
        self.error = error


class Launched(NamedTuple):
    """A unit that was started or adopted and may not be ready yet. `began` is `time.monotonic`."""

    watch: ProcessWatch
    process: MainProcess
    began: float
    command: Command
    is_adopted: bool


class Start:
    """Starts one model; it must be ready within `health_timeout_s` of its launch.

    `abort_fd` becomes readable when the model is no longer wanted, which ends every wait. `rivals` are the other units;
    somebody may start them by hand.
    """

    def __init__(
        self,
        systemd: Systemd,
        model: Model,
        backend: Backend,
        abort_fd: int,
        health_timeout_s: float,
        rivals: Sequence[str] = (),
    ) -> None:
        self._systemd = systemd
        self._model = model
        self._backend = backend
        self._abort_fd = abort_fd
        self._timeout_s = health_timeout_s
        self._rivals = rivals
        self._diagnosis = Diagnosis(systemd, model, backend)
        self._began = time.monotonic()

    def check(self, status: UnitStatus, failures: Failures) -> None:
        """Looks at the unit before anything is stopped for it.

        Raises:
            StartRefused: it is missing, listens elsewhere than the proxy asks, or is in a crash loop.
        """
        if status.is_missing:
            raise StartRefused(self._diagnosis.failure(status))
        if not status.is_running and (wrong := elsewhere(status, self._backend.url)):
            raise StartRefused(self._diagnosis.elsewhere(wrong))
        refusal = failures.refusal(status.unit, Condition.of(status), time.monotonic())
        if refusal is not None:
            raise StartRefused(refusal)

    def launch(self, status: UnitStatus) -> Launched:
        """Starts the unit unless it runs already.

        `status` is the unit's state after everything else was stopped. A unit that runs was started by hand or by an
        earlier proxy, and is adopted.

        Raises:
            ModelStartFailed: it could not be started, or has ended already.
            ModelStartTimeout: systemd did not start it in time.
            LoadAborted: `abort_fd` became readable.
            SystemdError: systemd could not be asked.
            OSError: no file descriptor is left.
        """
        began = time.monotonic()
        process = status.main_process
        if not status.is_running:
            try:
                self._start_unit(status, Limit(began + self._timeout_s, self._abort_fd))
            except Interrupted as error:
                raise LoadAborted from error
            except JobUnfinished as error:
                raise self._diagnosis.unfinished(self._timeout_s, self._show()) from error
            process = self._systemd.main_process(status.unit)
        command = Command.of_status(status)
        return Launched(self._watch(process), process, began, command, status.is_running)

    def wait_until_ready(self, launched: Launched) -> Resident:
        """Waits until the backend of the launched unit is ready.

        Raises:
            ModelStartFailed, ModelStartTimeout: it did not become ready; its unit may still run.
            LoadAborted: `abort_fd` became readable.
            OSError: no file descriptor is left.
        """
        watch, deadline = launched.watch, launched.began + self._timeout_s
        poll = select.poll()
        poll.register(watch.fileno(), select.POLLIN)
        poll.register(self._abort_fd, select.POLLIN)
        waiting_since = time.monotonic()
        health = UNREACHED
        while True:
            health = self._ask(health, deadline)
            events = dict(poll.poll(0))
            if watch.fileno() in events:
                raise self._diagnosis.failure(self._systemd.show_after_exit(self._model.unit, watch.pid))
            if health.readiness is Readiness.READY and self._is_own_answer(watch.pid, waiting_since):
                return self._resident(launched)
            if time.monotonic() >= deadline:
                raise self._diagnosis.timeout(self._timeout_s, health.words, launched.process)
            poll.poll(int(_step_s(health, time.monotonic() - waiting_since) * 1000))
            self._check_wanted()

    def _resident(self, launched: Launched) -> Resident:
        process = launched.process
        loaded = Loaded(
            self._model, self._backend, launched.command, process.invocation_id, process.pid, launched.is_adopted
        )
        return Resident(loaded, launched.watch, process, self._began)

    def _ask(self, last: HealthReply, deadline: float) -> HealthReply:
        if last.readiness is Readiness.SILENT and self._backend.is_silent():
            return UNREACHED  # this look is ten times as fast as `readiness`
        # One more poll at the deadline: a unit that became ready just then must not be stopped.
        return self._backend.readiness(min(_HEALTH_TIMEOUT_S, max(_LAST_HEALTH_TIMEOUT_S, remaining_s(deadline))))

    def _check_wanted(self) -> None:
        """
        Raises:
            LoadAborted
        """
        if is_readable(self._abort_fd):
            raise LoadAborted

    def _start_unit(self, status: UnitStatus, limit: Limit) -> None:
        """
        Raises:
            JobUnfinished, Interrupted: the limit was reached.
            ModelStartFailed, LoadAborted, SystemdError
        """
        self._check_wanted()
        if not status.is_stopped:
            # A unit in auto-restart would wait for RestartSec before it starts; one that stops must stop first.
            self._systemd.stop([status.unit], limit)
            self._systemd.reset_failed(status.unit)
        if status.active_state == "failed":
            self._systemd.reset_failed(status.unit)
        self._wait_until_silent()
        try:
            self._systemd.start(status.unit, limit)
        except JobUnfinished:
            raise
        except SystemdError as error:
            status = self._show()
            if status.result != "start-limit-hit":
                raise self._diagnosis.failure(status, str(error)) from error
            self._start_over_the_limit(status.unit, limit)

    def _start_over_the_limit(self, unit: str, limit: Limit) -> None:
        """Starts a unit although systemd's start limit is reached. The limit is meant for crash loops, but models
        that are switched back and forth reach it too. A crash ends our wait anyway."""
        self._systemd.reset_failed(unit)
        try:
            self._systemd.start(unit, limit)
        except JobUnfinished:
            raise
        except SystemdError as error:
            raise self._diagnosis.failure(self._show(), str(error)) from error

    def _wait_until_silent(self) -> None:
        """Waits until nothing listens on the port, so that what answers later is the unit that is about to start."""
        deadline = time.monotonic() + _SILENCE_TIMEOUT_S
        poll = select.poll()
        poll.register(self._abort_fd, select.POLLIN)
        step_s = _FIRST_STEP_S
        while not self._backend.is_silent():
            if time.monotonic() > deadline:
                raise self._diagnosis.port_taken()
            poll.poll(int(step_s * 1000))
            self._check_wanted()
            step_s = min(_LARGEST_STEP_S, step_s * 2)

    def _watch(self, process: MainProcess) -> ProcessWatch:
        """Watches the unit's main process. It may have died since systemd reported its pid, and the pid may have been
        reused: the control group shows that."""
        try:
            watch = ProcessWatch(process.pid)
            cgroup = Path(f"/proc/{process.pid}/cgroup").read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise  # the proxy has no descriptor left: the unit has not failed
            raise self._diagnosis.failure(self._show()) from error
        if process.control_group and process.control_group not in cgroup:
            raise self._diagnosis.failure(self._show())
        return watch

    def _is_own_answer(self, pid: int, waiting_since: float) -> bool:
        """Whether it is this unit that answers. Another program may have taken the port first: then this unit will find
        that out and end, and until then it must not count as ready. A container's engine may listen for a unit, so a
        program that is not one of our units is believed after a while."""
        sockets = listening_sockets(self._backend.port)
        if not sockets or holds_any(pid, sockets):  # nearly always
            return True
        running = self._systemd.running(self._rivals)
        if any(holds_any(it.main_pid, sockets) for it in self._systemd.show(running).values() if it.main_pid):
            return False
        return time.monotonic() - waiting_since >= _FOREIGN_ANSWER_S

    def _show(self) -> UnitStatus:
        return self._systemd.show([self._model.unit])[self._model.unit]


def _step_s(health: HealthReply, waited_s: float) -> float:
    """How long to wait before the next poll."""
    first_s = _FIRST_STEP_S if health.readiness is Readiness.SILENT else _FIRST_LOADING_STEP_S
    return min(_LARGEST_STEP_S, max(first_s, waited_s * _STEP_PART))
