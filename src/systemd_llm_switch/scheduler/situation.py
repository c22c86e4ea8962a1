"""The scheduler's state: every unit and ticket, the switch in progress, the hold. `Situation` reads and changes it.

Decides nothing: `scheduler` receives the events, and `decider` says what follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .decisions import Action, Grant, Policy, Reason, Reject, State, Switch
from .placement import Spec, fit_together
from .planning import typical_cost_s
from .units import Unit

RETRY_EVICTION_S = 30.0  # the pause after an unload that failed, unless a request waits for the unit


@dataclass(slots=True, eq=False)
class SwitchInProgress:
    """The `Switch` that is not answered yet."""

    target: Unit | None
    evict: tuple[Unit, ...]
    keep: tuple[Unit, ...]
    were_up: tuple[Unit, ...]  # evicted units that served: they go on if nothing is stopped after all
    ready_at: float  # an estimate from measured costs
    abandoned_at: float | None = None
    is_aborted: bool = False


class Situation:
    """Keyed by unit name. Not thread-safe: the scheduler's caller holds the lock."""

    def __init__(self, policy: Policy, specs: Iterable[Spec]) -> None:
        self.policy = policy
        self.units = {spec.unit: Unit(spec) for spec in specs}
        self.running: dict[int, Unit] = {}  # includes tickets of lost units: each still holds a thread
        self.waiting: dict[int, Unit] = {}  # in the order of arrival
        self.switch: SwitchInProgress | None = None
        self.hold_until: float | None = None  # None: no hold; inf: until released

    # --- reads ----------------------------------------------------------------------------------------

    @property
    def typical_cost_s(self) -> float:
        """What a switch costs on average."""
        return typical_cost_s(self.units.values())

    @property
    def hold_ends_at(self) -> float:
        """The end of the hold; inf without a hold or if it has no end."""
        return math.inf if self.hold_until is None else self.hold_until

    @property
    def residents(self) -> frozenset[str]:
        """The units whose process may exist, those that start or stop included."""
        return frozenset(unit.name for unit in self.units.values() if unit.loaded is not None)

    def present(self) -> list[Unit]:
        """The units that will be loaded once the switch in progress is over."""
        evicted = self.switch.evict if self.switch is not None else ()
        return [unit for unit in self.units.values() if unit.loaded is not None and unit not in evicted]

    def is_changing(self, unit: Unit) -> bool:
        """Whether the switch in progress starts or stops the unit."""
        return self.switch is not None and (unit is self.switch.target or unit in self.switch.evict)

    def fits(self, unit: Unit) -> bool:
        """Whether the unit could be loaded beside the present ones, without evicting one."""
        others = [it.loaded for it in self.present() if it.loaded is not None and it is not unit]
        return fit_together([unit.spec, *others], self.policy.vram_gib)

    # --- tickets --------------------------------------------------------------------------------------

    def grant(self, ticket: int, unit: Unit) -> Grant:
        """The ticket runs from now on."""
        self.running[ticket] = unit
        unit.running[ticket] = False
        return Grant(ticket)

    def reject_waiting(self, unit: Unit, reason: Reason, cause: object | None = None) -> list[Action]:
        """Takes the unit's waiting tickets out of the queue."""
        tickets = list(unit.waiting)
        unit.waiting.clear()
        for ticket in tickets:
            del self.waiting[ticket]
        return [Reject(ticket, reason, cause=cause) for ticket in tickets]

    # --- units ----------------------------------------------------------------------------------------

    def configure(self, policy: Policy, specs: Iterable[Spec]) -> list[Unit]:
        """Replaces the config. Returns the units that the new one does not have; loaded ones stay loaded."""
        self.policy = policy
        known = {spec.unit: spec for spec in specs}
        for name, spec in known.items():
            unit = self.units.setdefault(name, Unit(spec))
            unit.spec, unit.is_known = spec, True
            if unit.loaded is not None:
                unit.loaded = replace(spec, url=unit.loaded.url)
        removed = [unit for name, unit in self.units.items() if name not in known]
        for unit in removed:
            unit.is_known = False
        return removed

    def confirm_stopped(self, unit: Unit, resident: frozenset[str], state: State, now: float) -> None:
        """The unit was asked to stop. It has stopped unless it is in `resident`, the units that systemd still lists."""
        if unit.name in resident:
            self.leave_unconfirmed(unit, now)
        else:
            unit.become_stopped(state)

    @staticmethod
    def leave_unconfirmed(unit: Unit, now: float) -> None:
        """The unit's stop is not confirmed: it may still hold its VRAM."""
        unit.state = State.STOPPING
        unit.is_leaving, unit.spared_until = False, now + RETRY_EVICTION_S

    # --- the switch -----------------------------------------------------------------------------------

    def begin_switch(self, target: Unit | None, victims: Iterable[Unit], now: float) -> Switch:
        """Begins a switch; the victims stop in the order in which they were last used."""
        evict = tuple(sorted(victims, key=lambda it: it.used_at))
        keep = tuple(unit for unit in self.present() if unit not in evict)
        were_up = tuple(unit for unit in evict if unit.is_up)
        for unit in evict:
            unit.state = State.STOPPING
        cost_s = 0.0
        if target is not None:
            target.state, target.loaded = State.STARTING, target.spec
            cost_s = target.cost_s or self.typical_cost_s
        self.switch = SwitchInProgress(target, evict, keep, were_up, now + cost_s)
        names = tuple(unit.name for unit in evict)
        return Switch(target.name if target else None, names, frozenset(unit.name for unit in keep))

    def end_switch(self, now: float, resident: frozenset[str] = frozenset()) -> SwitchInProgress:
        """Ends the switch in progress; the evicted units are stopped, except for the `resident` ones."""
        if self.switch is None:
            raise RuntimeError("no switch is in progress")
        switch, self.switch = self.switch, None
        for unit in switch.evict:
            self.confirm_stopped(unit, resident, State.STOPPED, now)
        return switch

    def undo_switch(self, now: float) -> Unit:
        """Ends the switch in progress, for which nothing was stopped; returns its target, which failed.

        An evicted unit that served goes on serving. One that was to be stopped for another reason (an unconfirmed stop,
        a start by hand) still serves nobody.
        """
        if self.switch is None or self.switch.target is None:
            raise RuntimeError("no switch to a target is in progress")
        switch, target, self.switch = self.switch, self.switch.target, None
        for unit in switch.evict:
            if unit in switch.were_up:
                unit.state = State.READY
            elif not unit.is_leaving:  # otherwise an operator wants it stopped, and that was not tried yet
                self.leave_unconfirmed(unit, now)
        target.become_stopped(State.FAILED)
        return target
