"""Starts that failed again and again: whether one more is worth stopping another model for.

The unit's status and the clock (seconds, monotonic) are passed in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple, Self

from systemd_llm_switch.errors import ModelStartFailed, ProxyError
from systemd_llm_switch.systemd.unit import UnitStatus

FAILURES_OF_A_LOOP = 3
PAUSE_S = 30.0


class Fingerprint(NamedTuple):
    """What differs once somebody has worked on a unit: `reset-failed` clears the result, an edit changes the files."""

    files: tuple[tuple[str, int], ...]  # path, time of change in ns
    needs_daemon_reload: bool
    active_state: str
    result: str
    invocation_id: str

    @classmethod
    def of(cls, status: UnitStatus) -> Self:
        """The unit's fingerprint now. Looks at the times of its files."""
        files = tuple((path, _changed_at_ns(path)) for path in status.files)
        return cls(files, status.needs_daemon_reload, status.active_state, status.result, status.invocation_id)


@dataclass(frozen=True, slots=True)
class _Series:
    count: int
    last_at: float
    error: ProxyError
    fingerprint: Fingerprint


class Failures:
    """Remembers each unit's failed starts in a row. Not thread-safe; one switch at a time uses it."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}

    def note_failure(self, unit: str, error: ProxyError, fingerprint: Fingerprint, now: float) -> None:
        """One more start failed; `fingerprint` is of the unit after it was stopped again."""
        before = self._series.get(unit)
        count = before.count + 1 if before is not None else 1
        self._series[unit] = _Series(count, now, error, fingerprint)

    def note_success(self, unit: str) -> None:
        """The unit came up."""
        self._series.pop(unit, None)

    def refusal(self, unit: str, fingerprint: Fingerprint, now: float) -> ProxyError | None:
        """The error to give at once, instead of one more attempt; None where an attempt is worth it."""
        series = self._series.get(unit)
        if series is None or series.fingerprint != fingerprint:
            self._series.pop(unit, None)
            return None
        left_s = series.last_at + PAUSE_S - now
        if series.count < FAILURES_OF_A_LOOP or left_s <= 0:
            return None
        refusal = ModelStartFailed(
            f"unit {unit} failed {series.count} times in a row and is not tried again for {left_s:.0f} s, unless its "
            f"unit file changes or `systemctl --user reset-failed {unit}` is run: {series.error.message}",
            permanent=series.error.permanent,
        )
        refusal.retry_after_s = left_s
        return refusal


def _changed_at_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116  (a path as systemd gave it)
    except OSError:
        return 0
