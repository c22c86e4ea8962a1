"""Who runs, who waits, who drains, who is evicted: events in, actions out as values.

Pure: no thread, no I/O, no clock. The caller holds a lock, passes `now` (seconds, monotonic) into every
event, and performs the returned actions in order, outside the lock. docs/scheduling.md has the policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from .decisions import Abort, Action, Grant, Interrupt, Policy, Reason, Reject, State, Switch
from .placement import Resident, Spec, choose_evictions, fit_together

__all__ = [
    "Abort",
    "Action",
    "Grant",
    "Interrupt",
    "Policy",
    "Reason",
    "Reject",
    "Scheduler",
    "Spec",
    "State",
    "Switch",
]

UNMEASURED_COST_S = 10.0  # what a switch is taken to cost before any was seen
COST_SMOOTHING = 0.5  # the weight of the last measured cost
RETRY_EVICTION_S = 30.0  # an unload that failed is not tried again sooner, unless somebody waits for it
INDEFINITE_HOLD_RETRY_S = 30.0


@dataclass(slots=True, eq=False)
class _Unit:
    spec: Spec
    is_known: bool = True  # False: gone from the config, but still loaded
    state: State = State.STOPPED
    loaded: Spec | None = None  # the spec it was started with, while its process may exist
    running: dict[int, bool] = field(default_factory=dict)  # ticket: was it interrupted
    waiting: dict[int, float] = field(default_factory=dict)  # ticket: since when, oldest first
    cost_s: float | None = None  # of a switch to it, smoothed
    ready_since: float = -math.inf
    drain_since: float = math.inf
    used_at: float = -math.inf
    spared_until: float = -math.inf  # its eviction failed: not tried again before
    is_leaving: bool = False  # an operator wants it unloaded
    is_alone: bool = False  # it found too little memory beside others

    @property
    def name(self) -> str:
        return self.spec.unit

    @property
    def waits_since(self) -> float:
        return next(iter(self.waiting.values()))

    @property
    def is_stale(self) -> bool:
        """Its process listens where the config no longer looks."""
        return self.loaded is not None and self.loaded.url != self.spec.url

    def stopped(self, state: State = State.STOPPED) -> None:
        """Its process is gone. Whatever still ran on it ends by itself and holds nothing off."""
        self.state, self.loaded, self.is_leaving = state, None, False
        self.running.clear()

    def ready(self, now: float) -> None:
        self.state, self.ready_since, self.used_at = State.READY, now, now


@dataclass(slots=True, eq=False)
class _SwitchInProgress:
    target: _Unit | None
    evict: tuple[_Unit, ...]
    keep: tuple[_Unit, ...]
    started: float
    abandoned_at: float | None = None
    is_aborted: bool = False


@dataclass(slots=True, eq=False)
class _Placement:
    """How a waiting unit can be loaded: who goes, from when on, and whether its turn may come now."""

    unit: _Unit
    victims: list[_Unit]
    due: float
    keeps: list[_Unit]
    is_blocked: bool = False


class Scheduler:
    """Keyed by unit name. Not thread-safe: its caller has the lock."""

    def __init__(self, policy: Policy, specs: Iterable[Spec] = ()) -> None:
        self._policy = policy
        self._units = {spec.unit: _Unit(spec) for spec in specs}
        self._running: dict[int, _Unit] = {}
        self._waiting: dict[int, _Unit] = {}  # in the order of arrival
        self._switch: _SwitchInProgress | None = None
        self._hold_until: float | None = None  # inf: until released
        self._deadline: float | None = None
        self._next_turn_at = -math.inf

    # -- events ------------------------------------------------------------------------------------------

    def submit(self, ticket: int, unit: str, now: float) -> list[Action]:
        """A request asks for `unit`; its ticket is answered by one Grant or one Reject, now or later."""
        wanted = self._units.get(unit)
        if (
            wanted is not None
            and wanted.state is State.READY
            and len(self._running) < self._policy.in_flight_limit
            and not wanted.is_stale
            and wanted.is_known
        ):
            return [self._grant(ticket, wanted, now)]
        if wanted is None or not wanted.is_known:
            return [Reject(ticket, Reason.UNKNOWN_UNIT)]
        if self._hold_until is not None:
            return [self._reject_on_hold(ticket, now)]
        if len(self._waiting) >= self._policy.queue_limit:
            return [Reject(ticket, Reason.QUEUE_FULL, _retry_after(self._next_turn_at - now))]
        self._waiting[ticket] = wanted
        wanted.waiting[ticket] = now
        return self._settle(now)

    def finish(self, ticket: int, now: float) -> list[Action]:
        """The ticket is over, served or not, waiting or running. Idempotent."""
        unit = self._running.pop(ticket, None)
        if unit is None:
            unit = self._waiting.pop(ticket, None)
            if unit is None:
                return []
            del unit.waiting[ticket]
            return self._settle(now)
        unit.running.pop(ticket, None)
        unit.used_at = now
        if self._waiting or unit.state is not State.READY:
            return self._settle(now)
        if unit.spec.ttl_s is not None and not unit.running:
            self._deadline = _earlier(self._deadline, now + unit.spec.ttl_s)
        return []

    def configure(self, policy: Policy, specs: Iterable[Spec], now: float) -> list[Action]:
        """The config changed. What is loaded stays loaded; who waits for a vanished unit is rejected.

        A unit whose url changed runs its requests to their end at the old one; the next request for it
        has it stopped and started again.
        """
        self._policy = policy
        known = {spec.unit: spec for spec in specs}
        actions: list[Action] = []
        for name, spec in known.items():
            unit = self._units.setdefault(name, _Unit(spec))
            unit.spec, unit.is_known = spec, True
            if unit.loaded is not None:
                unit.loaded = replace(spec, url=unit.loaded.url)
        for unit in [unit for name, unit in self._units.items() if name not in known]:
            unit.is_known = False
            actions += self._reject_waiting(unit, Reason.UNKNOWN_UNIT)
            self._forget_if_gone(unit)
        return actions + self._settle(now)

    def switch_done(self, now: float, cost_s: float) -> list[Action]:
        """The evicted are confirmed stopped and the target, if any, is ready, `cost_s` after the start."""
        switch = self._end_switch()
        if switch.target is not None:
            target = switch.target
            target.ready(now)
            target.is_alone = False
            known_s = cost_s if target.cost_s is None else target.cost_s
            target.cost_s = COST_SMOOTHING * cost_s + (1 - COST_SMOOTHING) * known_s
            if self._must_leave(target, now):
                self._drain(target, now)
        self._confirm_evicted(switch, frozenset(), now)
        return self._settle(now)

    def switch_failed(
        self,
        now: float,
        cause: object,
        resident: frozenset[str] = frozenset(),
        out_of_memory: bool = False,
    ) -> list[Action]:
        """The target did not get ready and is stopped, or one of the evicted (`resident`) did not stop.

        Who waits for the target is rejected with the cause; out of memory beside others, it is tried once
        more alone first. Without a target, who waits for those that did not stop is rejected.
        """
        switch = self._end_switch()
        self._confirm_evicted(switch, resident, now)
        if switch.target is None:
            actions: list[Action] = []
            for unit in switch.evict:
                if unit.name in resident:
                    actions += self._reject_waiting(unit, Reason.START_FAILED, cause)
            return actions + self._settle(now)
        target = switch.target
        target.stopped(State.FAILED)
        self._confirm_target(target, resident)
        target.is_alone = out_of_memory and bool(switch.keep) and not target.is_alone and not resident
        if target.is_alone:
            return self._settle(now)
        return self._reject_waiting(target, Reason.START_FAILED, cause) + self._settle(now)

    def switch_aborted(self, now: float, resident: frozenset[str] = frozenset()) -> list[Action]:
        """The target is stopped again, as asked by Abort; who waits for it anew gets a new Switch."""
        switch = self._end_switch()
        self._confirm_evicted(switch, resident, now)
        if switch.target is not None:
            switch.target.stopped()
            self._confirm_target(switch.target, resident)
        return self._settle(now)

    def lost(self, unit: str, now: float) -> list[Action]:
        """The unit's process is gone. Ignored unless it was resident and no Switch is stopping it."""
        gone = self._units.get(unit)
        if gone is None or gone not in self._present() or gone.state is State.STARTING:
            return []
        gone.stopped()
        self._forget_if_gone(gone)
        return self._settle(now)

    def adopt(self, unit: str, now: float) -> list[Action]:
        """The unit was found loaded and healthy. If it does not fit beside the others it is unloaded."""
        found = self._units.get(unit)
        if found is None or found.state in (State.STARTING, State.READY, State.DRAINING):
            return []
        if self._switch is not None and found in self._switch.evict:
            return []
        others = [it.loaded for it in self._present() if it.loaded is not None and it is not found]
        found.loaded = found.spec
        found.ready(now)
        found.is_leaving = not fit_together([found.spec, *others], self._policy.vram_gib)
        return self._settle(now)

    def unload(self, units: Iterable[str], force: bool, now: float) -> list[Action]:
        """An operator wants the units stopped, after their running tickets or, with `force`, at once."""
        actions: list[Action] = []
        for unit in [self._units[name] for name in units if name in self._units]:
            if unit in self._present():
                unit.is_leaving = True
                if force:
                    actions += _interrupt(unit)
        return actions + self._settle(now)

    def hold(self, until: float | None, force: bool, now: float) -> list[Action]:
        """Unload everything and turn every request away, until then or (None) until `release_hold`."""
        self._hold_until = math.inf if until is None else until
        actions: list[Action] = [self._reject_on_hold(ticket, now) for ticket in self._waiting]
        self._waiting.clear()
        for unit in self._units.values():
            unit.waiting.clear()
            if force:
                actions += _interrupt(unit)
        return actions + self._settle(now)

    def release_hold(self, now: float) -> list[Action]:
        """Requests are served again; what still drains for the hold is simply ready."""
        self._hold_until = None
        return self._settle(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed: rights of way, drain timeouts, idle units, the hold and abandoned loads."""
        return self._settle(now)

    # -- advisory reads ----------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `tick` is needed next; an earlier one does no harm."""
        return self._deadline

    def state(self, unit: str) -> State:
        """STOPPED for an unknown unit."""
        return self._units[unit].state if unit in self._units else State.STOPPED

    def in_flight(self, unit: str) -> int:
        return len(self._units[unit].running) if unit in self._units else 0

    def waiting(self, unit: str) -> int:
        return len(self._units[unit].waiting) if unit in self._units else 0

    def ready_since(self, unit: str) -> float | None:
        """When the unit became ready, if it still is."""
        found = self._units.get(unit)
        is_up = found is not None and found.state in (State.READY, State.DRAINING)
        return found.ready_since if found is not None and is_up else None

    @property
    def waiting_total(self) -> int:
        return len(self._waiting)

    @property
    def on_hold(self) -> bool:
        return self._hold_until is not None

    @property
    def residents(self) -> frozenset[str]:
        """The units whose process may exist, those that start or stop included."""
        return frozenset(unit.name for unit in self._units.values() if unit.loaded is not None)

    # -- deciding ----------------------------------------------------------------------------------------

    def _settle(self, now: float) -> list[Action]:
        """Draw every consequence of what has happened; all decisions but the fast path's are made here."""
        if self._hold_until is not None and self._hold_until <= now:
            self._hold_until = None
        actions: list[Action] = list(self._grant_waiting(now))
        placements = self._plan(now)
        while granted := self._grant_waiting(now):  # who was granted is busy now: that may change the plan
            actions += granted
            placements = self._plan(now)
        for unit in self._present():
            if now >= unit.drain_since + self._policy.drain_timeout_s and unit.state is State.DRAINING:
                actions += _interrupt(unit)
        actions += self._next_switch(placements, now) if self._switch is None else self._abandon(now)
        self._deadline = min(
            (at for at in self._deadlines(placements, now) if at > now and at < math.inf), default=None
        )
        self._next_turn_at = self._estimate_next_turn(placements)
        return actions

    def _grant_waiting(self, now: float) -> list[Action]:
        """Grant, oldest first, what waits for a ready unit."""
        grants: list[Action] = []
        free = self._policy.in_flight_limit - len(self._running)
        for ticket, unit in list(self._waiting.items()):
            if len(grants) >= free:
                break
            if unit.state is State.READY and not unit.is_stale:
                del self._waiting[ticket], unit.waiting[ticket]
                grants.append(self._grant(ticket, unit, now))
        return grants

    def _grant(self, ticket: int, unit: _Unit, now: float) -> Grant:
        self._running[ticket] = unit
        unit.running[ticket] = False
        unit.used_at = now
        return Grant(ticket)

    def _plan(self, now: float) -> list[_Placement]:
        """Decide who must make room for whom, the longest-waiting first, and who drains because of it."""
        present = self._present()
        draining = {unit for unit in present if self._must_leave(unit, now)}
        placements: list[_Placement] = []
        older: set[_Unit] = set()
        for unit in dict.fromkeys(self._waiting.values()):
            if unit not in present:
                placement = self._place(unit, present, older, draining, now)
                placement.is_blocked = any(self._would_delay(placement, other) for other in placements)
                placements.append(placement)
                if placement.due <= now and not placement.is_blocked:
                    draining.update(placement.victims)
            older.add(unit)
        for unit in present:
            if unit in draining:
                self._drain(unit, now)
            elif unit.state is State.DRAINING:
                unit.state, unit.drain_since = State.READY, math.inf
        return placements

    def _place(
        self, unit: _Unit, present: list[_Unit], older: set[_Unit], leaving: set[_Unit], now: float
    ) -> _Placement:
        takeable_at = {
            it.name: now if it in leaving else max(now, self._takeable_at(it, unit, older)) for it in present
        }
        seen = [
            Resident(it.loaded, takeable_at[it.name], bool(it.running or it.waiting), it.used_at)
            for it in present
            if it.loaded is not None
        ]
        names = takeable_at.keys() if unit.is_alone else choose_evictions(unit.spec, seen, self._policy.vram_gib)
        victims = [it for it in present if it.name in names]
        due = max((takeable_at[it.name] for it in victims), default=now)
        return _Placement(unit, victims, due, [it for it in present if it not in victims])

    def _takeable_at(self, victim: _Unit, waiter: _Unit, older: set[_Unit]) -> float:
        """The moment from which `victim` may be drained and stopped for `waiter`: its right of way."""
        policy = self._policy
        if victim.state is State.STARTING or victim in older:
            return math.inf
        if not victim.running and not victim.waiting:
            return victim.ready_since + (policy.min_resident_s or 0.0)
        bound = self._cost_s(waiter)
        return max(
            waiter.waits_since + (bound if policy.max_wait_s is None else policy.max_wait_s),
            victim.ready_since + (bound if policy.min_resident_s is None else policy.min_resident_s),
        )

    def _would_delay(self, placement: _Placement, older: _Placement) -> bool:
        """Whether loading the younger waiter's unit would take what the older one is going to need."""
        if older.unit.is_alone:
            return True
        kept = [it.loaded for it in older.keeps if it not in placement.victims and it.loaded is not None]
        together = [older.unit.spec, placement.unit.spec, *kept]
        return not fit_together(together, self._policy.vram_gib)

    def _must_leave(self, unit: _Unit, now: float) -> bool:
        """Whether a present unit is to be unloaded whoever waits for whatever."""
        if unit.state is State.STARTING:
            return False
        if unit.waiting and (unit.is_stale or unit.state is State.STOPPING):
            return True  # it can only serve again when started anew
        if now < unit.spared_until:
            return False
        return unit.is_leaving or self._hold_until is not None or self._has_idled_out(unit, now)

    def _has_idled_out(self, unit: _Unit, now: float) -> bool:
        if unit.spec.ttl_s is None or unit.running or unit.waiting or self._switch is not None:
            return False
        return unit.state is not State.STOPPING and now >= unit.used_at + unit.spec.ttl_s

    def _next_switch(self, placements: list[_Placement], now: float) -> list[Action]:
        leaving = [it for it in self._present() if self._must_leave(it, now) and not it.running]
        if leaving:
            return [self._begin_switch(None, leaving, now)]
        for placement in placements:
            is_vacant = not any(victim.running for victim in placement.victims)
            if placement.due <= now and not placement.is_blocked and is_vacant:
                return [self._begin_switch(placement.unit, placement.victims, now)]
        return []

    def _begin_switch(self, target: _Unit | None, victims: list[_Unit], now: float) -> Switch:
        kept = tuple(unit for unit in self._present() if unit not in victims)
        victims = sorted(victims, key=lambda it: it.used_at)
        for unit in victims:
            unit.state, unit.drain_since = State.STOPPING, math.inf
        if target is not None:
            target.state, target.loaded, target.is_leaving = State.STARTING, target.spec, False
        self._switch = _SwitchInProgress(target, tuple(victims), kept, now)
        return Switch(
            target.name if target is not None else None,
            tuple(unit.name for unit in victims),
            frozenset(unit.name for unit in kept),
        )

    def _abandon(self, now: float) -> list[Action]:
        """Abort the switch in progress if its target is wanted by nobody any more, or unwanted."""
        switch = self._switch
        if switch is None or switch.target is None or switch.is_aborted:
            return []
        is_unwanted = switch.target.is_leaving or self._hold_until is not None
        if switch.target.waiting and not is_unwanted:
            switch.abandoned_at = None
            return []
        if switch.abandoned_at is None:
            switch.abandoned_at = now
        if not is_unwanted and now < switch.abandoned_at + self._policy.abandon_after_s:
            return []
        switch.is_aborted = True
        return [Abort(switch.target.name)]

    # -- bookkeeping -------------------------------------------------------------------------------------

    def _present(self) -> list[_Unit]:
        """The units that will be loaded once the switch in progress is over."""
        evicted = self._switch.evict if self._switch is not None else ()
        return [unit for unit in self._units.values() if unit.loaded is not None and unit not in evicted]

    def _drain(self, unit: _Unit, now: float) -> None:
        if unit.state is State.READY:
            unit.state, unit.drain_since = State.DRAINING, now

    def _end_switch(self) -> _SwitchInProgress:
        if self._switch is None:
            raise RuntimeError("no switch is in progress")
        switch, self._switch = self._switch, None
        return switch

    def _confirm_evicted(self, switch: _SwitchInProgress, resident: frozenset[str], now: float) -> None:
        for unit in switch.evict:
            if unit.name in resident:
                unit.is_leaving, unit.spared_until = False, now + RETRY_EVICTION_S
            else:
                unit.stopped()
                self._forget_if_gone(unit)

    def _confirm_target(self, target: _Unit, resident: frozenset[str]) -> None:
        if target.name in resident:
            target.state, target.loaded = State.STOPPING, target.spec
        else:
            self._forget_if_gone(target)

    def _forget_if_gone(self, unit: _Unit) -> None:
        if not unit.is_known and unit.loaded is None:
            del self._units[unit.name]

    def _reject_waiting(self, unit: _Unit, reason: Reason, cause: object | None = None) -> list[Action]:
        tickets = list(unit.waiting)
        unit.waiting.clear()
        for ticket in tickets:
            del self._waiting[ticket]
        return [Reject(ticket, reason, cause=cause) for ticket in tickets]

    def _reject_on_hold(self, ticket: int, now: float) -> Reject:
        left = math.inf if self._hold_until is None else self._hold_until - now
        retry_s = INDEFINITE_HOLD_RETRY_S if left == math.inf else _retry_after(left)
        return Reject(ticket, Reason.ON_HOLD, retry_s)

    def _cost_s(self, unit: _Unit) -> float:
        """What a switch to this unit costs: as measured, else as the others do."""
        if unit.cost_s is not None:
            return unit.cost_s
        known = [it.cost_s for it in self._units.values() if it.cost_s is not None]
        return sum(known) / len(known) if known else UNMEASURED_COST_S

    def _deadlines(self, placements: list[_Placement], now: float) -> Iterator[float]:
        if self._hold_until is not None:
            yield self._hold_until
        yield from (placement.due for placement in placements if not placement.is_blocked)
        if self._switch is not None and self._switch.abandoned_at is not None:
            yield self._switch.abandoned_at + self._policy.abandon_after_s
        for unit in self._present():
            if unit.state is State.DRAINING:
                yield unit.drain_since + self._policy.drain_timeout_s
            if unit.spec.ttl_s is not None and not unit.running and not unit.waiting:
                yield unit.used_at + unit.spec.ttl_s
            yield unit.spared_until

    def _estimate_next_turn(self, placements: list[_Placement]) -> float:
        """When places in the queue will get free: the next waiting unit is ready then."""
        if self._switch is not None:
            target = self._switch.target
            return self._switch.started + (self._cost_s(target) if target is not None else 0.0)
        return min((it.due + self._cost_s(it.unit) for it in placements), default=-math.inf)


def _interrupt(unit: _Unit) -> list[Action]:
    tickets = [ticket for ticket, was_interrupted in unit.running.items() if not was_interrupted]
    unit.running.update(dict.fromkeys(tickets, True))
    return [Interrupt(ticket) for ticket in tickets]


def _retry_after(seconds: float) -> float:
    return min(59.0, max(1.0, float(math.ceil(seconds)))) if math.isfinite(seconds) else 1.0


def _earlier(one: float | None, other: float) -> float:
    return other if one is None else min(one, other)
