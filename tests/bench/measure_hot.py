"""Requests for the model that is loaded: added latency, requests per second, many at once."""

from __future__ import annotations

import random
from typing import Any

from bench.contenders import ALONE, RELAY, Contender, Kind, Lineup, backend_of, turned
from bench.effort import Effort
from bench.figures import MS, Figures, Measurement
from bench.load import Answers, collect
from bench.processes import cpu_s

LARGE = {"standin": {"reply_kb": 200}}
# As long as the small real model takes, but without the load that it puts on the machine.
SLOW = {"standin": {"delay_ms": 8}}
_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_WARM_UP = 20


def measure_latency(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """1: one client, one request after the other; the contenders take turns after each."""
    small = figures.of("latency-1k", "Latency, stand-in backend, replies of 1 KB (ms)")
    large = figures.of("latency-200k", "Latency, stand-in backend, replies of 200 KB (ms)")
    slow = figures.of("latency-8ms", "Latency, stand-in backend that takes 8 ms, replies of 1 KB (ms)")
    real = figures.of("latency-real", "Latency, real model, cached prompt, `max_tokens: 1` (ms)")
    for number in range(effort.rounds):
        _one_round(lineup, Kind.FAST, number, effort.fast_requests, {}, small)
        _one_round(lineup, Kind.FAST, number, effort.fast_requests // 2, LARGE, large)
        _one_round(lineup, Kind.FAST, number, effort.real_requests, SLOW, slow)
        _one_round(lineup, Kind.REAL, number, effort.real_requests, {}, real)
    for measurement in (small, large, slow, real):
        measurement.note(
            "One client with keep-alive; the contenders take turns after each request. *Added*: the time beyond that "
            "of the same request sent straight to the contender's own backend process, in the same turns. The *relay* "
            "only parses both ways: no route, no queue, no repair, no journal."
        )


def _one_round(
    lineup: Lineup, kind: Kind, number: int, requests: int, fields: dict[str, Any], into: Measurement
) -> None:
    proxies = lineup.with_alone(kind)[1:]
    backends = [backend_of(proxy, proxies) for proxy in proxies]
    # One turn for each backend: one that is asked more often, or twice in a row, would be faster for it.
    relays = [lineup.relay_to(backend) for backend in backends]
    served = dict.fromkeys([*backends, *(proxy.address for proxy in proxies), *relays])
    # Another order each round: whoever follows a Python process finds some of its own code in the caches.
    addresses = random.Random(number).sample(list(served), len(served))
    body = proxies[0].chat(**fields)
    load = lineup.bed.programs.generator.run(addresses, body, requests=requests, warm_up=_WARM_UP)
    answers = dict(zip(addresses, load.answers, strict=True))
    _tell(into, ALONE, answers[backends[0]], None)
    for proxy, backend in zip(proxies, backends, strict=True):
        _tell(into, proxy.name, answers[proxy.address], answers[backend])
    _tell(into, RELAY, answers[relays[0]], answers[backends[0]])


def _tell(into: Measurement, name: str, own: Answers, backend: Answers | None) -> None:
    for label, part in _PERCENTILES.items():
        into.add(name, label, own.percentile_s(part) * MS)
    if backend is not None:
        for label, part in _PERCENTILES.items():
            into.add(name, f"added {label}", (own.percentile_s(part) - backend.percentile_s(part)) * MS)


def measure_throughput(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """2: as many requests as each can serve, with and without keep-alive."""
    kept = figures.of("throughput", "Requests per second, 1 KB, keep-alive, by number of clients")
    fresh = figures.of("throughput-new", "Requests per second, 1 KB, a new connection each, by number of clients")
    used = figures.of("cpu", "CPU time of the process per request (µs), 1 KB, keep-alive, by number of clients")
    opened = figures.of("connections", "Connections lost per 1000 requests, although the client keeps them alive")
    for number in range(effort.rounds):
        for clients in effort.clients:
            for contender in turned(lineup.with_alone(Kind.FAST), number):
                _throughput(lineup, contender, clients, effort.load_s, kept, used, opened)
                _throughput(lineup, contender, clients, effort.load_s, fresh, no_keep_alive=True)
    kept.note(
        "The generator is a C program of one thread and shares the two cores with the contender and the stand-in: "
        "*backend alone* is the limit of both."
    )


def _throughput(
    lineup: Lineup,
    contender: Contender,
    clients: int,
    seconds: float,
    into: Measurement,
    used: Measurement | None = None,
    opened: Measurement | None = None,
    **options: Any,
) -> None:
    before_s = cpu_s(contender.pid) if contender.pid else 0.0
    load = lineup.bed.programs.generator.run(
        [contender.address], contender.chat(), clients=clients, seconds=seconds, **options
    )
    column, answers = str(clients), load.answers[0]
    into.add(contender.name, column, load.per_s)
    if used and contender.pid:
        used.add(contender.name, column, (cpu_s(contender.pid) - before_s) / len(answers.latencies_s) * 1e6)
    if opened:
        opened.add(contender.name, column, (answers.connections - clients) / len(answers.latencies_s) * 1000)


def measure_parallel(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """3: many slow requests at once, and whether /v1/models still answers."""
    for number in range(effort.rounds):
        for count in effort.parallel:
            into = figures.of(
                f"parallel-{count}", f"{count} requests at once, each {effort.delay_ms / 1000:g} s at the backend"
            )
            for contender in turned(lineup.with_alone(Kind.FAST), number):
                _parallel(lineup, contender, count, effort.delay_ms, into)


def _parallel(lineup: Lineup, contender: Contender, count: int, delay_ms: int, into: Measurement) -> None:
    generator = lineup.bed.programs.generator
    slow = generator.start(
        [contender.address], contender.chat(standin={"delay_ms": delay_ms}), clients=count, requests=count
    )
    watched = generator.run([contender.address], seconds=delay_ms / 1000 * 0.9, pause_ms=20, path="/v1/models")
    load = collect(slow)
    into.add(contender.name, "wall time (s)", load.elapsed_s)
    into.add(contender.name, "GET /v1/models meanwhile, p50 (ms)", watched.answers[0].percentile_s(0.5) * MS)
    into.add(contender.name, "worst (ms)", max(watched.answers[0].latencies_s) * MS)
