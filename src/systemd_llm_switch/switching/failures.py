"""Each unit's failed starts in a row, and whether one more attempt is worth stopping another model.

The caller passes in the unit's status and the time (seconds, monotonic).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple, Self

from systemd_llm_switch.errors import ModelStartFailed, ProxyError
from systemd_llm_switch.systemd.unit import UnitStatus

FAILURES_OF_A_LOOP = 3
PAUSE_S = 30.0


class Condition(NamedTuple):
    """Changes when someone works on the unit: `reset-failed` clears the result, and an edit changes the files."""

    files: tuple[tuple[str, int], ...]  # path and modification time in ns
    needs_daemon_reload: bool
    active_state: str
    result: str
    invocation_id: str

    @classmethod
    def of(cls, status: UnitStatus) -> Self:
        """A unit's condition now. Reads the modification times of its files."""
        files = tuple((path, _changed_at_ns(path)) for path in status.files)
        return cls(files, status.needs_daemon_reload, status.active_state, status.result, status.invocation_id)


@dataclass(frozen=True, slots=True)
class _Series:
    count: int
    last_at: float
    message: str  # not the error: its traceback would keep the start's process and connections
    is_permanent: bool
    condition: Condition


class Failures:
    """Remembers each unit's failed starts in a row. Not thread-safe; one switch at a time uses it."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}

    def note_failure(self, unit: str, error: ProxyError, condition: Condition, now: float) -> None:
        """One more start failed; `condition` is taken after the unit was stopped again."""
        before = self._series.get(unit)
        count = before.count + 1 if before is not None else 1
        self._series[unit] = _Series(count, now, error.message, error.permanent, condition)

    def note_success(self, unit: str) -> None:
        """The unit became ready."""
        self._series.pop(unit, None)

    def refusal(self, unit: str, condition: Condition, now: float) -> ProxyError | None:
        """The error to raise instead of one more attempt; None if an attempt is worthwhile."""
        series = self._series.get(unit)
        if series is None or series.condition != condition:
            self._series.pop(unit, None)
            return None
        left_s = series.last_at + PAUSE_S - now
        if series.count < FAILURES_OF_A_LOOP or left_s <= 0:
            return None
        refusal = ModelStartFailed(
            f"unit {unit} failed {series.count} times in a row and is not tried again for {left_s:.0f} s, unless its "
            f"unit file changes or `systemctl --user reset-failed {unit}` is run: {series.message}",
            permanent=series.is_permanent,
        )
        refusal.retry_after_s = left_s
        return refusal


def _changed_at_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116  (a path as systemd gave it)
    except OSError:
        return 0
