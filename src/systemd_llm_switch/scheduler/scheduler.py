"""The scheduler's events and reads: an event goes in, actions come out as values.

Pure: no thread, no I/O, no clock. The caller holds a lock, passes `now` (seconds, monotonic) into every event, and
performs the returned actions in order, outside the lock. `decider` decides, and docs/scheduling.md has the policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from .decider import Decider, interrupt
from .decisions import Action, Policy, Reason, Reject, State
from .placement import Spec
from .planning import Planner
from .situation import Situation

INDEFINITE_HOLD_RETRY_S = 30.0


class Scheduler:
    """Keyed by unit name. Not thread-safe: its caller must hold the lock."""

    planner: type[Planner] = Planner  # the policy; a simulation may try another

    def __init__(self, policy: Policy, specs: Iterable[Spec] = ()) -> None:
        self._situation = Situation(policy, specs)
        self._decider = Decider(self._situation, self.planner)

    # --- requests -----------------------------------------------------------------------------------

    def submit(self, ticket: int, unit: str, now: float) -> list[Action]:
        """A request asks for `unit`; its ticket is answered by one Grant or one Reject, now or later."""
        situation = self._situation
        wanted = situation.units.get(unit)
        if wanted is None or not wanted.is_known:
            return [Reject(ticket, Reason.UNKNOWN_UNIT)]
        if situation.hold_until is not None:
            return [self._reject_on_hold(ticket, now)]
        wanted.note_request(now)
        is_open = wanted.state is State.READY and not wanted.is_stale
        if is_open and len(situation.running) < situation.policy.in_flight_limit:
            return [situation.grant(ticket, wanted)]
        if len(situation.waiting) >= situation.policy.queue_limit:
            return [Reject(ticket, Reason.QUEUE_FULL, _retry_after(self._decider.next_turn_at - now))]
        situation.waiting[ticket] = wanted
        wanted.waiting[ticket] = now
        return self._decider.settle(now)

    def finish(self, ticket: int, now: float) -> list[Action]:
        """The ticket is over, waiting or running: served, failed, or its client left. Idempotent."""
        unit = self._situation.running.pop(ticket, None)
        if unit is None:
            return self._leave_queue(ticket, now)
        unit.running.pop(ticket, None)  # not there if the unit was lost meanwhile
        unit.used_at = now
        if self._situation.waiting or unit.state is not State.READY:
            return self._decider.settle(now)
        if unit.spec.ttl_s is not None and not unit.running:
            self._decider.note_deadline(now + unit.spec.ttl_s)
        return []

    def _leave_queue(self, ticket: int, now: float) -> list[Action]:
        unit = self._situation.waiting.pop(ticket, None)
        if unit is None:
            return []
        del unit.waiting[ticket]
        return self._decider.settle(now)

    # --- answers to a Switch ------------------------------------------------------------------------

    def switch_done(self, now: float, cost_s: float) -> list[Action]:
        """The evicted units have stopped, as systemd confirmed, and the target, if any, is ready. The switch took
        `cost_s`."""
        switch = self._situation.end_switch(now)
        if switch.target is not None:
            switch.target.become_ready(now)
            switch.target.note_cost(cost_s)
            switch.target.is_alone = False
        return self._decider.settle(now)

    def switch_failed(
        self,
        now: float,
        cause: object,
        resident: frozenset[str] = frozenset(),
        out_of_memory: bool = False,
    ) -> list[Action]:
        """The target did not get ready and is stopped again, or one of the evicted did not stop.

        `resident` are the units that systemd says are still active. The tickets that wait for the target are rejected
        with the cause. If the target ran out of memory beside other units, it is tried once more alone instead. Without
        a target, the tickets that wait for a unit that did not stop are rejected.
        """
        switch = self._situation.end_switch(now, resident)
        if switch.target is None:
            refused = [unit for unit in switch.evict if unit.name in resident]
        else:
            switch.target.is_alone = out_of_memory and bool(switch.keep)  # a start alone keeps nobody
            self._situation.confirm_stopped(switch.target, resident, State.FAILED, now)
            refused = [] if switch.target.is_alone else [switch.target]
        actions = [it for unit in refused for it in self._situation.reject_waiting(unit, Reason.START_FAILED, cause)]
        return actions + self._decider.settle(now)

    def switch_aborted(self, now: float, resident: frozenset[str] = frozenset()) -> list[Action]:
        """The target is stopped again, as Abort asked. Tickets that wait for it by now get a new Switch."""
        switch = self._situation.end_switch(now, resident)
        if switch.target is not None:
            self._situation.confirm_stopped(switch.target, resident, State.STOPPED, now)
        return self._decider.settle(now)

    def switch_refused(self, now: float, cause: object) -> list[Action]:
        """The target cannot be started as it is, so nothing was stopped for it. The loaded units go on serving."""
        target = self._situation.undo_switch(now)
        return self._situation.reject_waiting(target, Reason.START_FAILED, cause) + self._decider.settle(now)

    # --- what was observed of a unit --------------------------------------------------------------------

    def lost(self, unit: str, now: float) -> list[Action]:
        """The unit's process is gone. Ignored for one that is not loaded, or that a Switch is changing."""
        gone = self._situation.units.get(unit)
        if gone is None or gone.loaded is None or self._situation.is_changing(gone):
            return []
        gone.become_stopped()
        return self._decider.settle(now)

    def adopt(self, unit: str, now: float) -> list[Action]:
        """The unit was found loaded and healthy. It is unloaded if it does not fit beside the others."""
        found = self._situation.units.get(unit)
        if found is None or not found.is_known or self._situation.is_changing(found) or found.is_up:
            return []
        found.is_leaving = not self.fits(unit)
        found.loaded = found.spec
        found.become_ready(now)
        return self._decider.settle(now)

    def found(self, unit: str, now: float) -> list[Action]:
        """The unit has a process that the proxy did not start and that may not be ready. The unit counts as loaded, but
        must be stopped and started again before it serves. Ignored for a unit that is known to be loaded."""
        stranger = self._situation.units.get(unit)
        if stranger is None or not stranger.is_known or stranger.loaded is not None:
            return []
        stranger.loaded, stranger.state = stranger.spec, State.STOPPING
        return self._decider.settle(now)

    # --- the operator -------------------------------------------------------------------------------

    def configure(self, policy: Policy, specs: Iterable[Spec], now: float) -> list[Action]:
        """The config changed. What is loaded stays loaded; tickets that wait for a removed unit are rejected.

        If a unit's url changed, running tickets go on at the old one; the next request has the unit loaded again.
        """
        removed = self._situation.configure(policy, specs)
        actions = [it for unit in removed for it in self._situation.reject_waiting(unit, Reason.UNKNOWN_UNIT)]
        return actions + self._decider.settle(now)

    def unload(self, units: Iterable[str], force: bool, now: float) -> list[Action]:
        """Stops these units once their running tickets are done or, with `force`, at once. Units that still load are
        stopped too.

        A request that waits for one of them afterwards loads it again.
        """
        names = frozenset(units)
        # Units that are being evicted are marked too: they would stay loaded if the switch is refused.
        leaving = [unit for unit in self._situation.units.values() if unit.loaded is not None and unit.name in names]
        for unit in leaving:
            unit.is_leaving = True
        return (interrupt(leaving) if force else []) + self._decider.settle(now)

    def hold(self, until: float | None, force: bool, now: float) -> list[Action]:
        """Unloads everything and rejects every request until `until`, or until `release_hold` if that is None."""
        self._situation.hold_until = math.inf if until is None else until
        actions: list[Action] = [self._reject_on_hold(ticket, now) for ticket in self._situation.waiting]
        self._situation.waiting.clear()
        for unit in self._situation.units.values():
            unit.waiting.clear()
        return actions + (interrupt(self._situation.present()) if force else []) + self._decider.settle(now)

    def release_hold(self, now: float) -> list[Action]:
        """Requests are served again. A unit that still drains for the hold is ready again."""
        self._situation.hold_until = None
        return self._decider.settle(now)

    # --- time ---------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Time has passed: rights of way, drain timeouts, idle units, the hold, abandoned loads."""
        return self._decider.settle(now)

    def next_deadline(self) -> float | None:
        """When `tick` must be called next; an earlier call does no harm."""
        return self._decider.deadline

    # --- advisory reads -----------------------------------------------------------------------------

    def state(self, unit: str) -> State:
        """STOPPED for an unknown unit."""
        return self._situation.units[unit].state if unit in self._situation.units else State.STOPPED

    def in_flight(self, unit: str) -> int:
        """How many of its tickets run, without those whose process is gone."""
        return len(self._situation.units[unit].running) if unit in self._situation.units else 0

    def waiting(self, unit: str) -> int:
        """Its waiting tickets."""
        return len(self._situation.units[unit].waiting) if unit in self._situation.units else 0

    def ready_since(self, unit: str) -> float | None:
        """When the unit became ready, if it still is."""
        found = self._situation.units.get(unit)
        return found.ready_since if found is not None and found.is_up else None

    @property
    def waiting_total(self) -> int:
        """All waiting tickets."""
        return len(self._situation.waiting)

    @property
    def on_hold(self) -> bool:
        """Whether every request is rejected."""
        return self._situation.hold_until is not None

    @property
    def hold_until(self) -> float | None:
        """When the hold ends; inf: when it is released; None without a hold."""
        return self._situation.hold_until

    def fits(self, unit: str) -> bool:
        """Whether the unit could be loaded without evicting another one. An unknown unit cannot."""
        found = self._situation.units.get(unit)
        return found is not None and self._situation.fits(found)

    @property
    def residents(self) -> frozenset[str]:
        """The units whose process may exist, those that start or stop included."""
        return self._situation.residents

    def _reject_on_hold(self, ticket: int, now: float) -> Reject:
        until = self._situation.hold_ends_at
        retry_s = INDEFINITE_HOLD_RETRY_S if until == math.inf else _retry_after(until - now)
        return Reject(ticket, Reason.ON_HOLD, retry_s)


def _retry_after(seconds: float) -> float:
    """Whole seconds, at least one, and less than the minute beyond which clients ignore the advice."""
    return float(math.ceil(min(59.0, max(1.0, seconds))))
