"""What a proxy takes by itself: time to start, memory and CPU when idle, memory after much work."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from bench.contenders import OURS, Contender, Kind, Lineup
from bench.effort import Effort
from bench.figures import MS, Figures, Measurement
from bench.load import Generator
from bench.measure_hot import LARGE
from bench.processes import cpu_s
from support.stack import ROOT, rss_mib

_CLIENTS = 8
_NOTHING = "pass"
_IMPORT = "import systemd_llm_switch.command.running"


def measure_footprint(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """7: each time a fresh process of every contender that can be started anew."""
    into = figures.of("footprint", "Start, memory and CPU of the proxy itself")
    into.note(f"Memory is the resident set; the requests come from {_CLIENTS} clients with keep-alive.")
    for _ in range(effort.footprint_rounds):
        for maker in lineup.makers.values():
            contender = maker(Kind.FAST)
            if contender is not None and contender.start_s is not None:
                _one_life(lineup.bed.programs.generator, contender, effort, into)
                contender.stop()
        into.add(OURS, "import of its modules (ms)", (_python_s(_IMPORT) - _python_s(_NOTHING)) * MS)


def _one_life(generator: Generator, contender: Contender, effort: Effort, into: Measurement) -> None:
    assert contender.pid is not None
    assert contender.start_s is not None
    name, pid, count = contender.name, contender.pid, effort.footprint_requests
    into.add(name, "start until it listens (ms)", contender.start_s * MS)
    contender.load()
    into.add(name, "memory idle, model loaded (MiB)", rss_mib(pid))
    before_s = cpu_s(pid)
    time.sleep(effort.idle_s)
    into.add(name, "CPU idle (ms/s)", (cpu_s(pid) - before_s) / effort.idle_s * MS)
    for after in (count, 2 * count):
        generator.run([contender.address], contender.chat(), clients=_CLIENTS, requests=count)
        into.add(name, f"after {after} requests", rss_mib(pid))
    generator.run([contender.address], contender.chat(**LARGE), clients=_CLIENTS, seconds=effort.large_s)
    into.add(name, f"after {effort.large_s:g} s of 200 KB replies", rss_mib(pid))


def _python_s(program: str) -> float:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], env=env, check=True)
    return time.perf_counter() - began
