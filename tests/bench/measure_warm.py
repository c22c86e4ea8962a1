"""What `contexts.warm` brings: the first token of a new conversation, after a start in which nothing was restored."""

from __future__ import annotations

import time

from bench.contenders import ContenderError, Kind, Lineup, ask
from bench.effort import Effort
from bench.figures import MS, Figures, Measurement
from bench.measure_context import Switching, ask_first, start_proxy, story

_SYSTEM_TOKENS = 1500
_TIMEOUT_S = 300.0


def measure_warm(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """8: a model is loaded by an operator and idle for a while; then a client that it knows begins a conversation."""
    into = figures.of("warm", "Until the first token of a new conversation after a cold start, real model (ms)")
    ways = {is_warm: start_proxy(lineup.bed, f"`warm: {is_warm}`".lower(), {"warm": is_warm}, saves=False)
            for is_warm in (True, False)}  # fmt: skip
    for number in range(effort.context_rounds):
        for is_warm, way in ways.items():
            _round(way, number, into, is_warm=is_warm)
    into.note(
        f"Two conversations with a system prompt of {_SYSTEM_TOKENS} tokens, then `unload` and `load`, and a third one "
        "with the same system prompt. The units save no contexts, so nothing is restored."
    )


def _round(way: Switching, number: int, into: Measurement, *, is_warm: bool) -> None:
    model = Kind.REAL.models[0]
    system = {"role": "system", "content": story(_SYSTEM_TOKENS, number, way.name)}
    for question in ("What is a river?", "Who built the house?"):
        ask_first(way, model, [system, {"role": "user", "content": question}])
    before = way.log().count("context_warmed")
    ask(way.address, "/api/unload", {})
    ask(way.address, "/api/load", {"model": model})
    deadline = time.monotonic() + _TIMEOUT_S
    while is_warm and way.log().count("context_warmed") == before:
        if time.monotonic() > deadline:
            raise ContenderError(f"{way.name} read nothing ahead")
        time.sleep(0.05)
    took_s = ask_first(way, model, [system, {"role": "user", "content": "When was the letter read?"}])
    into.add(way.name, f"{_SYSTEM_TOKENS} tokens", took_s * MS)
