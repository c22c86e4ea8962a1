"""Traces for the simulator: invented days of agents, people and an indexer, like those seen on one card.

A client sends its next requests after its last ones were answered, as agents and people do. So a slow policy does
not gain from requests that nobody would have sent yet. All times are in seconds.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """After `gap_s` of thought, these requests go out together: (unit, seconds it runs)."""

    gap_s: float
    requests: tuple[tuple[str, float], ...]


Client = Sequence[Step]


def coder_and_thinker(rnd: random.Random) -> list[Client]:
    """Two agents at once, on two models: calls in quick succession, now and then a person reads."""
    coder = [Step(_agent_gap(rnd), (("coder", rnd.uniform(4, 20)),)) for _ in range(120)]
    thinker = [Step(_agent_gap(rnd), (("thinker", rnd.uniform(15, 60)),)) for _ in range(40)]
    return [coder, thinker]


def plan_and_code(rnd: random.Random) -> list[Client]:
    """One agent that plans on the thinker and codes on the coder, while a person chats on the coder."""
    steps: list[Step] = []
    for _ in range(10):
        steps.append(Step(rnd.uniform(1, 30), (("thinker", rnd.uniform(15, 60)),)))
        steps += [Step(_agent_gap(rnd), (("coder", rnd.uniform(4, 20)),)) for _ in range(rnd.randint(4, 12))]
    person = [Step(rnd.uniform(20, 120), (("coder", rnd.uniform(5, 25)),)) for _ in range(30)]
    return [steps, person]


def chat_and_titles(rnd: random.Random) -> list[Client]:
    """Two people chat; after each answer, title, tags and follow-ups go to a small task model at once."""

    def person() -> Client:
        steps: list[Step] = []
        for _ in range(25):
            steps.append(Step(rnd.uniform(15, 90), (("chat", rnd.uniform(5, 25)),)))
            steps.append(Step(0.05, tuple(("task", rnd.uniform(1, 3)) for _ in range(3))))
        return steps

    return [person(), person()]


def indexing_and_chat(rnd: random.Random) -> list[Client]:
    """500 chunks are embedded, ten at a time, while a person chats."""
    workers = [
        [Step(rnd.uniform(0.01, 0.05), (("embed", rnd.uniform(0.3, 1.2)),)) for _ in range(50)] for _ in range(10)
    ]
    person = [Step(rnd.uniform(5, 40), (("chat", rnd.uniform(5, 20)),)) for _ in range(12)]
    return [*workers, person]


def uniform_five(rnd: random.Random) -> list[Client]:
    """Requests at random for any of five models, each from a client of its own."""
    arrivals = itertools.accumulate(rnd.expovariate(1 / 14) for _ in range(250))
    return [[Step(at, ((f"m{rnd.randrange(5)}", rnd.uniform(3, 15)),))] for at in arrivals]


def rare_beside_busy(rnd: random.Random) -> list[Client]:
    """Three agents keep one model busy without a break; every few minutes somebody asks for another."""
    busy = [[Step(rnd.uniform(0.1, 1), (("busy", rnd.uniform(5, 30)),)) for _ in range(150)] for _ in range(3)]
    rare = [Step(rnd.uniform(60, 240), (("rare", rnd.uniform(5, 20)),)) for _ in range(12)]
    return [*busy, rare]


def _agent_gap(rnd: random.Random) -> float:
    """Mostly tools that run for a moment, sometimes a person who reads or approves."""
    return rnd.uniform(0.1, 1.5) if rnd.random() < 0.85 else rnd.uniform(10, 90)


TRACES: tuple[Callable[[random.Random], list[Client]], ...] = (
    coder_and_thinker,
    plan_and_code,
    chat_and_titles,
    indexing_and_chat,
    uniform_five,
    rare_beside_busy,
)


def units_of(clients: Iterable[Client]) -> list[str]:
    """Every unit that the clients ask for."""
    return sorted({unit for client in clients for step in client for unit, _ in step.requests})
