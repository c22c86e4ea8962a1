"""The counts behind /metrics: plain numbers, added up from finished requests and switches. Must not know Prometheus."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass, field

from systemd_llm_switch.observe.requests import Finished
from systemd_llm_switch.openai.shapes import Json

# Upper bounds of the histograms: from a request that does not wait to a load of ten minutes.
BOUNDS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_FOLD_AT = 32  # so many uncounted entries are counted at once


@dataclass(slots=True)
class Histogram:
    """Counts durations (s) by upper bound; the last count is for durations above all bounds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class ModelTally:
    """The tokens and durations of one model's requests."""

    __slots__ = ("backend", "cached", "completion", "first_token", "prompt", "queue", "switch")

    def __init__(self) -> None:
        self.prompt = self.cached = self.completion = 0  # tokens
        self.queue, self.switch, self.backend = Histogram(), Histogram(), Histogram()
        self.first_token = Histogram()

    def add(self, request: Finished) -> None:
        """Counts one request."""
        self.prompt += request.prompt_tokens or 0
        self.cached += request.cached_tokens or 0
        self.completion += request.completion_tokens or 0
        queue_ms, switch_ms, backend_ms = request.times_ms
        self.queue.add(queue_ms / 1000)
        self.switch.add(switch_ms / 1000)
        self.backend.add(backend_ms / 1000)
        if request.first_token_ms is not None:
            self.first_token.add(request.first_token_ms / 1000)


class Tally:
    """Thread-safe. A note is one append. Notes are counted when the numbers are read, or when many have come."""

    def __init__(self) -> None:
        self._pending: deque[Finished] = deque()
        self._lock = threading.Lock()
        self.requests: Counter[tuple[str, str, int]] = Counter()  # model, route, status
        self.errors: Counter[str] = Counter()
        self.repairs: Counter[str] = Counter()
        self.models: dict[str, ModelTally] = {}
        self.switches: Counter[tuple[str, str]] = Counter()  # model, outcome
        self.switch_s = 0.0

    def note_request(self, request: Finished) -> None:
        """A request is over."""
        self._pending.append(request)
        if len(self._pending) >= _FOLD_AT:
            self.fold()

    def note_switch(self, record: Json) -> None:
        """A switch is over: a record of /api/status."""
        with self._lock:
            outcome = "ok" if record["error"] is None else "failed"
            self.switches[record["to"] or "", outcome] += 1
            self.switch_s += (record["stop_ms"] + record["load_ms"]) / 1000

    def fold(self) -> None:
        """Counts all notes so far."""
        with self._lock:
            for _ in range(len(self._pending)):
                self._count(self._pending.popleft())

    def _count(self, request: Finished) -> None:
        model = "" if request.model == "-" else request.model  # never a name that only the client knows
        self.requests[model, request.path, request.status] += 1
        if request.repairs:
            self.repairs.update(request.repairs)
        if request.error:
            self.errors[request.error] += 1
        if (known := self.models.get(model)) is None:
            known = self.models[model] = ModelTally()
        known.add(request)
