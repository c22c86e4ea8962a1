"""What faults cost: a backend that was killed while it was idle, a model that cannot start."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from bench.bed import Bed
from bench.contenders import (
    BROKEN,
    BROKEN_REASON,
    Contender,
    ContenderError,
    Kind,
    Lineup,
    ask,
    backend_of,
    chat,
    port_pid,
    turned,
    write_units,
)
from bench.effort import Effort
from bench.figures import MS, Figures, Measurement
from bench.measure_switch import HAND_SYSTEMD, finish

_GONE_TIMEOUT_S = 5.0


def measure_faults(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """8: the first request after a kill, and the first for a model that ends at once."""
    killed = figures.of("killed", "The next request after the idle backend was killed, real model (ms)")
    killed.note(
        "*Beyond*: the time beyond `systemctl start`, readiness and the request itself by hand in the same round; "
        "*served* is 1 for an answer and 0 for an error."
    )
    restart = _RestartByHand(lineup.bed)
    for number in range(effort.fault_rounds):
        by_hand_s = restart()
        killed.add(HAND_SYSTEMD, "total", by_hand_s * MS)
        for contender in turned(lineup.with_alone(Kind.REAL)[1:], number):
            _kill_round(contender, backend_of(contender, [contender]), by_hand_s, killed)
    broken = figures.of("broken", "A model whose program ends at once: time to the error (ms)")
    broken.note("*Reason* is 1 if the error contains the program's own words.")
    for _ in range(effort.fault_rounds):
        for maker in lineup.makers.values():
            contender = maker(Kind.REAL)  # a new one: a contender may treat a second failure differently
            if contender is not None and contender.has_broken:
                _broken_round(contender, broken)
                contender.stop()


class _RestartByHand:
    """A unit that is killed and started again; a call returns the seconds that the start and a request took."""

    def __init__(self, bed: Bed) -> None:
        self._stack = bed.stack("killed")
        self._model = Kind.REAL.models[0]
        self._unit = write_units(bed, self._stack, Kind.REAL)[self._model]
        self._start()

    def __call__(self) -> float:
        kill(self._stack.main_pid(self._unit))
        self._stack.systemctl("reset-failed", self._unit, check=False)
        return _timed(self._start)

    def _start(self) -> None:
        self._stack.systemctl("start", self._unit)
        finish(f"127.0.0.1:{self._stack.port}", self._model)


def kill(pid: int) -> None:
    """Kills a process that is not our child, and waits until it is gone."""
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _GONE_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.001)


def _kill_round(contender: Contender, backend: str, by_hand_s: float, into: Measurement) -> None:
    pid = port_pid(backend)
    assert pid is not None
    kill(pid)
    began = time.perf_counter()
    try:
        contender.ask(contender.chat())
    except ContenderError:
        into.add(contender.name, "served", 0)
        return
    took_s = time.perf_counter() - began
    into.add(contender.name, "served", 1)
    into.add(contender.name, "total", took_s * MS)
    into.add(contender.name, "beyond", (took_s - by_hand_s) * MS)


def _broken_round(contender: Contender, into: Measurement) -> None:
    contender.load()
    began = time.perf_counter()
    try:
        ask(contender.address, "/v1/chat/completions", chat(BROKEN))
    except ContenderError as error:
        into.add(contender.name, "error after", (time.perf_counter() - began) * MS)
        into.add(contender.name, "reason", BROKEN_REASON in str(error))


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
