"""How often events of one kind may be logged. Pure: it takes the clock as an argument."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PER_S = 10
_MOST_KINDS = 256  # a kind is one of our own words; the bound holds where somebody forgets that


class Throttle:
    """Counts events by kind, and admits `per_s` of each kind in a second. Thread-safe; does not block.

    if (unlogged := throttle.admit("forbidden_origin")) is not None:
        log.warning("refused … unlogged=%d", …, unlogged)
    """

    def __init__(self, per_s: int = PER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[str, _Kind] = {}

    def admit(self, kind: str) -> int | None:
        """Counts one event. None if it must not be logged; else how many of its kind were not logged since the last one
        that was."""
        now = self._clock()
        with self._lock:
            if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
                kind = ""
            known = self._kinds.setdefault(kind, _Kind(now))
            known.count += 1
            if now - known.began >= 1:
                known.began, known.logged = now, 0
            if known.logged >= self._per_s:
                known.unlogged += 1
                return None
            known.logged += 1
            unlogged, known.unlogged = known.unlogged, 0
            return unlogged

    def counts(self) -> dict[str, int]:
        """How many events of each kind there were, logged or not."""
        with self._lock:
            return {kind: known.count for kind, known in self._kinds.items()}


class _Kind:
    """One kind: its events in all, and those of the second that began last."""

    __slots__ = ("began", "count", "logged", "unlogged")

    def __init__(self, now: float) -> None:
        self.began = now
        self.count = self.logged = self.unlogged = 0
