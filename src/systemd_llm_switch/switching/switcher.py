"""The one lock: passes events to the scheduler and performs its decisions on systemd's units.

Only decisions are made under the lock. systemd, HTTP and waiting happen outside it, and another thread carries out the
switches. Must not know HTTP requests: a caller holds a `Lease`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.config.records import Config, Model
from systemd_llm_switch.contexts.fingerprint import Fingerprint
from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.errors import Cancelled, ModelNotLoaded, ShuttingDown
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
from systemd_llm_switch.switching.leases import Lease, Leases
from systemd_llm_switch.switching.pauses import Pauses
from systemd_llm_switch.switching.queue import Waiter
from systemd_llm_switch.switching.read_ahead import ReadAhead
from systemd_llm_switch.switching.resident import Resident
from systemd_llm_switch.switching.status import UnitSnapshot
from systemd_llm_switch.switching.switch_log import SwitchLog
from systemd_llm_switch.switching.switch_run import SwitchOutcome, SwitchRun
from systemd_llm_switch.switching.switch_thread import SwitchThread
from systemd_llm_switch.switching.timer import Timer
from systemd_llm_switch.switching.unloading import Unloading, Unloadings
from systemd_llm_switch.systemd.manager import Systemd
from systemd_llm_switch.waiting import Signal

log = logging.getLogger(__name__)


class Switcher:
    """Grants leases on models; at most one switch is under way. Thread-safe.

    Every change is made under the lock. Some reads need no lock: each is one atomic look-up, and a stale result is
    safe.

    - `lease` looks for the model's process in `_residents`. If that has ended, `lose` looks again under the lock.
    - `_perform` looks for the lease of an action. A missing lease was given back meanwhile.
    - `loaded` and `notice_losses` look at processes, which may end at any moment anyway.
    - `backend` never replaces an entry of `_backends`.
    - `waiting`, `is_switching`, `on_hold` and `hold_until` are shown to people, or a decision under the lock follows.
    """

    def __init__(self, systemd: Systemd, config: Config, contexts: Contexts) -> None:
        self.switch_log = SwitchLog()
        self._config = config
        self._contexts = contexts
        self.pauses = Pauses(contexts)
        self._scheduler = Scheduler(Policy.of(config.server), map(Spec.of, config.models.values()))
        self._lock = threading.Lock()
        self._timer = Timer(self._lock, self._scheduler.next_deadline, self._tick)
        self._leases = Leases()
        self._residents: dict[str, Resident] = {}
        self._backends: dict[tuple[str, str | None], Backend] = {}
        self._run: SwitchRun | None = None
        self._unloadings = Unloadings(self.switch_log.last_error)
        self._read_ahead = ReadAhead(systemd)
        self._switches = SwitchThread(systemd, self._read_ahead, contexts, self._end_switch)
        self._is_closing = False
        # Both threads start now, so that a decision never needs a new one: the kernel might refuse it.
        self._timer.start()
        self._switches.start()

    # --- leases: the hot path -------------------------------------------------------------------------

    def make_way(self) -> None:
        """A request comes, which does not wait for what is read ahead. Does not block."""
        self._contexts.make_way()

    def lease(self, model: Model) -> Lease:
        """Asks for a model. Does not block; wait on the lease, and give it back with `release`.

        Raises:
            ShuttingDown: the proxy is being stopped.
        """
        self.make_way()
        resident = self._residents.get(model.unit)
        if resident is not None and resident.watch.has_exited():
            self.lose(resident)
        with self._lock:
            if self._is_closing:
                raise _shutting_down()
            lease = self._leases.issue(model)
            actions = self._scheduler.submit(lease.number, model.unit, time.monotonic())
            self._begin(actions)
        self._perform(actions)
        if not lease.is_resolved and self._run is None and model.unit not in self._residents:
            # Other models drain or have their right of way. The file is in memory by the time they go.
            self._read_ahead.begin(model.unit, lambda: self._scheduler.waiting(model.unit) > 0)
        return lease

    def release(self, lease: Lease) -> None:
        """Gives a lease back, granted or still waiting. Idempotent; does not block."""
        with self._lock:
            if not self._leases.withdraw(lease):
                return
            actions = self._scheduler.finish(lease.number, time.monotonic())
            self._begin(actions)
        lease.forget()
        self._perform(actions)

    def keeps_contexts(self, model: Model) -> bool:
        """Whether `note_reply` has a use for the replies of a model."""
        return self._contexts.keeps(model.unit)

    def note_reply(
        self, lease: Lease, beginning: Callable[[], Fingerprint], message: bytes, is_chat: bool, timings: object
    ) -> None:
        """The backend has answered a request; the contexts must know it before the lease is given back."""
        self._contexts.note_reply(lease.model.unit, lease.start, beginning, message, is_chat, timings)

    def note_chat(self, model: Model, message: bytes) -> None:
        """The client has its answer."""
        self._contexts.note_chat(model.unit, message)

    def distrust(self, lease: Lease) -> None:
        """The lease's backend did not answer in time. Its unit is stopped once nothing runs on it, and the next request
        starts it again. Does not block."""
        self.unload([lease.model.unit], force=False)

    # --- changes outside of requests -----------------------------------------------------------------------

    def configure(self, config: Config) -> None:
        """Replaces the config. Running models are not touched."""
        with self._lock:
            self._config = config
            specs = map(Spec.of, config.models.values())
            actions = self._scheduler.configure(Policy.of(config.server), specs, time.monotonic())
            self._begin(actions)
        self._perform(actions)

    def take_in(self, resident: Resident, *, is_look: bool) -> bool:
        """Uses a process that was found ready; False if it is not wanted. With `is_look`, only a process that can stay
        loaded is wanted."""
        unit = resident.model.unit
        with self._lock:
            is_free = self._scheduler.state(unit) in (State.STOPPED, State.FAILED)
            if not is_free or self._is_changing(unit) or resident.watch.has_exited():
                return False  # a switch began meanwhile, and stops it or has stopped it
            if is_look and (self._scheduler.on_hold or not self._scheduler.fits(unit)):
                return False
            self._residents[unit] = resident
            self.switch_log.forget_error(unit)
            actions = self._scheduler.adopt(unit, time.monotonic())
            self._begin(actions)
        self._perform(actions)
        return True

    def note_found(self, unit: str) -> None:
        """The unit runs, ready or not, and the proxy did not start it. Does not block."""
        self._decide(lambda now: self._scheduler.found(unit, now))

    def notice_losses(self) -> None:
        """Checks that the processes of all loaded models still live. Costs one poll for each; does not block."""
        for resident in list(self._residents.values()):
            if resident.watch.has_exited():
                self.lose(resident)

    def lose(self, resident: Resident) -> None:
        """The resident's process is gone; the next request has it started again. Idempotent; does not block."""
        unit = resident.model.unit
        with self._lock:
            if self._residents.get(unit) is not resident or self._is_changing(unit):
                return  # this is known already, or the switch in progress reports it when it ends
            del self._residents[unit]
            self._unloadings.note_stopped((unit,))  # before the decision, which may load it again
            actions = self._scheduler.lost(unit, time.monotonic())
            self._begin(actions)
        resident.backend.drop_idle()
        log.warning("unit_lost model=%s unit=%s pid=%d", resident.model.id, unit, resident.watch.pid)
        self._perform(actions)

    # --- the operator ---------------------------------------------------------------------------------

    def unload(self, units: Iterable[str], force: bool, unloading: Unloading | None = None) -> None:
        """Begins to stop units: after their running requests or, with `force`, at once. Does not block. To wait for the
        end, pass an `unloading`, and `forget` it afterwards."""
        self._decide(lambda now: self._scheduler.unload(units, force, now), unloading)

    def hold(self, until: float | None, force: bool, pause: bool = False) -> None:
        """Rejects requests until `until` (`time.monotonic`) or `release_hold`, and unloads everything that is known to
        be loaded. With `pause`, running requests that can go on later are paused first. Does not block."""
        if pause:
            self._decide(lambda now: self._scheduler.hold(until, False, now))
            with self._lock:
                running = [lease for lease in self._leases.all() if lease.is_resolved]
            self.pauses.begin(running)
        self._decide(lambda now: self._scheduler.hold(until, force, now))
        log.info("hold minutes=%s", "-" if until is None else round((until - time.monotonic()) / 60, 1))

    def release_hold(self) -> None:
        """Serves requests again."""
        self._decide(self._scheduler.release_hold)
        self._end_pauses()
        log.info("hold_released")

    def await_hold_end(self, signal: Signal) -> None:
        """Sets `signal` once requests are served again, or the proxy is being stopped. Does not block."""
        self.pauses.add(signal)
        self._end_pauses()

    def _end_pauses(self) -> None:
        """Lets paused requests go on, unless a hold is in force."""
        with self._lock:
            is_over = self._is_closing or not self._scheduler.on_hold
            signals = self.pauses.take() if is_over else []
        for signal in signals:
            signal.set()

    def watch(self, unloading: Unloading) -> None:
        """Resolves `unloading` once its units have stopped. Does not block; `forget` it afterwards."""
        self._decide(self._scheduler.tick, unloading)

    def forget(self, unloading: Unloading) -> None:
        """Ends a wait whose caller has gone. Idempotent; the units go on stopping."""
        with self._lock:
            self._unloadings.discard(unloading)

    def cancel(self, number: int) -> bool:
        """Rejects the waiting request with that number; False if none has it. Does not block."""
        with self._lock:
            lease = next((it for it in self._leases.waiting() if it.number == number), None)
        if lease is None:
            return False
        lease.reject(Cancelled("an operator took this request out of the queue"))
        log.info("request_cancelled model=%s", lease.model.id)
        return True

    def close(self) -> None:
        """Rejects waiting requests; running ones go on, models stay loaded."""
        with self._lock:
            self._is_closing = True
            waiting = self._leases.waiting()
            self._timer.close()
            self._resolve_unloadings()
        for lease in waiting:
            lease.reject(_shutting_down())
        self._end_pauses()

    def interrupt_all(self) -> None:
        """Ends what still runs while the proxy is being stopped; each request gets an error that says so."""
        with self._lock:
            running = self._leases.all()
        for lease in running:
            lease.interrupt(_shutting_down())

    # --- reading --------------------------------------------------------------------------------------

    @property
    def is_closing(self) -> bool:
        """Whether the proxy is being stopped."""
        return self._is_closing

    def backend(self, model: Model) -> Backend:
        """The backend behind a model's URL, with its idle connections. Another key is another backend."""
        place = (model.llama_url, model.backend_key)
        backend = self._backends.get(place)
        return backend if backend is not None else self._backends.setdefault(place, Backend(*place))

    def loaded(self, model: Model) -> Resident:
        """The process of a model that is loaded.

        Raises:
            ModelNotLoaded
        """
        resident = self._residents.get(model.unit)
        if resident is None or resident.watch.has_exited():
            raise ModelNotLoaded(model.id)
        return resident

    def models(self) -> list[Model]:
        """The configured models."""
        return list(self._config.models.values())

    def units(self) -> list[str]:
        """The unit of every configured model."""
        return [model.unit for model in self.models()]

    def snapshot(self) -> list[UnitSnapshot]:
        """The units of all configured models at one moment."""
        with self._lock:
            return [self._unit_snapshot(model) for model in self.models()]

    def _unit_snapshot(self, model: Model) -> UnitSnapshot:
        unit, scheduler, run = model.unit, self._scheduler, self._run
        resident, state = self._residents.get(unit), scheduler.state(unit)
        # The scheduler learns that the others have stopped only when the switch ends.
        if state is State.STOPPING and run is not None and run.has_stopped and unit in run.others:
            state = State.STOPPED
        since = resident.since if resident is not None else None
        is_target = run is not None and run.target is not None and run.target.model.unit == unit
        began = run.began if run is not None and is_target else None
        return UnitSnapshot(model, state, scheduler.in_flight(unit), scheduler.waiting(unit), since, began)

    @property
    def present(self) -> frozenset[str]:
        """The units that are known to have a process, or may have one."""
        with self._lock:
            return self._scheduler.residents

    def waiters(self) -> list[Waiter]:
        """The requests that wait for their turn, the oldest first."""
        with self._lock:
            return [Waiter(it.number, it.model, it.submitted) for it in self._leases.waiting()]

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
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
        """When the hold ends (`time.monotonic`; inf: when it is released); None without one."""
        return self._scheduler.hold_until

    def _is_changing(self, unit: str) -> bool:
        """Whether the switch under way starts or stops the unit."""
        run = self._run
        return run is not None and (unit in run.others or (run.target is not None and run.target.model.unit == unit))

    # --- performing what was decided ------------------------------------------------------------------

    def _decide(self, event: Callable[[float], list[Action]], unloading: Unloading | None = None) -> None:
        """Passes one event to the scheduler and performs the actions."""
        with self._lock:
            if unloading is not None:
                unloading.note_loaded(self._scheduler.residents)  # before the event, which may load another one
                self._unloadings.add(unloading)
            actions = event(time.monotonic())
            self._begin(actions)
        self._perform(actions)

    def _tick(self) -> None:
        self._decide(self._scheduler.tick)

    def _begin(self, actions: Sequence[Action]) -> None:
        """Makes the changes that belong to a decision. The caller must hold the lock."""
        for action in actions:
            if isinstance(action, Grant):
                self._leases.promise(action.ticket, self._residents)
            elif isinstance(action, Switch):
                residents = self._residents.values()
                self._run = self._switches.begin(action, self._config, residents, self.backend, self._beginnings)
            elif isinstance(action, Abort) and self._run is not None:
                self._run.abort()
        self._timer.note_change()
        if self._unloadings:
            self._resolve_unloadings()

    def _beginnings(self, unit: str) -> list[Fingerprint]:
        """The beginnings of the requests that wait for a unit, the oldest first."""
        with self._lock:
            return [lease.beginning for lease in self._leases.waiting() if lease.model.unit == unit]

    def _resolve_unloadings(self) -> None:
        closing = _shutting_down() if self._is_closing else None
        loaded = self._scheduler.residents
        self._unloadings.resolve(loaded, self._scheduler.on_hold, closing, is_switching=self.is_switching)

    def _perform(self, actions: Sequence[Action], began: float | None = None) -> None:
        """Performs actions. The caller must not hold the lock. `began` is when the switch began whose end led to
        them."""
        for action in actions:
            if isinstance(action, Grant | Reject | Interrupt):
                self._leases.perform(action, self._config, began)
            elif isinstance(action, HoldEnded):
                log.info("hold_ended")
                self._end_pauses()

    def _end_switch(self, run: SwitchRun, outcome: SwitchOutcome) -> None:
        """Ends the switch in progress. Called in the thread for switches."""
        try:
            self.switch_log.note(run, outcome)
        finally:  # without this, no other switch could ever begin
            with self._lock:
                self._run = None
                actions = self._conclude(run, outcome)
                self._begin(actions)
            self._perform(actions, run.began)

    def _conclude(self, run: SwitchRun, outcome: SwitchOutcome) -> list[Action]:
        """Notes what is loaded now, and returns the scheduler's actions. The caller must hold the lock."""
        now = time.monotonic()
        if outcome.is_refused:
            return self._scheduler.switch_refused(now, outcome.error)
        stopped = set(run.others) - outcome.still_running
        if run.target is not None and outcome.resident is None:
            stopped |= {run.target.model.unit} - outcome.still_running
        for unit in stopped:
            self._residents.pop(unit, None)
        self._unloadings.note_stopped(stopped)
        if outcome.resident is not None:
            self._residents[outcome.resident.model.unit] = outcome.resident
        if outcome.error is not None:
            return self._scheduler.switch_failed(now, outcome.error, outcome.still_running, outcome.is_out_of_memory)
        if outcome.is_aborted:
            return self._scheduler.switch_aborted(now, outcome.still_running)
        return self._scheduler.switch_done(now, now - run.began)


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the proxy is being stopped; try again in a moment", retry_after_s=3)
