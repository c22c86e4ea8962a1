"""How much a run does: all measurements in full, or a short run that only shows that they work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """All counts but `rounds` are for one round."""

    rounds: int
    fast_requests: int
    real_requests: int
    load_s: float
    clients: tuple[int, ...]
    delay_ms: int
    parallel: tuple[int, ...]
    switch_rounds: int
    stream_requests: int
    disconnect_rounds: int
    long_tokens: int
    footprint_rounds: int
    footprint_requests: int
    large_s: float
    idle_s: float
    fault_rounds: int
    context_rounds: int
    context_tokens: tuple[int, ...]


FULL = Effort(
    rounds=7, fast_requests=500, real_requests=100, load_s=1.5, clients=(1, 8, 32, 64), delay_ms=2000,
    parallel=(32, 64), switch_rounds=7, stream_requests=15, disconnect_rounds=3, long_tokens=400,
    footprint_rounds=3, footprint_requests=10_000, large_s=10.0, idle_s=5.0, fault_rounds=5,
    context_rounds=2, context_tokens=(500, 1500, 3000),
)  # fmt: skip
QUICK = Effort(
    rounds=2, fast_requests=200, real_requests=20, load_s=0.5, clients=(1, 32), delay_ms=500,
    parallel=(32,), switch_rounds=2, stream_requests=4, disconnect_rounds=1, long_tokens=150,
    footprint_rounds=1, footprint_requests=1000, large_s=1.0, idle_s=1.0, fault_rounds=3,
    context_rounds=1, context_tokens=(500,),
)  # fmt: skip
