"""How much longer a switch takes than the same steps by hand: stop, start, wait for readiness."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.bed import Bed
from bench.contenders import OURS, Contender, Kind, Lineup, ask, chat, end, model_command, turned, write_units
from bench.effort import Effort
from bench.figures import MS, Figures, Measurement
from support.stack import Stack, free_port

_POLL_S = 0.001
HAND_SYSTEMD = "by hand, systemctl"
HAND_SPAWN = "by hand, processes"

# Loads a model (0 or 1) in place of the other and sends it one request; seconds.
Switch = Callable[[int], float]
# A way to switch, and the name of the one by hand that it is compared with.
Way = tuple[Switch, str | None]


class ByUnits:
    """systemctl stop, systemctl start, /health until it is ready, one request."""

    def __init__(self, bed: Bed, kind: Kind) -> None:
        self._stack: Stack = bed.stack("hand")
        self._kind = kind
        self._units = write_units(bed, self._stack, kind)

    def __call__(self, index: int) -> float:
        model, other = self._kind.models[index], self._kind.models[1 - index]
        began = time.perf_counter()
        self._stack.systemctl("stop", self._units[other])
        self._stack.systemctl("start", self._units[model])
        finish(f"127.0.0.1:{self._stack.port}", model)
        return time.perf_counter() - began


class ByProcesses:
    """SIGTERM and wait, start the program, /health until it is ready, one request."""

    def __init__(self, bed: Bed, kind: Kind) -> None:
        self._programs = bed.programs
        self._kind = kind
        self._port = free_port()
        self._running: subprocess.Popen[bytes] | None = None
        bed.closing.callback(self._end)

    def __call__(self, index: int) -> float:
        command = shlex.split(model_command(self._programs, self._kind, index, self._port))
        began = time.perf_counter()
        self._end()
        self._running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        finish(f"127.0.0.1:{self._port}", self._kind.models[index])
        return time.perf_counter() - began

    def _end(self) -> None:
        if self._running is not None:
            end(self._running)


def finish(address: str, model: str) -> None:
    """Waits until a backend is ready, and sends it a request."""
    while not _is_ready(address):
        time.sleep(_POLL_S)
    ask(address, "/v1/chat/completions", chat(model))


def _is_ready(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def measure_switch(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """4: A → B → A, on the stand-in, on the real model, and with the model's file out of the page cache."""
    fast = figures.of("switch-fast", "A switch, stand-in that is ready at once (ms)")
    real = figures.of("switch-real", "A switch, real model, file in the page cache (ms)")
    cold = figures.of("switch-cold", "A switch, real model, file not in the page cache (ms)")
    switches = {kind: _switches(lineup, kind) for kind in Kind}
    for number in range(effort.switch_rounds):
        for index in (1, 0):
            _round(switches[Kind.FAST], number, index, fast)
            _round(switches[Kind.REAL], number, index, real)
    for number in range(effort.switch_rounds):
        _cold_round(lineup.bed, switches[Kind.REAL], number, cold)
    for measurement in (fast, real, cold):
        measurement.note(
            "From the request to the end of its reply. *Beyond*: the time beyond a stop, a start and a `/health` every "
            "millisecond by hand in the same round; contenders on systemd units are compared with "
            f"*{HAND_SYSTEMD}*, the others with *{HAND_SPAWN}*."
        )


def measure_read_ahead(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """How much faster a load is if the model's file was read while the other model still worked."""
    loads = figures.of("read-ahead", "Loading the next model: from its start to its readiness, real model (ms)")
    proxy = next(contender for contender in lineup.of(Kind.REAL) if contender.name == OURS)
    file = lineup.bed.programs.real.files[1]
    for _ in range(effort.switch_rounds):
        loads.add("file in the page cache", "load", _load_ms(proxy, lambda: None))
        loads.add("file not in the page cache, the loaded model idle", "load", _load_ms(proxy, lambda: _evict(file)))
        loads.add(
            "file not in the page cache, the loaded model still works for a second", "load",
            _load_ms(proxy, lambda: _evict(file), busy_tokens=60),
        )  # fmt: skip
    loads.note("`load_ms` of /api/status: without the time to stop the other model.")


def _load_ms(proxy: Contender, prepare: Callable[[], None], busy_tokens: int = 0) -> float:
    """Loads B in place of A."""
    proxy.ask(chat(Kind.REAL.models[0]))
    prepare()
    busy = chat(Kind.REAL.models[0], max_tokens=busy_tokens, ignore_eos=True)
    worker = threading.Thread(target=proxy.ask, args=(busy,))
    if busy_tokens:
        worker.start()
        time.sleep(0.1)
    proxy.ask(chat(Kind.REAL.models[1]))
    if busy_tokens:
        worker.join()
    switches = json.loads(ask(proxy.address, "/api/status"))["switches"]
    return float(switches[-1]["load_ms"])


def _switches(lineup: Lineup, kind: Kind) -> dict[str, Way]:
    """Every way to switch, by name; all have model A loaded afterwards."""

    def through(address: str) -> Switch:
        def switch(index: int) -> float:
            began = time.perf_counter()
            ask(address, "/v1/chat/completions", chat(kind.models[index]))
            return time.perf_counter() - began

        return switch

    found: dict[str, Way] = {
        HAND_SYSTEMD: (ByUnits(lineup.bed, kind), None),
        HAND_SPAWN: (ByProcesses(lineup.bed, kind), None),
    }
    for contender in lineup.of(kind):
        by_hand = HAND_SYSTEMD if contender.uses_systemd else HAND_SPAWN
        found[contender.name] = through(contender.address), by_hand
    for switch, _ in found.values():
        switch(0)
    return found


def _round(switches: dict[str, Way], number: int, index: int, into: Measurement) -> None:
    _tell(switches, {name: switches[name][0](index) for name in turned(list(switches), number)}, into)


def _cold_round(bed: Bed, switches: dict[str, Way], number: int, into: Measurement) -> None:
    """Only one at a time may hold B: what a process has mapped stays in the cache."""
    took_s = {}
    for name in turned(list(switches), number):
        switch = switches[name][0]
        _evict(bed.programs.real.files[1])
        took_s[name] = switch(1)
        switch(0)
    _tell(switches, took_s, into)


def _tell(switches: dict[str, Way], took_s: dict[str, float], into: Measurement) -> None:
    for name, (_, by_hand) in switches.items():
        into.add(name, "total", took_s[name] * MS)
        if by_hand is not None:
            into.add(name, "beyond", (took_s[name] - took_s[by_hand]) * MS)


def _evict(file: Path) -> None:
    """Drops a file that nobody has mapped from the page cache."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)  # a page that is not yet on the disk would stay in the cache
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
