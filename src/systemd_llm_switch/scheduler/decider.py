"""What follows from an event: the tickets to grant, the units that drain, the next switch, what is aborted or ended.

`Decider` changes the situation and returns the actions. `planning` has the policy; `scheduler` receives the events.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from .decisions import Abort, Action, HoldEnded, Interrupt, State
from .planning import Placement, Planner
from .situation import Situation
from .units import Unit


class Decider:
    """Decides for one situation. `planner` is the policy."""

    def __init__(self, situation: Situation, planner: type[Planner]) -> None:
        self.deadline: float | None = None
        """When `settle` must be called next; None: only after the next event."""
        self.next_turn_at = -math.inf
        """When the next waiting unit is expected to be ready."""
        self._situation = situation
        self._planner = planner

    def settle(self, now: float) -> list[Action]:
        """Computes every consequence of what has happened. All decisions but those of the fast path are made here."""
        situation = self._situation
        ended: list[Action] = []
        if situation.hold_until is not None and situation.hold_until <= now:
            situation.hold_until = None
            ended.append(HoldEnded())
        actions, placements = self._grant_and_plan(now)
        actions = ended + actions
        if situation.switch is not None:
            actions += self._abandon(now)
        elif switch := self._next_switch(placements, now):
            actions += switch
            granted, placements = self._grant_and_plan(now)  # again, without the units that this switch stops
            actions += granted
        actions += interrupt([unit for unit in situation.present() if self._drains_too_long(unit, now)])
        self.deadline = min((at for at in self._deadlines(placements) if now < at < math.inf), default=None)
        self.next_turn_at = self._estimate_next_turn(placements)
        return actions

    def note_deadline(self, at: float) -> None:
        """Something is due at that time. `deadline` keeps the earliest such time."""
        self.deadline = at if self.deadline is None else min(self.deadline, at)

    def _grant_and_plan(self, now: float) -> tuple[list[Action], list[Placement]]:
        actions = self._grant_waiting(now)
        placements = self._plan(now)
        while granted := self._grant_waiting(now):  # a unit with a new running ticket is busy: that may change the plan
            actions += granted
            placements = self._plan(now)
        return actions, placements

    def _plan(self, now: float) -> list[Placement]:
        """Decides which units must make room, and lets exactly those drain."""
        situation = self._situation
        present = situation.present()
        planner = self._planner(situation.policy, present, situation.typical_cost_s, now)
        waiting = dict.fromkeys(situation.waiting.values())  # the unit with the oldest ticket first
        placements, draining = planner.plan(waiting, [it for it in present if self._must_leave(it, now)])
        for unit in present:
            if unit in draining:
                unit.drain(now)
            else:
                unit.undrain()
        return placements

    def _grant_waiting(self, now: float) -> list[Action]:
        """Grants the tickets that wait for a ready unit, the oldest first."""
        situation = self._situation
        grants: list[Action] = []
        for ticket, unit in list(situation.waiting.items()):
            if len(situation.running) >= situation.policy.in_flight_limit:
                break
            if unit.state is State.READY and not self._must_leave(unit, now):
                del situation.waiting[ticket], unit.waiting[ticket]
                grants.append(situation.grant(ticket, unit))
        return grants

    def _must_leave(self, unit: Unit, now: float) -> bool:
        """Whether a loaded unit must be unloaded, whatever requests wait."""
        if unit.waiting and (unit.is_stale or unit.state is State.STOPPING):
            return True  # it can serve again only after a new start
        is_not_needed = self._situation.hold_until is not None or unit.idles_out_at <= now
        return unit.is_leaving or (is_not_needed and now >= unit.spared_until)

    def _drains_too_long(self, unit: Unit, now: float) -> bool:
        return unit.state is State.DRAINING and now >= unit.drain_since + self._situation.policy.drain_timeout_s

    def _next_switch(self, placements: Sequence[Placement], now: float) -> list[Action]:
        leaving = [it for it in self._situation.present() if self._must_leave(it, now) and not it.running]
        if leaving:
            return [self._situation.begin_switch(None, leaving, now)]
        for placement in placements:
            is_vacant = not any(victim.running for victim in placement.victims)
            if is_vacant and placement.due <= now and not placement.is_blocked:
                return [self._situation.begin_switch(placement.unit, placement.victims, now)]
        return []

    def _abandon(self, now: float) -> list[Action]:
        """Aborts the switch in progress if nobody has waited for its target for a while. If an operator unloads the
        target, it aborts at once."""
        switch = self._situation.switch
        if switch is None or switch.target is None or switch.is_aborted:
            return []
        is_unwanted = switch.target.is_leaving or self._situation.hold_until is not None
        if switch.target.waiting and not is_unwanted:
            switch.abandoned_at = None
            return []
        if switch.abandoned_at is None:
            switch.abandoned_at = now
        if not is_unwanted and now < switch.abandoned_at + self._situation.policy.abandon_after_s:
            return []
        switch.is_aborted = True
        return [Abort(switch.target.name)]

    def _deadlines(self, placements: Iterable[Placement]) -> Iterator[float]:
        situation = self._situation
        yield situation.hold_ends_at
        if situation.switch is not None and situation.switch.abandoned_at is not None:
            yield situation.switch.abandoned_at + situation.policy.abandon_after_s
        for placement in placements:
            if not placement.is_blocked:
                yield placement.due
        for unit in situation.present():
            if unit.state is State.DRAINING:
                yield unit.drain_since + situation.policy.drain_timeout_s
            yield unit.idles_out_at
            yield unit.spared_until

    def _estimate_next_turn(self, placements: Sequence[Placement]) -> float:
        """When the next waiting unit is ready: then places in the queue become free."""
        if self._situation.switch is not None:
            return self._situation.switch.ready_at
        typical_s = self._situation.typical_cost_s
        return min((it.due + (it.unit.cost_s or typical_s) for it in placements), default=-math.inf)


def interrupt(units: Iterable[Unit]) -> list[Action]:
    """Ends what runs on these units; each ticket is interrupted once."""
    return [Interrupt(ticket) for unit in units for ticket in unit.interrupt()]
