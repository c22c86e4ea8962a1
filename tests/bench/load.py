"""The load generator, load.c, as a function."""

from __future__ import annotations

import json
import subprocess
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import percentile

_LIMIT_S = 300


class LoadError(Exception):
    """A contender gave a wrong answer, so the figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one address answered: latencies in seconds, of the requests that succeeded."""

    latencies_s: list[float]
    errors: int
    connections: int

    def percentile_s(self, part: float) -> float:
        return percentile(self.latencies_s, part)


@dataclass(frozen=True, slots=True)
class Load:
    """One run of the generator. `generator_s` is the generator's own CPU time."""

    elapsed_s: float
    generator_s: float
    answers: list[Answers]

    @property
    def per_s(self) -> float:
        return sum(len(answers.latencies_s) for answers in self.answers) / self.elapsed_s


@dataclass(frozen=True, slots=True)
class Generator:
    """The compiled program; `folder` holds the bodies that it sends."""

    program: Path
    folder: Path

    def start(self, addresses: Sequence[str], body: Any = None, **options: Any) -> subprocess.Popen[str]:
        """Starts a run; `collect` ends it. Options are those of load.c, with `_` for `-` (`True`: no value)."""
        command = [str(self.program), *addresses]
        if body is not None:
            text = json.dumps(body)
            path = self.folder / f"body-{zlib.crc32(text.encode()):08x}.json"
            path.write_text(text)
            command += ["--body", str(path)]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, addresses: Sequence[str], body: Any = None, **options: Any) -> Load:
        """One run from its start to its end.

        Raises:
            LoadError: an answer was wrong.
        """
        return collect(self.start(addresses, body, **options))


def collect(process: subprocess.Popen[str]) -> Load:
    """Waits for the end of a run.

    Raises:
        LoadError: an answer was wrong.
    """
    out, err = process.communicate(timeout=_LIMIT_S)
    if process.returncode:
        raise LoadError(f"{_asked(process)}: {err.strip()}")
    result = json.loads(out)
    answers = [
        Answers([us / 1e6 for us in each["latencies_us"]], each["errors"], each["connections"])
        for each in result["targets"]
    ]
    for each, raw in zip(answers, result["targets"], strict=True):
        if each.errors or not each.latencies_s:
            kind = raw["failed_status"] or "a broken connection"
            raise LoadError(f"{_asked(process)}: {each.errors} errors, the last: {kind}")
    return Load(result["elapsed_s"], result["cpu_s"], answers)


def _asked(process: subprocess.Popen[str]) -> str:
    return f"load {' '.join(process.args[1:])}" if isinstance(process.args, list) else "load"
