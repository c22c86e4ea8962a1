"""Who runs, who waits, who drains, who is evicted: events in, actions out as values.

Pure: no thread, no I/O, no clock. The caller holds a lock, passes `now` (seconds, monotonic) into every
event, and performs the returned actions in order, outside the lock. docs/scheduling.md has the policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from .decisions import (
    Abort,
    Action,
    Grant,
    HoldEnded,
    Interrupt,
    Policy,
    Reason,
    Reject,
    State,
    Switch,
)
from .placement import Spec, fit_together
from .planning import Placement, Planner, typical_cost_s
from .units import Unit

RETRY_EVICTION_S = 30.0  # an unload that failed is not tried again sooner, unless somebody waits for it
INDEFINITE_HOLD_RETRY_S = 30.0


@dataclass(slots=True, eq=False)
class _SwitchInProgress:
    target: Unit | None
    evict: tuple[Unit, ...]
    keep: tuple[Unit, ...]
    were_up: tuple[Unit, ...]  # of the evicted: they serve on if nothing is stopped after all
    ready_at: float  # as far as was measured
    abandoned_at: float | None = None
    is_aborted: bool = False


class Scheduler:
    """Keyed by unit name. Not thread-safe: its caller has the lock."""

    planner: type[Planner] = Planner  # the policy; a simulation may try another

    def __init__(self, policy: Policy, specs: Iterable[Spec] = ()) -> None:
        self._policy = policy
        self._units = {spec.unit: Unit(spec) for spec in specs}
        self._running: dict[int, Unit] = {}  # those of lost units included: each holds a thread
        self._waiting: dict[int, Unit] = {}  # in the order of arrival
        self._switch: _SwitchInProgress | None = None
        self._hold_until: float | None = None  # None: no hold; inf: until released
        self._deadline: float | None = None
        self._next_turn_at = -math.inf  # when the next waiting unit is expected to be ready

    # --- requests -----------------------------------------------------------------------------------

    def submit(self, ticket: int, unit: str, now: float) -> list[Action]:
        """A request asks for `unit`; its ticket is answered by one Grant or one Reject, now or later."""
        wanted = self._units.get(unit)
        if wanted is None or not wanted.is_known:
            return [Reject(ticket, Reason.UNKNOWN_UNIT)]
        if self._hold_until is not None:
            return [self._reject_on_hold(ticket, now)]
        wanted.note_request(now)
        is_open = wanted.state is State.READY and not wanted.is_stale
        if is_open and len(self._running) < self._policy.in_flight_limit:
            return [self._grant(ticket, wanted)]
        if len(self._waiting) >= self._policy.queue_limit:
            return [Reject(ticket, Reason.QUEUE_FULL, _retry_after(self._next_turn_at - now))]
        self._waiting[ticket] = wanted
        wanted.waiting[ticket] = now
        return self._settle(now)

    def finish(self, ticket: int, now: float) -> list[Action]:
        """The ticket is over, waiting or running: served, failed, or its client left. Idempotent."""
        unit = self._running.pop(ticket, None)
        if unit is None:
            return self._leave_queue(ticket, now)
        unit.running.pop(ticket, None)  # not there if the unit was lost meanwhile
        unit.used_at = now
        if self._waiting or unit.state is not State.READY:
            return self._settle(now)
        if unit.spec.ttl_s is not None and not unit.running:
            idles_out_at = now + unit.spec.ttl_s
            self._deadline = idles_out_at if self._deadline is None else min(self._deadline, idles_out_at)
        return []

    def _leave_queue(self, ticket: int, now: float) -> list[Action]:
        unit = self._waiting.pop(ticket, None)
        if unit is None:
            return []
        del unit.waiting[ticket]
        return self._settle(now)

    # --- answers to a Switch ------------------------------------------------------------------------

    def switch_done(self, now: float, cost_s: float) -> list[Action]:
        """The evicted are confirmed stopped and the target, if any, is ready, after `cost_s` in all."""
        switch = self._end_switch(now)
        if switch.target is not None:
            switch.target.become_ready(now)
            switch.target.note_cost(cost_s)
            switch.target.is_alone = False
        return self._settle(now)

    def switch_failed(
        self,
        now: float,
        cause: object,
        resident: frozenset[str] = frozenset(),
        out_of_memory: bool = False,
    ) -> list[Action]:
        """The target did not get ready and is stopped again, or one of the evicted did not stop.

        `resident` are the units that systemd says are still active. The tickets that wait for the target are rejected
        with the cause; but if memory was short beside other units, the target is tried once more alone. Without a
        target, the tickets that wait for a unit that did not stop are rejected.
        """
        switch = self._end_switch(now, resident)
        if switch.target is None:
            refused = [unit for unit in switch.evict if unit.name in resident]
        else:
            switch.target.is_alone = out_of_memory and bool(switch.keep)  # a start alone keeps nobody
            self._confirm_stopped(switch.target, resident, State.FAILED, now)
            refused = [] if switch.target.is_alone else [switch.target]
        actions = [it for unit in refused for it in self._reject_waiting(unit, Reason.START_FAILED, cause)]
        return actions + self._settle(now)

    def switch_aborted(self, now: float, resident: frozenset[str] = frozenset()) -> list[Action]:
        """The target is stopped again, as Abort asked. Tickets that wait for it by now get a new Switch."""
        switch = self._end_switch(now, resident)
        if switch.target is not None:
            self._confirm_stopped(switch.target, resident, State.STOPPED, now)
        return self._settle(now)

    def switch_refused(self, now: float, cause: object) -> list[Action]:
        """The target cannot be started as it is, so nothing was stopped for it: what served goes on serving.

        A unit that was to be stopped for another reason (an unconfirmed stop, a start by hand) still serves nobody.
        """
        if self._switch is None or self._switch.target is None:
            raise RuntimeError("no switch to a target is in progress")
        switch, target, self._switch = self._switch, self._switch.target, None
        for unit in switch.evict:
            if unit in switch.were_up:
                unit.state = State.READY
            elif not unit.is_leaving:  # otherwise an operator wants it stopped, and that was not tried yet
                self._leave_unconfirmed(unit, now)
        target.become_stopped(State.FAILED)
        return self._reject_waiting(target, Reason.START_FAILED, cause) + self._settle(now)

    # --- what was seen of a unit --------------------------------------------------------------------

    def lost(self, unit: str, now: float) -> list[Action]:
        """The unit's process is gone. Ignored for one that is not loaded, or that a Switch is changing."""
        gone = self._units.get(unit)
        if gone is None or gone.loaded is None or self._is_changing(gone):
            return []
        gone.become_stopped()
        return self._settle(now)

    def adopt(self, unit: str, now: float) -> list[Action]:
        """The unit was found loaded and healthy. If it does not fit beside the others, it is unloaded."""
        found = self._units.get(unit)
        if found is None or not found.is_known or self._is_changing(found) or found.is_up:
            return []
        found.is_leaving = not self.fits(unit)
        found.loaded = found.spec
        found.become_ready(now)
        return self._settle(now)

    def found(self, unit: str, now: float) -> list[Action]:
        """A process of the unit exists that somebody else started and that may not be ready. It counts as loaded, and
        serves nobody before it was stopped and started again. Ignored for a unit that is known to be loaded."""
        stranger = self._units.get(unit)
        if stranger is None or not stranger.is_known or stranger.loaded is not None:
            return []
        stranger.loaded, stranger.state = stranger.spec, State.STOPPING
        return self._settle(now)

    # --- the operator -------------------------------------------------------------------------------

    def configure(self, policy: Policy, specs: Iterable[Spec], now: float) -> list[Action]:
        """The config changed. What is loaded stays loaded; tickets that wait for a removed unit are rejected.

        If a unit's url changed, running tickets go on at the old one; the next request has the unit loaded again.
        """
        self._policy = policy
        known = {spec.unit: spec for spec in specs}
        for name, spec in known.items():
            unit = self._units.setdefault(name, Unit(spec))
            unit.spec, unit.is_known = spec, True
            if unit.loaded is not None:
                unit.loaded = replace(spec, url=unit.loaded.url)
        actions: list[Action] = []
        for name, unit in self._units.items():
            if name not in known:
                unit.is_known = False
                actions += self._reject_waiting(unit, Reason.UNKNOWN_UNIT)
        return actions + self._settle(now)

    def unload(self, units: Iterable[str], force: bool, now: float) -> list[Action]:
        """Stops these units after their running tickets or, with `force`, at once; also while they load.

        A request that waits for one of them afterwards loads it again.
        """
        names = frozenset(units)
        # This includes one that is being evicted: the switch may be refused, and then it would stay.
        leaving = [unit for unit in self._units.values() if unit.loaded is not None and unit.name in names]
        for unit in leaving:
            unit.is_leaving = True
        return (_interrupt(leaving) if force else []) + self._settle(now)

    def hold(self, until: float | None, force: bool, now: float) -> list[Action]:
        """Unloads everything and rejects every request, until then or (None) until `release_hold`."""
        self._hold_until = math.inf if until is None else until
        actions: list[Action] = [self._reject_on_hold(ticket, now) for ticket in self._waiting]
        self._waiting.clear()
        for unit in self._units.values():
            unit.waiting.clear()
        return actions + (_interrupt(self._present()) if force else []) + self._settle(now)

    def release_hold(self, now: float) -> list[Action]:
        """Requests are served again. A unit that still drains for the hold is ready again."""
        self._hold_until = None
        return self._settle(now)

    # --- time ---------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Time has passed: rights of way, drain timeouts, idle units, the hold, abandoned loads."""
        return self._settle(now)

    def next_deadline(self) -> float | None:
        """When `tick` is needed next; one that comes earlier does no harm."""
        return self._deadline

    # --- advisory reads -----------------------------------------------------------------------------

    def state(self, unit: str) -> State:
        """STOPPED for an unknown unit."""
        return self._units[unit].state if unit in self._units else State.STOPPED

    def in_flight(self, unit: str) -> int:
        """How many of its tickets run, without those whose process is gone."""
        return len(self._units[unit].running) if unit in self._units else 0

    def waiting(self, unit: str) -> int:
        """Its waiting tickets."""
        return len(self._units[unit].waiting) if unit in self._units else 0

    def ready_since(self, unit: str) -> float | None:
        """When the unit became ready, if it still is."""
        found = self._units.get(unit)
        return found.ready_since if found is not None and found.is_up else None

    @property
    def waiting_total(self) -> int:
        """All waiting tickets."""
        return len(self._waiting)

    @property
    def on_hold(self) -> bool:
        """Whether every request is rejected."""
        return self._hold_until is not None

    @property
    def hold_until(self) -> float | None:
        """When the hold ends; inf: when it is released; None without a hold."""
        return self._hold_until

    def fits(self, unit: str) -> bool:
        """Whether it could be loaded beside all that will be loaded, without evicting one. An unknown unit cannot."""
        found = self._units.get(unit)
        others = [it.loaded for it in self._present() if it.loaded is not None and it is not found]
        return found is not None and fit_together([found.spec, *others], self._policy.vram_gib)

    @property
    def residents(self) -> frozenset[str]:
        """The units whose process may exist, those that start or stop included."""
        return frozenset(unit.name for unit in self._units.values() if unit.loaded is not None)

    # --- deciding -----------------------------------------------------------------------------------

    def _settle(self, now: float) -> list[Action]:
        """Computes every consequence of what has happened. All decisions but those of the fast path are made here."""
        ended: list[Action] = []
        if self._hold_until is not None and self._hold_until <= now:
            self._hold_until = None
            ended.append(HoldEnded())
        actions, placements = self._grant_and_plan(now)
        actions = ended + actions
        if self._switch is not None:
            actions += self._abandon(now)
        elif switch := self._next_switch(placements, now):
            actions += switch
            granted, placements = self._grant_and_plan(now)  # without those that are being stopped
            actions += granted
        actions += _interrupt([unit for unit in self._present() if self._drains_too_long(unit, now)])
        self._deadline = min((at for at in self._deadlines(placements) if now < at < math.inf), default=None)
        self._next_turn_at = self._estimate_next_turn(placements)
        return actions

    def _grant_and_plan(self, now: float) -> tuple[list[Action], list[Placement]]:
        actions = self._grant_waiting(now)
        placements = self._plan(now)
        while granted := self._grant_waiting(now):  # a unit with a new running ticket is busy: that may change the plan
            actions += granted
            placements = self._plan(now)
        return actions, placements

    def _plan(self, now: float) -> list[Placement]:
        """Decides who must make room for whom, and lets exactly those units drain."""
        present = self._present()
        planner = self.planner(self._policy, present, typical_cost_s(self._units.values()), now)
        waiting = dict.fromkeys(self._waiting.values())  # the unit with the oldest ticket first
        placements, draining = planner.plan(waiting, [it for it in present if self._must_leave(it, now)])
        for unit in present:
            if unit in draining:
                unit.drain(now)
            else:
                unit.undrain()
        return placements

    def _grant_waiting(self, now: float) -> list[Action]:
        """Grants the tickets that wait for a ready unit, the oldest first."""
        grants: list[Action] = []
        for ticket, unit in list(self._waiting.items()):
            if len(self._running) >= self._policy.in_flight_limit:
                break
            if unit.state is State.READY and not self._must_leave(unit, now):
                del self._waiting[ticket], unit.waiting[ticket]
                grants.append(self._grant(ticket, unit))
        return grants

    def _grant(self, ticket: int, unit: Unit) -> Grant:
        self._running[ticket] = unit
        unit.running[ticket] = False
        return Grant(ticket)

    def _must_leave(self, unit: Unit, now: float) -> bool:
        """Whether a present unit is to be unloaded, whoever waits for whatever."""
        if unit.waiting and (unit.is_stale or unit.state is State.STOPPING):
            return True  # it can serve again only after a new start
        is_not_needed = self.on_hold or unit.idles_out_at <= now
        return unit.is_leaving or (is_not_needed and now >= unit.spared_until)

    def _drains_too_long(self, unit: Unit, now: float) -> bool:
        return unit.state is State.DRAINING and now >= unit.drain_since + self._policy.drain_timeout_s

    def _next_switch(self, placements: Sequence[Placement], now: float) -> list[Action]:
        leaving = [it for it in self._present() if self._must_leave(it, now) and not it.running]
        if leaving:
            return [self._begin_switch(None, leaving, now)]
        for placement in placements:
            is_vacant = not any(victim.running for victim in placement.victims)
            if is_vacant and placement.due <= now and not placement.is_blocked:
                return [self._begin_switch(placement.unit, placement.victims, now)]
        return []

    def _begin_switch(self, target: Unit | None, victims: Iterable[Unit], now: float) -> Switch:
        evict = tuple(sorted(victims, key=lambda it: it.used_at))
        keep = tuple(unit for unit in self._present() if unit not in evict)
        were_up = tuple(unit for unit in evict if unit.is_up)
        for unit in evict:
            unit.state = State.STOPPING
        cost_s = 0.0
        if target is not None:
            target.state, target.loaded = State.STARTING, target.spec
            cost_s = target.cost_s or typical_cost_s(self._units.values())
        self._switch = _SwitchInProgress(target, evict, keep, were_up, now + cost_s)
        names = tuple(unit.name for unit in evict)
        return Switch(target.name if target else None, names, frozenset(unit.name for unit in keep))

    def _abandon(self, now: float) -> list[Action]:
        """Aborts the switch under way once nobody has wanted its target for a while; at once if an operator does not
        want it."""
        switch = self._switch
        if switch is None or switch.target is None or switch.is_aborted:
            return []
        is_unwanted = switch.target.is_leaving or self.on_hold
        if switch.target.waiting and not is_unwanted:
            switch.abandoned_at = None
            return []
        if switch.abandoned_at is None:
            switch.abandoned_at = now
        if not is_unwanted and now < switch.abandoned_at + self._policy.abandon_after_s:
            return []
        switch.is_aborted = True
        return [Abort(switch.target.name)]

    def _deadlines(self, placements: Iterable[Placement]) -> Iterator[float]:
        if self._hold_until is not None:
            yield self._hold_until
        if self._switch is not None and self._switch.abandoned_at is not None:
            yield self._switch.abandoned_at + self._policy.abandon_after_s
        for placement in placements:
            if not placement.is_blocked:
                yield placement.due
        for unit in self._present():
            if unit.state is State.DRAINING:
                yield unit.drain_since + self._policy.drain_timeout_s
            yield unit.idles_out_at
            yield unit.spared_until

    def _estimate_next_turn(self, placements: Sequence[Placement]) -> float:
        """When places in the queue get free: when the next waiting unit is ready."""
        if self._switch is not None:
            return self._switch.ready_at
        typical_s = typical_cost_s(self._units.values())
        return min((it.due + (it.unit.cost_s or typical_s) for it in placements), default=-math.inf)

    # --- bookkeeping --------------------------------------------------------------------------------

    def _present(self) -> list[Unit]:
        """The units that will be loaded once the switch in progress is over."""
        evicted = self._switch.evict if self._switch is not None else ()
        return [unit for unit in self._units.values() if unit.loaded is not None and unit not in evicted]

    def _is_changing(self, unit: Unit) -> bool:
        return self._switch is not None and (unit is self._switch.target or unit in self._switch.evict)

    def _end_switch(self, now: float, resident: frozenset[str] = frozenset()) -> _SwitchInProgress:
        if self._switch is None:
            raise RuntimeError("no switch is in progress")
        switch, self._switch = self._switch, None
        for unit in switch.evict:
            self._confirm_stopped(unit, resident, State.STOPPED, now)
        return switch

    def _confirm_stopped(self, unit: Unit, resident: frozenset[str], state: State, now: float) -> None:
        if unit.name in resident:
            self._leave_unconfirmed(unit, now)
        else:
            unit.become_stopped(state)

    @staticmethod
    def _leave_unconfirmed(unit: Unit, now: float) -> None:
        unit.state = State.STOPPING  # its stop is not confirmed: it may still hold its VRAM
        unit.is_leaving, unit.spared_until = False, now + RETRY_EVICTION_S

    def _reject_waiting(self, unit: Unit, reason: Reason, cause: object | None = None) -> list[Action]:
        tickets = list(unit.waiting)
        unit.waiting.clear()
        for ticket in tickets:
            del self._waiting[ticket]
        return [Reject(ticket, reason, cause=cause) for ticket in tickets]

    def _reject_on_hold(self, ticket: int, now: float) -> Reject:
        until = math.inf if self._hold_until is None else self._hold_until
        retry_s = INDEFINITE_HOLD_RETRY_S if until == math.inf else _retry_after(until - now)
        return Reject(ticket, Reason.ON_HOLD, retry_s)


def _interrupt(units: Iterable[Unit]) -> list[Action]:
    return [Interrupt(ticket) for unit in units for ticket in unit.interrupt()]


def _retry_after(seconds: float) -> float:
    """Whole seconds, at least one, and less than the minute beyond which clients ignore the advice."""
    return float(math.ceil(min(59.0, max(1.0, seconds))))
