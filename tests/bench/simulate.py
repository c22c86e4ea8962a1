"""The real scheduler on a virtual clock, beside the policies of others; prints the tables of docs/scheduling.md.

    python tests/bench/simulate.py [--seed 1] [--rounds 20] [--tried | --costs]

Every figure comes from the run and depends on nothing but the seeds. With --tried: variants of the policy. With
--costs: what a decision costs on this machine.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs as a script, with nothing installed
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from bench.traces import TRACES, Client, Step, units_of
from systemd_llm_switch.scheduler import Action, Grant, Policy, Scheduler, Spec, Switch
from systemd_llm_switch.scheduler.planning import Planner
from systemd_llm_switch.scheduler.units import PATIENCE_S, Unit

URL = "http://127.0.0.1:3004"
MIXED_COSTS_S = {"task": 3.0, "embed": 3.0, "rare": 3.0, "m0": 3.0, "m1": 10.0, "thinker": 60.0}

CostOf = Callable[[str], float]
Event = Callable[[float], "list[Action]"]


class Discipline(Protocol):
    """The part of the scheduler's interface that the simulation needs."""

    def submit(self, ticket: int, unit: str, now: float) -> list[Action]: ...
    def finish(self, ticket: int, now: float) -> list[Action]: ...
    def switch_done(self, now: float, cost_s: float) -> list[Action]: ...
    def tick(self, now: float) -> list[Action]: ...
    def next_deadline(self) -> float | None: ...


Discipliner = Callable[[Iterable[str]], Discipline]


# --- the rivals -----------------------------------------------------------------------------------------


class BypassingFifo:
    """The policy of other proxies: requests for the loaded model are served at once, whoever waits. Else first come,
    first served; all requests that wait for the same model are served together."""

    def __init__(self, units: Iterable[str] = ()) -> None:
        self.loaded: str | None = None
        self.target: str | None = None
        self.running: set[int] = set()
        self.queue: dict[int, str] = {}

    def submit(self, ticket: int, unit: str, now: float) -> list[Action]:
        self.queue[ticket] = unit
        return self._next()

    def finish(self, ticket: int, now: float) -> list[Action]:
        self.running.discard(ticket)
        return self._next()

    def switch_done(self, now: float, cost_s: float) -> list[Action]:
        self.loaded, self.target = self.target, None
        return self._next()

    def tick(self, now: float) -> list[Action]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def _next(self) -> list[Action]:
        served = list(self._served_now()) if self.target is None else []
        for ticket in served:
            del self.queue[ticket]
            self.running.add(ticket)
        actions: list[Action] = [Grant(ticket) for ticket in served]
        if self.queue and not self.running and self.target is None:
            self.target = next(iter(self.queue.values()))
            actions.append(Switch(self.target, (self.loaded,) if self.loaded else (), frozenset()))
        return actions

    def _served_now(self) -> Iterator[int]:
        return (ticket for ticket, unit in self.queue.items() if unit == self.loaded)


class StrictOrder(BypassingFifo):
    """No request overtakes another: the loaded model serves only while the next request is for it."""

    def _served_now(self) -> Iterator[int]:
        same = itertools.takewhile(lambda it: it[1] == self.loaded, self.queue.items())
        return (ticket for ticket, _ in same)


def ours(units: Iterable[str]) -> Scheduler:
    """The scheduler as built, with its default policy."""
    return Scheduler(Policy(), [Spec(unit, URL) for unit in units])


# --- variants of the policy, for --tried ----------------------------------------------------------------


class NobodyAwaited(Planner):
    def takeable_at(self, victim: Unit, waiter: Unit, older: set[Unit]) -> float:
        at = super().takeable_at(victim, waiter, older)
        return at if victim.is_busy or at == math.inf else self.now


class EverybodyAwaited(Planner):
    def takeable_at(self, victim: Unit, waiter: Unit, older: set[Unit]) -> float:
        at = super().takeable_at(victim, waiter, older)
        if victim.is_busy or at == math.inf:
            return at
        end = self.right_of_way_ends_at(victim, waiter)
        return max(self.now, min(victim.used_at + PATIENCE_S, end))


class StaysOneCost(Planner):
    def right_of_way_ends_at(self, victim: Unit, waiter: Unit) -> float:
        bound = self.cost_s(waiter)
        return max(waiter.waits_since, victim.ready_since) + bound


class StaysOneCostNobodyAwaited(StaysOneCost, NobodyAwaited):
    pass


class StaysTwiceTheCost(Planner):
    def right_of_way_ends_at(self, victim: Unit, waiter: Unit) -> float:
        bound = self.cost_s(waiter)
        return max(waiter.waits_since + bound, victim.ready_since + 2 * bound)


class StaysTwoRoundTrips(Planner):
    def right_of_way_ends_at(self, victim: Unit, waiter: Unit) -> float:
        there_s, back_s = self.cost_s(waiter), self.cost_s(victim)
        return max(waiter.waits_since + there_s, victim.ready_since + 2 * (there_s + back_s))


class WaiterAddsNothing(Planner):
    def right_of_way_ends_at(self, victim: Unit, waiter: Unit) -> float:
        return max(waiter.waits_since, victim.ready_since + self.cost_s(waiter) + self.cost_s(victim))


class WaiterAddsTwice(Planner):
    def right_of_way_ends_at(self, victim: Unit, waiter: Unit) -> float:
        there_s, back_s = self.cost_s(waiter), self.cost_s(victim)
        return max(waiter.waits_since + 2 * there_s, victim.ready_since + there_s + back_s)


def variant(planner_class: type[Planner]) -> Discipliner:
    class Variant(Scheduler):
        planner = planner_class

    return lambda units: Variant(Policy(), [Spec(unit, URL) for unit in units])


RIVALS: Mapping[str, Discipliner] = {
    "FIFO, bypassing": BypassingFifo,
    "strict order": StrictOrder,
    "**this scheduler**": ours,
}
VARIANTS: Mapping[str, Discipliner] = {
    "**as built**: stays a round trip, awaits agents": ours,
    "nobody awaited": variant(NobodyAwaited),
    "everybody awaited, agent or not": variant(EverybodyAwaited),
    "stays one cost": variant(StaysOneCost),
    "stays one cost, nobody awaited": variant(StaysOneCostNobodyAwaited),
    "stays twice the waiter's cost": variant(StaysTwiceTheCost),
    "stays two round trips": variant(StaysTwoRoundTrips),
    "waiter's part 0": variant(WaiterAddsNothing),
    "waiter's part twice the cost": variant(WaiterAddsTwice),
}


# --- the simulation -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Result:
    """The result of one or several runs; times in seconds."""

    waits: list[float] = field(default_factory=list)
    switches: int = 0
    lost_s: float = 0.0
    ended_s: float = 0.0

    def __add__(self, other: Result) -> Result:
        return Result(
            self.waits + other.waits,
            self.switches + other.switches,
            self.lost_s + other.lost_s,
            self.ended_s + other.ended_s,
        )


@dataclass(frozen=True, slots=True)
class _Request:
    unit: str
    runs_s: float
    since: float
    answered: Callable[[float], None]


class Simulation:
    """Runs clients against a discipline until all are done. A switch takes as long as its target costs."""

    def __init__(self, discipline: Discipline, clients: Iterable[Client], cost_of: CostOf) -> None:
        self.discipline, self.cost_of = discipline, cost_of
        self.result = Result()
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count(1)
        self._unserved: dict[int, _Request] = {}
        for client in clients:
            self._next_step(iter(client), 0.0)

    def run(self) -> Result:
        """Raises IndexError if somebody waits for ever."""
        while self._events or self._unserved:
            deadline = self.discipline.next_deadline()
            if deadline is not None and (not self._events or deadline <= self._events[0][0]):
                self._perform(self.discipline.tick(deadline), deadline)
                continue
            now, _, event = heapq.heappop(self._events)
            self.result.ended_s = now
            self._perform(event(now), now)
        return self.result

    def _at(self, when: float, event: Event) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), event))

    def _next_step(self, steps: Iterator[Step], now: float) -> None:
        step = next(steps, None)
        if step is None:
            return
        unanswered = len(step.requests)

        def answered(now: float) -> None:
            nonlocal unanswered
            unanswered -= 1
            if unanswered == 0:
                self._next_step(steps, now)

        for unit, runs_s in step.requests:
            self._at(now + step.gap_s, self._submission(_Request(unit, runs_s, now + step.gap_s, answered)))

    def _submission(self, request: _Request) -> Event:
        def submit(now: float) -> list[Action]:
            ticket = next(self._numbers)
            self._unserved[ticket] = request
            return self.discipline.submit(ticket, request.unit, now)

        return submit

    def _end(self, ticket: int, request: _Request) -> Event:
        def end(now: float) -> list[Action]:
            request.answered(now)
            return self.discipline.finish(ticket, now)

        return end

    def _perform(self, actions: Iterable[Action], now: float) -> None:
        for action in actions:
            if isinstance(action, Grant):
                request = self._unserved.pop(action.ticket)
                self.result.waits.append(now - request.since)
                self._at(now + request.runs_s, self._end(action.ticket, request))
            elif isinstance(action, Switch) and action.target is not None:
                self._switch(self.cost_of(action.target), now)
            else:
                raise AssertionError(f"no trace can lead to {action}")

    def _switch(self, cost_s: float, now: float) -> None:
        self.result.switches += 1
        self.result.lost_s += cost_s
        self._at(now + cost_s, lambda at: self.discipline.switch_done(at, cost_s))


Trace = Callable[[random.Random], "list[Client]"]


def simulate(trace: Trace, discipliner: Discipliner, cost_of: CostOf, seeds: range) -> Result:
    """The mean of several random instances of a trace, and the waits of all of them."""
    total = Result()
    for seed in seeds:
        clients = trace(random.Random(seed))
        total += Simulation(discipliner(units_of(clients)), clients, cost_of).run()
    n = len(seeds)
    return replace(total, switches=round(total.switches / n), lost_s=total.lost_s / n, ended_s=total.ended_s / n)


# --- the tables -----------------------------------------------------------------------------------------


def mixed_cost_s(unit: str) -> float:
    return MIXED_COSTS_S.get(unit, 30.0)


def row(result: Result) -> str:
    waits = sorted(result.waits)
    p50, p95 = (waits[int(len(waits) * share)] for share in (0.5, 0.95))
    seconds = (result.lost_s, result.ended_s, statistics.fmean(waits), p50, p95, waits[-1])
    return " | ".join([str(result.switches), *(f"{it:.0f}" if it >= 100 else f"{it:.1f}" for it in seconds)])


def print_table(title: str, disciplines: Mapping[str, Discipliner], cost_of: CostOf, seeds: range) -> None:
    print(f"\n**{title}**\n")
    print("| trace | policy | switches | lost to switching | until all is done | wait: mean | p50 | p95 | max |")
    print("| --- | --- " + "| --: " * 7 + "|")
    for trace in TRACES:
        name = trace.__name__.replace("_", " ")
        for policy, discipliner in disciplines.items():
            print(f"| {name} | {policy} | {row(simulate(trace, discipliner, cost_of, seeds))} |")
            name = ""


# --- what a decision costs ------------------------------------------------------------------------------


def loaded_scheduler(waiting: int) -> Scheduler:
    """One model is loaded and busy, within its right of way. `waiting` requests wait for four others."""
    scheduler = Scheduler(Policy(queue_limit=waiting + 1), [Spec(unit, URL) for unit in "abcde"])
    scheduler.submit(1, "a", 0.0)
    scheduler.switch_done(30.0, 30.0)
    for ticket in range(2, waiting + 2):
        scheduler.submit(ticket, "bcde"[ticket % 4], 30.0)
    return scheduler


def cost_us(waiting: int, rounds: int = 2000) -> float:
    """One more request for the loaded model comes and goes; the best of several runs, microseconds."""
    scheduler = loaded_scheduler(waiting)
    best_s = math.inf
    for _ in range(7):
        began = time.perf_counter()
        for ticket in range(1000, 1000 + rounds):
            scheduler.submit(ticket, "a", 31.0)
            scheduler.finish(ticket, 31.5)
        best_s = min(best_s, (time.perf_counter() - began) / rounds)
    return best_s * 1e6


def print_costs() -> None:
    print("| requests that wait | submit and finish, µs |\n| --: | --: |")
    for waiting in (0, 1, 8, 64):
        print(f"| {waiting} | {cost_us(waiting):.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--rounds", type=int, default=20, help="random instances of each trace")
    parser.add_argument("--tried", action="store_true", help="variants of the policy instead of its rivals")
    parser.add_argument("--costs", action="store_true", help="what a decision costs here, instead of a simulation")
    args = parser.parse_args()
    if args.costs:
        return print_costs()
    seeds = range(args.seed, args.seed + args.rounds)
    disciplines = VARIANTS if args.tried else RIVALS
    print_table("A switch costs 30 s", disciplines, lambda unit: 30.0, seeds)
    if args.tried:
        print_table("A switch costs 3, 10, 30 or 60 s, depending on the model", disciplines, mixed_cost_s, seeds)
    else:
        print_table("A switch costs 5 s", disciplines, lambda unit: 5.0, seeds)
    return None


if __name__ == "__main__":
    main()
