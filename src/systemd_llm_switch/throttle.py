"""How often events of one kind may be logged. Takes the clock as an argument."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PER_S = 10
_MOST_KINDS = 256  # a kind is one of our own words; the bound holds where somebody forgets that
_SECOND = 1.0


class Throttle:
    """Counts events by kind, and admits `per_s` of each kind in a second. Thread-safe; does not block.

    if (unlogged := throttle.admit("forbidden_origin")) is not None:
        log.warning("refused … unlogged=%d", …, unlogged)

    `report` gets a kind and a number: what was not logged, where no further event came within about a second to say
    so. A thread of its own calls it, which there is only after a burst.
    """

    def __init__(
        self,
        report: Callable[[str, int], None] | None = None,
        per_s: int = PER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._per_s = per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[str, _Kind] = {}
        self._is_reporting = False

    def admit(self, kind: str) -> int | None:
        """Counts one event. None if it must not be logged; else how many of its kind were not logged since the last one
        that was."""
        now = self._clock()
        with self._lock:
            if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
                kind = ""
            known = self._kinds.setdefault(kind, _Kind(now))
            known.count += 1
            if now - known.began >= _SECOND:
                known.began, known.logged = now, 0
            if known.logged < self._per_s:
                known.logged += 1
                unlogged, known.unlogged = known.unlogged, 0
                return unlogged
            known.unlogged += 1
            must_start = self._report is not None and not self._is_reporting
            self._is_reporting = self._is_reporting or must_start
        if must_start:
            self._report_later()
        return None

    def counts(self) -> dict[str, int]:
        """How many events of each kind there were, logged or not."""
        with self._lock:
            return {kind: known.count for kind, known in self._kinds.items()}

    def _report_later(self) -> None:
        timer = threading.Timer(_SECOND, self._report_rest)
        timer.name, timer.daemon = "unlogged", True
        try:
            timer.start()
        except RuntimeError:  # no thread to be had now; the next event tries again
            self._is_reporting = False

    def _report_rest(self) -> None:
        """Reports what no event has said since."""
        with self._lock:
            self._is_reporting = False
            rest = {kind: known.unlogged for kind, known in self._kinds.items() if known.unlogged}
            for kind in rest:
                self._kinds[kind].unlogged = 0
        for kind, unlogged in rest.items():
            if self._report is not None:
                self._report(kind, unlogged)


class _Kind:
    """One kind: its events in all, and those of the second that began last."""

    __slots__ = ("began", "count", "logged", "unlogged")

    def __init__(self, now: float) -> None:
        self.began = now
        self.count = self.logged = self.unlogged = 0
