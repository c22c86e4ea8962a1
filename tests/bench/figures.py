"""The figures of a run: every round's value of every measurement, and their statistics. Knows no process."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

MS = 1000.0


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of several rounds, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)


@dataclass(slots=True)
class Measurement:
    """One measurement: a table of contenders and columns. A column's name says its unit."""

    title: str
    rows: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, contender: str, column: str, value: float) -> None:
        """One round's value."""
        self.rows.setdefault(contender, {}).setdefault(column, []).append(value)

    def note(self, text: str) -> None:
        """A note for the reader; each is kept once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.rows.values() for column in row))

    def spread(self, contender: str, column: str) -> Spread | None:
        values = self.rows.get(contender, {}).get(column)
        return Spread.of(values) if values else None


@dataclass(slots=True)
class Figures:
    """All measurements of a run, in the order in which they were made."""

    measurements: dict[str, Measurement] = field(default_factory=dict)

    def of(self, name: str, title: str) -> Measurement:
        """The measurement of that name; the first call makes it."""
        return self.measurements.setdefault(name, Measurement(title))


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` (0 to 1) of the values lie: one of them, without interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
