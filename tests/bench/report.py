"""The report of a run, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.figures import Figures, Measurement, Spread


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and when a run was made."""

    processor: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    load_before: float
    at: str

    @classmethod
    def here(cls) -> Machine:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        cores, load = len(os.sched_getaffinity(0)), round(os.getloadavg()[0], 2)
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        python = platform.python_version()
        return cls(processor, cores, round(memory, 1), platform.release(), python, load, now)

    def describe(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_gib:g} GiB, Linux {self.kernel}, Python "
            f"{self.python}, {self.at}, load average before the run {self.load_before:g}. Contender, backend and "
            f"load generator share the {self.cores} cores; all contenders are interleaved in one run, so compare "
            f"rows of a table, not tables of different runs."
        )


def as_markdown(figures: Figures, machine: Machine) -> str:
    """All tables: the median of the rounds, and the quartiles if they differ from it."""
    parts = [machine.describe()]
    parts += [_table(measurement) for measurement in figures.measurements.values() if measurement.rows]
    return "\n\n".join(parts) + "\n"


def _table(measurement: Measurement) -> str:
    columns = measurement.columns
    rounds = max(len(values) for row in measurement.rows.values() for values in row.values())
    lines = [f"### {measurement.title}", "", _row(["", *columns]), _row(["---"] * (len(columns) + 1))]
    for contender in measurement.rows:
        lines.append(_row([contender, *(_cell(measurement.spread(contender, column)) for column in columns)]))
    notes = [*measurement.notes, f"Median of {rounds} rounds (quartiles)."]
    return "\n".join([*lines, "", " ".join(notes)])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    low, middle, high = number(spread.low), number(spread.median), number(spread.high)
    return middle if low == high else f"{middle} ({low} to {high})"


def number(value: float) -> str:
    """A number with three significant digits."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def as_json(figures: Figures, machine: Machine) -> str:
    """Every round's value."""
    values: dict[str, Any] = {"machine": asdict(machine), "measurements": {}}
    for name, measurement in figures.measurements.items():
        values["measurements"][name] = asdict(measurement)
    return json.dumps(values, indent=1) + "\n"
