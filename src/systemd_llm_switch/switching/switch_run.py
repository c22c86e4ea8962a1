"""One switch: stops the units that must go, starts the target and reports the outcome.

Blocks; runs in the thread for switches. Decides nothing and holds no lock: the switcher acts on the outcome.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.contexts.fingerprint import Fingerprint
from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.errors import InternalError, ModelStartFailed, ProxyError
from systemd_llm_switch.switching.diagnosis import PortTaken
from systemd_llm_switch.switching.failures import Condition, Failures
from systemd_llm_switch.switching.read_ahead import ReadAhead
from systemd_llm_switch.switching.resident import Resident
from systemd_llm_switch.switching.start import LoadAborted, Start, StartRefused
from systemd_llm_switch.switching.stop import StopUnconfirmed, stop_units
from systemd_llm_switch.systemd.manager import Systemd, SystemdError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """The model to start, and how long to wait until it is ready. `beginnings` returns the beginnings of the requests
    that wait for it."""

    model: Model
    backend: Backend
    health_timeout_s: float
    beginnings: Callable[[], Sequence[Fingerprint]]


@dataclass(frozen=True, slots=True)
class Helpers:
    """What every switch uses."""

    systemd: Systemd
    failures: Failures
    read_ahead: ReadAhead
    contexts: Contexts


@dataclass(slots=True)
class SwitchOutcome:
    """How a switch went. Without an error, `resident` is the target; None if there was no target or it was aborted."""

    resident: Resident | None = None
    error: ProxyError | None = None
    still_running: frozenset[str] = frozenset()  # units whose stop is not confirmed
    is_aborted: bool = False
    is_refused: bool = False  # the target cannot be started, and nothing was stopped
    is_own_failure: bool = False  # the target failed, not systemd or a unit that did not stop
    stop_s: float = 0.0
    load_s: float = 0.0

    @property
    def is_out_of_memory(self) -> bool:
        return isinstance(self.error, ModelStartFailed) and self.error.out_of_memory


class SwitchRun:
    """A switch in progress. The constructor opens nothing and cannot fail; any thread may call `abort`."""

    def __init__(
        self,
        helpers: Helpers,
        target: Target | None,
        others: Sequence[str],
        leaving: Sequence[Resident],
    ) -> None:
        self.target = target
        self.others = others  # every unit that must not run, whoever started it
        self.left = tuple(resident.model.id for resident in leaving)
        self.began = time.monotonic()
        self.has_stopped = False  # whether the others stopped, and systemd confirmed it
        self._leaving = leaving
        self._systemd = helpers.systemd
        self._failures = helpers.failures
        self._read_ahead = helpers.read_ahead
        self._contexts = helpers.contexts
        self._is_over = False
        self._abort_lock = threading.Lock()
        self._abort_fd: int | None = None
        self._is_unwanted = False

    def abort(self) -> None:
        """The target is not wanted any more."""
        with self._abort_lock:
            self._is_unwanted = True
            if self._abort_fd is not None:
                os.eventfd_write(self._abort_fd, 1)

    def carry_out(self) -> SwitchOutcome:
        """Carries out the whole switch. Never raises."""
        # Each counts as running until systemd says otherwise.
        outcome = SwitchOutcome(still_running=frozenset(self.others))
        try:
            self._switch(outcome)
        except LoadAborted:
            outcome.is_aborted = True
        except StartRefused as reason:
            outcome.is_refused, outcome.error = True, reason.error
            outcome.still_running = frozenset()  # they were not asked to stop
        except StopUnconfirmed as reason:
            outcome.still_running, outcome.error = reason.units, ModelStartFailed(str(reason))
        except SystemdError as reason:
            outcome.error = ModelStartFailed(str(reason))
        except OSError as reason:
            outcome.error = ModelStartFailed(f"the switch failed: {reason.strerror or reason}")
        except ProxyError as reason:
            outcome.error = reason
            outcome.is_own_failure = not isinstance(reason, PortTaken)
        except Exception:
            log.exception("switch_crashed")
            outcome.error = InternalError("the switch failed; see the proxy's journal")
        finally:
            self._close_abort_fd()
        # The error is kept, so it is copied: its traceback would keep every frame with its file descriptors.
        outcome.error = copy.copy(outcome.error)
        if self.target is not None:
            if outcome.resident is None and not outcome.is_refused:
                outcome.still_running |= self._stop_again(self.target.model.unit, outcome)
            outcome.load_s = time.monotonic() - self.began - outcome.stop_s
        self._is_over = True
        return outcome

    def _switch(self, outcome: SwitchOutcome) -> None:
        """
        Raises:
            StartRefused: nothing was touched.
            StopUnconfirmed, ProxyError, LoadAborted, SystemdError
            OSError: no file descriptor is left.
        """
        systemd = self._systemd.connected()
        if self.target is None:
            with systemd:
                self._stop_others(systemd, outcome, beside=[])
            return
        model = self.target.model
        with systemd:
            try:
                abort_fd = self._open_abort_fd()
                status = systemd.show([model.unit])[model.unit]
            except (OSError, SystemdError) as reason:
                said = f"model {model.id!r} was not started: {reason}"
                raise StartRefused(ModelStartFailed(said)) from reason
            timeout_s = self.target.health_timeout_s
            start = Start(systemd, model, self.target.backend, abort_fd, timeout_s, self.others)
            start.check(status, self._failures)
            if self._leaving:
                self._read_ahead.begin(model.unit, lambda: not self._is_over, status.command)
            running = self._stop_others(systemd, outcome, beside=[model.unit])
            if running or not status.is_stopped:  # it ended with the others, or was started by hand meanwhile
                status = systemd.show([model.unit])[model.unit]
            launched = start.launch(status)
        resident = start.wait_until_ready(launched)
        self._failures.note_success(model.unit)
        self._contexts.ready(resident.loaded)
        resident.note_restored(self._contexts.restore(resident.loaded, self.target.beginnings()).took_s)
        outcome.resident = resident

    def _stop_others(self, systemd: Systemd, outcome: SwitchOutcome, beside: Sequence[str]) -> frozenset[str]:
        """Saves the contexts of the others and stops them. Returns those of `beside` that run."""
        began = time.monotonic()
        for resident in self._leaving:
            self._contexts.save(resident.loaded)
            resident.backend.drop_idle()
        running = stop_units(systemd, self.others, beside)
        outcome.still_running = frozenset()
        self.has_stopped = True
        outcome.stop_s = time.monotonic() - began
        return running

    def _stop_again(self, unit: str, outcome: SwitchOutcome) -> frozenset[str]:
        """Stops a target that did not become ready, so that it neither stays half loaded nor is restarted by systemd.
        Returns the unit if it may still run. Never raises."""
        try:
            stop_units(self._systemd, [unit])
            if outcome.error is not None and outcome.is_own_failure:
                status = self._systemd.show([unit])[unit]
                self._failures.note_failure(unit, outcome.error, Condition.of(status), time.monotonic())
        except StopUnconfirmed as reason:
            log.error("stop_failed unit=%s reason=%r", unit, str(reason))
            return frozenset([unit])
        except Exception:
            log.exception("stop_crashed unit=%s", unit)
            return frozenset([unit])
        return frozenset()

    def _open_abort_fd(self) -> int:
        """
        Raises:
            OSError: no file descriptor is left.
        """
        with self._abort_lock:
            self._abort_fd = os.eventfd(int(self._is_unwanted), os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return self._abort_fd

    def _close_abort_fd(self) -> None:
        with self._abort_lock:
            if self._abort_fd is not None:
                os.close(self._abort_fd)
                self._abort_fd = None
