"""What the scheduler remembers about one unit: its state, its tickets and its measured costs.

Knows nothing of other units. The caller passes the time in (seconds, monotonic).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .decisions import State
from .placement import Spec

PATIENCE_S = 2.0  # a request that follows a reply within this time came "soon", as an agent's next request does
PATIENCE_WORTH = 5.0  # waiting for it is worthwhile if a switch costs more than this many times the patience
RETURNS_SMOOTHING = 0.3  # the weight of the last request in the share that returned soon
COST_SMOOTHING = 0.5  # the weight of the last measured switch


@dataclass(slots=True, eq=False)
class Unit:
    """Compared by identity. `loaded` says whether its process may exist, `state` what it was asked to do."""

    spec: Spec
    is_known: bool = True  # False: removed from the config, but it may still be loaded
    state: State = State.STOPPED
    loaded: Spec | None = None  # the spec it was started with, while its process may exist
    running: dict[int, bool] = field(default_factory=dict)  # ticket: whether it was interrupted
    waiting: dict[int, float] = field(default_factory=dict)  # ticket: since when; the oldest first
    ready_since: float = -math.inf
    drain_since: float = -math.inf  # when the current drain began, or the last one
    used_at: float = -math.inf  # when its last request ended, or it became ready
    spared_until: float = -math.inf  # its eviction failed, and is not tried again earlier unless a request waits for it
    is_leaving: bool = False  # an operator wants it unloaded
    is_alone: bool = False  # it ran out of memory beside others, so they are evicted for its next start
    cost_s: float | None = None  # the smoothed cost of a switch to it; None: not measured yet
    returns: float = 0.0  # share of the requests that followed the last reply within PATIENCE_S, smoothed

    @property
    def name(self) -> str:
        return self.spec.unit

    @property
    def waits_since(self) -> float:
        """When the oldest of its waiting tickets came; there must be one."""
        return next(iter(self.waiting.values()))

    @property
    def is_up(self) -> bool:
        return self.state in (State.READY, State.DRAINING)

    @property
    def is_busy(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def is_stale(self) -> bool:
        """Its process listens at a url that the config no longer names."""
        return self.loaded is not None and self.loaded.url != self.spec.url

    @property
    def idles_out_at(self) -> float:
        """When its idle time is over; inf for a unit that is busy or never idles out."""
        return math.inf if self.spec.ttl_s is None or self.is_busy else self.used_at + self.spec.ttl_s

    def expected_until(self, cost_s: float) -> float:
        """Until when to wait for its next request, if its client usually sends the next one at once."""
        is_worth_it = cost_s > PATIENCE_WORTH * PATIENCE_S and self.returns >= 0.5
        return self.used_at + PATIENCE_S if is_worth_it else -math.inf

    def note_request(self, now: float) -> None:
        """Learns how soon requests follow the unit's last reply, whether it is loaded or not."""
        is_soon = now <= self.used_at + PATIENCE_S
        self.returns += RETURNS_SMOOTHING * (is_soon - self.returns)

    def note_cost(self, cost_s: float) -> None:
        known_s = cost_s if self.cost_s is None else self.cost_s
        self.cost_s = COST_SMOOTHING * cost_s + (1 - COST_SMOOTHING) * known_s

    def interrupt(self) -> list[int]:
        """Marks the running tickets as interrupted. Returns those that were not before."""
        tickets = [ticket for ticket, was_interrupted in self.running.items() if not was_interrupted]
        self.running.update(dict.fromkeys(tickets, True))
        return tickets

    def become_ready(self, now: float) -> None:
        self.state, self.ready_since, self.used_at = State.READY, now, now

    def drain(self, now: float) -> None:
        if self.state is State.READY:
            self.state, self.drain_since = State.DRAINING, now

    def undrain(self) -> None:
        if self.state is State.DRAINING:
            self.state = State.READY

    def become_stopped(self, state: State = State.STOPPED) -> None:
        """Its process is gone. Whatever still runs on it ends by itself and delays nothing."""
        self.state, self.loaded, self.is_leaving = state, None, False
        self.spared_until = -math.inf
        self.running.clear()
