"""The counts behind /metrics: plain numbers, added up from finished requests and switches. Must not know Prometheus."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from systemd_llm_switch.openai.shapes import Json

# Upper bounds of the histograms: from a request that does not wait to a load of ten minutes.
BOUNDS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_FOLD_AT = 256  # so many uncounted entries are counted at once


class Seen(NamedTuple):
    """A finished request: its entry in the list of requests, and the kinds of its repairs."""

    entry: Json
    repairs: tuple[str, ...]


@dataclass(slots=True)
class Histogram:
    """Counts durations (s) by upper bound; the last count is for durations above all bounds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Tally:
    """Thread-safe. A note is one append. Notes are counted when the numbers are read, or when many have come."""

    def __init__(self) -> None:
        self._pending: deque[Seen] = deque()
        self._lock = threading.Lock()
        self.requests: Counter[tuple[str, str, str]] = Counter()  # model, route, status
        self.errors: Counter[str] = Counter()
        self.repairs: Counter[str] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()  # model, kind
        self.switches: Counter[tuple[str, str]] = Counter()  # model, outcome
        self.switch_s = 0.0
        self.durations: dict[tuple[str, str], Histogram] = {}  # what, model

    def note_request(self, entry: Json, repairs: Iterable[str]) -> None:
        """A request is over."""
        self._pending.append(Seen(entry, tuple(repairs)))
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
                self._count(*self._pending.popleft())

    def _count(self, entry: Json, repairs: Sequence[str]) -> None:
        model = "" if entry["model"] == "-" else entry["model"]  # never a name that only the client knows
        self.requests[model, entry["path"], str(entry["status"])] += 1
        self.repairs.update(repairs)
        if entry["error"]:
            self.errors[entry["error"]] += 1
        for kind in ("prompt", "cached", "completion"):
            self.tokens[model, kind] += entry[f"{kind}_tokens"] or 0
        for what in ("queue", "switch", "backend"):
            self._duration(f"request_{what}", model, entry[f"{what}_ms"])
        if entry["first_token_ms"] is not None:
            self._duration("time_to_first_token", model, entry["first_token_ms"])

    def _duration(self, what: str, model: str, milliseconds: float) -> None:
        self.durations.setdefault((what, model), Histogram()).add(milliseconds / 1000)
