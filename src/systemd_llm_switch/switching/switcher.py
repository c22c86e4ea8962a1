"""The one lock: turns events into the scheduler's decisions and performs them on systemd's units.

Under the lock decisions are made, nothing else; systemd, HTTP and waiting happen outside it, switches in a
thread of their own. Knows nothing of HTTP requests: a caller holds a `Lease`.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.config.records import Config, Model
from systemd_llm_switch.errors import (
    ModelNotLoaded,
    ModelStartFailed,
    ProxyError,
    ShuttingDown,
)
from systemd_llm_switch.scheduler import (
    Abort,
    Action,
    Grant,
    HoldEnded,
    Interrupt,
    Policy,
    Reject,
    Scheduler,
    Spec,
    State,
    Switch,
)
from systemd_llm_switch.switching.failures import Failures
from systemd_llm_switch.switching.leases import Lease, interruption, rejection
from systemd_llm_switch.switching.loading import LoadAborted, Resident, Start, quote_journal
from systemd_llm_switch.switching.read_ahead import ReadAhead
from systemd_llm_switch.switching.status import ModelStatus, SwitchRecord
from systemd_llm_switch.switching.switch_log import History
from systemd_llm_switch.switching.switch_run import Outcome, SwitchRun, Target
from systemd_llm_switch.systemd.manager import Systemd, SystemdError, UnitStatus
from systemd_llm_switch.waiting import LONGEST_WAIT_S, Client

log = logging.getLogger(__name__)

_TIMER_PAUSE_S = 1.0  # after what should never happen: not a thousand times a second


class Switcher:
    """Grants leases on models; at most one switch is under way. Thread-safe."""

    def __init__(self, systemd: Systemd, config: Config) -> None:
        self._systemd = systemd
        self._config = config
        self._scheduler = Scheduler(Policy.of(config.server), map(Spec.of, config.models.values()))
        self._lock = threading.Lock()
        self._timer_wakeup = threading.Condition(self._lock)
        self._timer_deadline: float | None = None
        self._numbers = itertools.count(1)
        self._leases: dict[int, Lease] = {}
        self._residents: dict[str, Resident] = {}
        self._backends: dict[str, Backend] = {}
        self._run: SwitchRun | None = None
        self._runs: queue.SimpleQueue[SwitchRun] = queue.SimpleQueue()
        self._stops: Counter[str] = Counter()
        self._failures = Failures()
        self._read_ahead = ReadAhead(systemd)
        self._history = History()
        self._is_closing = False
        # Both live as long as the proxy: where a decision is made, no thread may be refused by the kernel.
        threading.Thread(target=self._keep_time, name="switcher-timer", daemon=True).start()
        threading.Thread(target=self._carry_out_all, name="switches", daemon=True).start()

    # --- leases: the hot path -------------------------------------------------------------------------

    def lease(self, model: Model) -> Lease:
        """Asks for a model. Does not block; wait on the lease, and give it back with `release`.

        Raises:
            ShuttingDown: the proxy is being stopped.
        """
        resident = self._residents.get(model.unit)
        if resident is not None and resident.watch.has_exited():
            self._lose(resident)
        lease = Lease(next(self._numbers), model)
        with self._lock:
            if self._is_closing:
                raise _shutting_down()
            self._leases[lease.number] = lease
            actions = self._scheduler.submit(lease.number, model.unit, time.monotonic())
            self._begin(actions)
        self._perform(actions)
        if not lease.is_resolved and self._run is None and model.unit not in self._residents:
            # Others drain or have their right of way: by the time they go, the file is in memory.
            self._read_ahead.begin(model.unit, lambda: self._scheduler.waiting(model.unit) > 0)
        return lease

    def release(self, lease: Lease) -> None:
        """Gives a lease back, granted or still waiting. Idempotent; does not block."""
        with self._lock:
            if self._leases.pop(lease.number, None) is None:
                return
            actions = self._scheduler.finish(lease.number, time.monotonic())
            self._begin(actions)
        lease.forget()
        self._perform(actions)

    # --- what happens elsewhere -----------------------------------------------------------------------

    def configure(self, config: Config) -> None:
        """Takes a new config over. Running models are not touched."""
        with self._lock:
            self._config = config
            specs = map(Spec.of, config.models.values())
            actions = self._scheduler.configure(Policy.of(config.server), specs, time.monotonic())
            self._begin(actions)
        self._perform(actions)

    def adopt(self, *, is_look: bool = False) -> None:
        """Takes over what runs already and is ready, so that a restarted proxy reloads nothing.

        Units that run on the same port are left to the next switch: nobody can tell which of them answers.
        A mere look leaves alone what could not stay: what does not fit beside the others, and all under a hold.
        Blocks for a question to systemd.

        Raises:
            SystemdError: systemd cannot be asked.
        """
        self._notice_losses()  # what is gone is in nobody's way
        with self._lock:
            models = {model.unit: model for model in self._config.models.values()}
            known = self._scheduler.residents
        statuses = self._systemd.show(models)
        running = [models[unit] for unit, status in statuses.items() if status.is_running]
        urls = Counter(model.llama_url for model in running)
        for model in running:
            if model.unit not in known and urls[model.llama_url] == 1:
                self._adopt_one(model, statuses[model.unit], is_look)

    def _adopt_one(self, model: Model, status: UnitStatus, is_look: bool) -> None:
        abort_fd = os.eventfd(1, os.EFD_CLOEXEC)  # what still loads is left to the first request for it
        try:
            rivals = [it.unit for it in self._config.models.values() if it.unit != model.unit]
            start = Start(self._systemd, model, self.backend(model.llama_url), abort_fd, rivals)
            resident = start.wait_until_ready(start.launch(status), health_timeout_s=1.0)
        except (ProxyError, LoadAborted, OSError) as reason:
            level = logging.DEBUG if is_look else logging.INFO  # there may be many looks while one model loads
            log.log(level, "not_adopted model=%s unit=%s reason=%r", model.id, model.unit, str(reason) or "not ready")
            return
        finally:
            os.close(abort_fd)
        with self._lock:
            is_free = self._scheduler.state(model.unit) in (State.STOPPED, State.FAILED)
            if not is_free or self._is_changing(model.unit) or resident.watch.has_exited():
                return  # a switch that began meanwhile stops it, or did
            if is_look and (self._scheduler.on_hold or not self._scheduler.fits(model.unit)):
                return
            self._residents[model.unit] = resident
            self._history.forget_error(model.unit)
            actions = self._scheduler.adopt(model.unit, time.monotonic())
            self._begin(actions)
        log.info("adopted model=%s unit=%s pid=%d", model.id, model.unit, resident.watch.pid)
        self._perform(actions)

    def _notice_losses(self) -> None:
        for resident in list(self._residents.values()):
            if resident.watch.has_exited():
                self._lose(resident)

    def _lose(self, resident: Resident) -> None:
        """The resident's process is gone; whoever comes next has it started again."""
        unit = resident.model.unit
        with self._lock:
            if self._residents.get(unit) is not resident or self._is_changing(unit):
                return  # known already, or the switch under way will tell what became of it
            del self._residents[unit]
            actions = self._scheduler.lost(unit, time.monotonic())
            self._begin(actions)
        resident.backend.drop_idle()
        log.warning("unit_lost model=%s unit=%s pid=%d", resident.model.id, unit, resident.watch.pid)
        self._perform(actions)

    def explain_loss(self, lease: Lease) -> str | None:
        """Why a backend's connection broke: systemd's words and the journal's if its process ended, else None.

        Blocks up to a quarter of a second: a connection may break a moment before its process is gone. One that
        takes longer to end, as systemd tells it to, is waited for before its unit is used again.
        """
        resident = lease.resident
        if resident is None:
            return None
        unit = resident.model.unit
        if not Client(None).wait_readable(resident.watch.fileno(), 0.25):
            return self._explain_end(unit)
        self._lose(resident)
        try:
            status = self._systemd.show_after_exit(unit, resident.watch.pid)
        except SystemdError as error:
            return str(error)
        lines = self._systemd.journal(resident.invocation_id)
        words = [f"unit {unit}: {status.describe()}.", f"See `journalctl --user -u {unit}`.", quote_journal(lines)]
        return " ".join(word for word in words if word)

    def _explain_end(self, unit: str) -> str | None:
        """What systemd says of a unit whose process lives; None if that is meant to go on living."""
        try:
            status = self._systemd.show([unit])[unit]
        except SystemdError as error:
            return str(error)
        if status.is_running:
            return None
        self.unload([unit], force=False)
        return f"unit {unit}: {status.describe()}; somebody stops it."

    def distrust(self, lease: Lease) -> None:
        """The backend did not answer in time: its unit is stopped, once nothing runs on it, before it is used
        again. Does not block."""
        self.unload([lease.model.unit], force=False)

    # --- the operator ---------------------------------------------------------------------------------

    def unload(self, units: Iterable[str], force: bool) -> None:
        """Has units stopped, after their running requests or, with `force`, at once. Does not block."""
        self._decide(lambda now: self._scheduler.unload(units, force, now))

    def hold(self, until: float | None, force: bool) -> None:
        """Turns requests away until `until` (`time.monotonic`) or `release_hold`, and has everything unloaded that
        is known to be loaded. Does not block."""
        self._decide(lambda now: self._scheduler.hold(until, force, now))
        log.info("hold minutes=%s", "-" if until is None else round((until - time.monotonic()) / 60, 1))

    def release_hold(self) -> None:
        """Serves requests again."""
        self._decide(self._scheduler.release_hold)
        log.info("hold_released")

    def find(self, units: Iterable[str]) -> None:
        """Has the scheduler know of those that run without its doing, ready or not. Blocks for a question to systemd.

        Raises:
            ModelStartFailed: systemd cannot be asked.
        """
        try:
            statuses = self._systemd.show(units)
        except SystemdError as error:
            raise ModelStartFailed(str(error)) from error
        for unit, status in statuses.items():
            if not status.is_stopped:
                self._decide(partial(self._scheduler.found, unit))

    def stops(self) -> Counter[str]:
        """How often each unit was stopped, for `is_stopping`."""
        with self._lock:
            return self._stops.copy()

    def is_stopping(self, units: Iterable[str] | None, since: Counter[str]) -> bool:
        """Whether one of `units` was not stopped since; of None, whether a hold still has something to unload.

        Raises:
            ShuttingDown: nobody waits for it any more; the unloading goes on.
            ModelStartFailed: it did not stop.
        """
        with self._lock:
            loaded = self._scheduler.residents
            if units is not None:
                left = [unit for unit in loaded.intersection(units) if self._stops[unit] == since[unit]]
            else:
                left = list(loaded) if self._scheduler.on_hold else []
            failed = next((error for unit in left if (error := self._history.last_error(unit))), None)
            if left and self._is_closing:
                raise _shutting_down()
            if failed is not None and self._run is None:
                raise ModelStartFailed(failed)
        return bool(left)

    def close(self) -> None:
        """Turns waiting requests away; running ones go on, models stay loaded."""
        with self._lock:
            self._is_closing = True
            waiting = [lease for lease in self._leases.values() if not lease.is_resolved]
            self._timer_wakeup.notify_all()
        for lease in waiting:
            lease.reject(_shutting_down())

    def interrupt_all(self) -> None:
        """Ends what still runs while the proxy is being stopped; each is told so."""
        with self._lock:
            running = list(self._leases.values())
        for lease in running:
            lease.interrupt(_shutting_down())

    # --- reading --------------------------------------------------------------------------------------

    def backend(self, url: str) -> Backend:
        """The backend behind a URL, with its idle connections."""
        backend = self._backends.get(url)
        return backend if backend is not None else self._backends.setdefault(url, Backend(url))

    def loaded(self, model: Model) -> Resident:
        """The process of a model that is loaded.

        Raises:
            ModelNotLoaded
        """
        resident = self._residents.get(model.unit)
        if resident is None or resident.watch.has_exited():
            raise ModelNotLoaded(model.id)
        return resident

    def status(self) -> dict[str, ModelStatus]:
        """Every configured model, by id. Costs one poll for each loaded unit, no fork."""
        self._notice_losses()
        with self._lock:
            return {model.id: self._model_status(model) for model in self._config.models.values()}

    def _model_status(self, model: Model) -> ModelStatus:
        unit, scheduler = model.unit, self._scheduler
        resident = self._residents.get(unit)
        return ModelStatus(
            state=self._state(unit).value,
            unit=unit,
            in_flight=scheduler.in_flight(unit),
            waiting=scheduler.waiting(unit),
            loaded_since=resident.since if resident is not None else None,
            last_load_s=self._history.last_load_s(unit),
            last_error=self._history.last_error(unit),
        )

    def _state(self, unit: str) -> State:
        """The scheduler's word; but that the switch under way has stopped a unit, it hears once the switch is done."""
        state, run = self._scheduler.state(unit), self._run
        has_stopped = run is not None and run.has_stopped and unit in run.others
        return State.STOPPED if has_stopped and state is State.STOPPING else state

    def units(self) -> list[str]:
        """The unit of every configured model."""
        return [model.unit for model in self._config.models.values()]

    @property
    def present(self) -> frozenset[str]:
        """The units whose process may exist, as far as is known."""
        with self._lock:
            return self._scheduler.residents

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._scheduler.waiting_total

    @property
    def is_switching(self) -> bool:
        """Whether a switch is under way."""
        return self._run is not None

    @property
    def on_hold(self) -> bool:
        """Whether an operator keeps the VRAM free."""
        return self._scheduler.on_hold

    @property
    def hold_until(self) -> float | None:
        """When the hold ends, in seconds since the epoch; None without one, and for one that must be released."""
        until = self._scheduler.hold_until
        if until is None or until == math.inf:
            return None
        return round(time.time() + until - time.monotonic(), 1)

    def switches(self) -> Sequence[SwitchRecord]:
        """The last switches, oldest first."""
        return self._history.switches

    def _is_changing(self, unit: str) -> bool:
        """Whether the switch under way starts or stops the unit."""
        run = self._run
        return run is not None and (unit in run.others or (run.target is not None and run.target.model.unit == unit))

    # --- performing what was decided ------------------------------------------------------------------

    def _decide(self, event: Callable[[float], list[Action]]) -> None:
        """One event for the scheduler, and what follows from it."""
        with self._lock:
            actions = event(time.monotonic())
            self._begin(actions)
        self._perform(actions)

    def _begin(self, actions: Sequence[Action]) -> None:
        """What must change together with a decision, under the lock."""
        for action in actions:
            if isinstance(action, Grant):
                lease = self._leases[action.ticket]
                lease.resident = self._residents[lease.model.unit]
            elif isinstance(action, Switch):
                self._run = self._prepare(action)
                self._runs.put(self._run)
            elif isinstance(action, Abort) and self._run is not None:
                self._run.abort()
        deadline = self._scheduler.next_deadline()
        if deadline is not None and (self._timer_deadline is None or deadline < self._timer_deadline):
            self._timer_wakeup.notify_all()

    def _prepare(self, switch: Switch) -> SwitchRun:
        models = {model.unit: model for model in self._config.models.values()}
        others, target = list(switch.evict), None
        if switch.target is not None:
            model = models[switch.target]
            target = Target(model, self.backend(model.llama_url), self._config.server.health_timeout)
            stay = {switch.target, *switch.keep, *_harmless(models, switch)}
            others = [unit for unit in dict.fromkeys([*switch.evict, *models]) if unit not in stay]
        leaving = [resident for unit, resident in self._residents.items() if unit in others]
        return SwitchRun(self._systemd, self._failures, self._read_ahead, target, others, leaving)

    def _perform(self, actions: Sequence[Action]) -> None:
        """What follows from a decision, outside the lock."""
        for action in actions:
            if isinstance(action, Grant | Reject | Interrupt):
                lease = self._leases.get(action.ticket)
                if lease is None:
                    continue  # it was given back meanwhile
                if isinstance(action, Grant):
                    lease.grant()
                elif isinstance(action, Reject):
                    lease.reject(rejection(action, lease.model, self._config))
                else:
                    lease.interrupt(interruption(lease.model))
            elif isinstance(action, HoldEnded):
                log.info("hold_ended")

    def _carry_out_all(self) -> None:
        """The switches' thread: one after the other, for ever."""
        while True:
            try:
                self._carry_out(self._runs.get())
            except Exception:
                log.exception("switch_crashed")

    def _carry_out(self, run: SwitchRun) -> None:
        """One switch, from the first question to systemd to the scheduler's next decision."""
        outcome = run.carry_out()
        try:
            self._history.note(run, outcome)
        finally:  # else no switch would ever follow
            with self._lock:
                self._run = None
                actions = self._conclude(run, outcome)
                self._begin(actions)
            self._perform(actions)

    def _conclude(self, run: SwitchRun, outcome: Outcome) -> list[Action]:
        """Takes in what is loaded now; the scheduler's answer to it."""
        now = time.monotonic()
        if outcome.is_refused:
            return self._scheduler.switch_refused(now, outcome.error)
        stopped = set(run.others) - outcome.still_running
        if run.target is not None and outcome.resident is None:
            stopped.add(run.target.model.unit)
        for unit in stopped:
            self._residents.pop(unit, None)
            self._stops[unit] += 1
        if outcome.resident is not None:
            self._residents[outcome.resident.model.unit] = outcome.resident
        if outcome.error is not None:
            return self._scheduler.switch_failed(now, outcome.error, outcome.still_running, outcome.is_out_of_memory)
        if outcome.is_aborted:
            return self._scheduler.switch_aborted(now, outcome.still_running)
        return self._scheduler.switch_done(now, now - run.began)

    def _keep_time(self) -> None:
        """The timer's thread: tells the scheduler when one of its deadlines has come."""
        while not self._is_closing:
            try:
                self._wait_for_deadline()
            except Exception:
                log.exception("timer_crashed")  # the next deadline is another event
                time.sleep(_TIMER_PAUSE_S)

    def _wait_for_deadline(self) -> None:
        with self._timer_wakeup:
            deadline = self._timer_deadline = self._scheduler.next_deadline()
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is None or left_s > 0:
                self._timer_wakeup.wait(left_s if left_s is None else min(left_s, LONGEST_WAIT_S))
            if self._is_closing:
                return
            is_due = deadline is not None and time.monotonic() >= deadline
            actions = self._scheduler.tick(time.monotonic()) if is_due else []
            self._begin(actions)
        self._perform(actions)


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the proxy is being stopped; try again in a moment", retry_after_s=3)


def _harmless(models: Mapping[str, Model], switch: Switch) -> Iterator[str]:
    """The units on the CPU with a port of their own: started by hand, they may run on beside the target."""
    ports = {model.llama_url for unit, model in models.items() if unit == switch.target or unit in switch.keep}
    for unit, model in models.items():
        if model.vram == 0 and model.llama_url not in ports and unit not in switch.evict:
            yield unit
