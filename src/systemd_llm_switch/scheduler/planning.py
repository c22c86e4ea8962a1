"""Who must make room for whom, and when: the policy of docs/scheduling.md. Only reads the units.

Changes nothing: `decider` acts on the placements that are due.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .decisions import Policy, State
from .placement import Occupant, choose_evictions, fit_together
from .units import Unit

UNMEASURED_COST_S = 10.0  # the assumed cost of a switch before any was measured


@dataclass(frozen=True, slots=True)
class Placement:
    """How a waiting unit can be loaded: which units go, which stay, and when the last right of way ends."""

    unit: Unit
    victims: tuple[Unit, ...]
    keeps: tuple[Unit, ...]
    due: float  # inf: not before the next event
    is_blocked: bool  # an older waiter will need the room that it would take


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans for one moment, over the units that will be loaded once the switch in progress is over."""

    policy: Policy
    present: Sequence[Unit]
    typical_cost_s: float
    now: float

    def plan(self, waiting: Iterable[Unit], leaving: Iterable[Unit]) -> tuple[list[Placement], set[Unit]]:
        """The placements for `waiting` units, oldest waiter first, and all units that must drain now.

        `leaving` units go in any case. A younger waiter may be placed before an older one only if the older one loses
        nothing by it.
        """
        draining = set(leaving)
        placements: list[Placement] = []
        older: set[Unit] = set()
        for unit in waiting:
            if unit not in self.present:
                placement = self._place(unit, older, placements)
                placements.append(placement)
                if placement.due <= self.now and not placement.is_blocked:
                    draining.update(placement.victims)
            older.add(unit)
        return placements, draining

    def cost_s(self, unit: Unit) -> float:
        """The cost of a switch to the unit: measured, or the mean of the others' costs if not measured yet."""
        return self.typical_cost_s if unit.cost_s is None else unit.cost_s

    def _place(self, unit: Unit, older: set[Unit], before: Sequence[Placement]) -> Placement:
        takeable_at = {it.name: self.takeable_at(it, unit, older) for it in self.present}
        seen = [
            Occupant(it.loaded, takeable_at[it.name], it.is_busy, it.used_at)
            for it in self.present
            if it.loaded is not None
        ]
        chosen = takeable_at if unit.is_alone else choose_evictions(unit.spec, seen, self.policy.vram_gib)
        victims = tuple(it for it in self.present if it.name in chosen)
        keeps = tuple(it for it in self.present if it.name not in chosen)
        due = max((takeable_at[it.name] for it in victims), default=self.now)
        is_blocked = any(self._would_delay(unit, victims, other) for other in before)
        return Placement(unit, victims, keeps, due, is_blocked)

    def takeable_at(self, victim: Unit, waiter: Unit, older: set[Unit]) -> float:
        """From when `victim` may be drained and stopped for `waiter`: now or later."""
        if victim.state is State.STARTING or victim in older:
            return math.inf  # its own waiters come first
        if victim.is_busy:
            return max(self.now, self.right_of_way_ends_at(victim, waiter))
        stays_until = victim.ready_since + (self.policy.min_resident_s or 0.0)
        expected_until = victim.expected_until(self.cost_s(victim))
        if expected_until > self.now:
            expected_until = min(expected_until, self.right_of_way_ends_at(victim, waiter))
        return max(self.now, stays_until, expected_until)

    def right_of_way_ends_at(self, victim: Unit, waiter: Unit) -> float:
        there_s = self.cost_s(waiter)
        and_back_s = there_s + self.cost_s(victim)
        max_wait_s, min_resident_s = self.policy.max_wait_s, self.policy.min_resident_s
        return max(
            waiter.waits_since + (there_s if max_wait_s is None else max_wait_s),
            victim.ready_since + (and_back_s if min_resident_s is None else min_resident_s),
        )

    def _would_delay(self, unit: Unit, victims: Sequence[Unit], older: Placement) -> bool:
        """Whether loading `unit` would take room that the older waiter's unit is going to need."""
        if older.unit.is_alone:
            return True
        kept = [it.loaded for it in older.keeps if it not in victims and it.loaded is not None]
        return not fit_together([older.unit.spec, unit.spec, *kept], self.policy.vram_gib)


def typical_cost_s(units: Iterable[Unit]) -> float:
    """The mean of the measured costs."""
    known = [unit.cost_s for unit in units if unit.cost_s is not None]
    return sum(known) / len(known) if known else UNMEASURED_COST_S
