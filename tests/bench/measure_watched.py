"""What watchers cost: the page open in three tabs and Prometheus once a second, beside nobody, in one run."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from bench.contenders import OURS, Contender, Kind, Lineup, ask
from bench.effort import Effort
from bench.figures import MS, Figures, Measurement
from bench.processes import cpu_s, pss_mib
from support.stack import rss_mib

_TABS = 3
_SCRAPE_EVERY_S = 1.0
_WARM_UP = 50
_NOBODY = "nobody watches"
_WATCHED = f"{_TABS} pages, and a scrape a second"
_RISE = "rise (%)"


class _Pace(NamedTuple):
    """How often the one client asks. `share` is how many of the effort's requests: a slow pace takes longer."""

    name: str
    pause_ms: int
    share: float


_PACES = (_Pace("back to back", 0, 4.0), _Pace("pauses of 5 ms", 5, 1.0))


def measure_watched(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """Added latency of a hot request, CPU and memory of the idle proxy, each without and with watchers."""
    into = figures.of("watched", "A hot request's added latency (ms) and the idle proxy, by who watches")
    into.note(
        f"Both rows are of the same process and alternate, in another order each round. The watchers read "
        f"`/api/events` and `/metrics`. *{_RISE}*: of the pairs of one round."
    )
    proxy = lineup.makers[OURS](Kind.FAST)
    assert proxy is not None
    proxy.load()
    _note_idle(proxy, _NOBODY, effort, into)
    for number in range(effort.rounds):
        for pace in _PACES:
            _one_round(lineup, proxy, pace, number, effort, into)
    with _watchers(proxy.address):
        _note_idle(proxy, _WATCHED, effort, into)
    proxy.stop()


def _one_round(lineup: Lineup, proxy: Contender, pace: _Pace, number: int, effort: Effort, into: Measurement) -> None:
    added: dict[str, dict[str, float]] = {}
    for name in (_NOBODY, _WATCHED) if number % 2 else (_WATCHED, _NOBODY):
        with _watchers(proxy.address) if name == _WATCHED else contextlib.nullcontext():
            added[name] = _added_ms(lineup, proxy, pace, effort)
    for column, before_ms in added[_NOBODY].items():
        into.add(_NOBODY, column, before_ms)
        into.add(_WATCHED, column, added[_WATCHED][column])
        into.add(_RISE, column, (added[_WATCHED][column] / before_ms - 1) * 100)


def _added_ms(lineup: Lineup, proxy: Contender, pace: _Pace, effort: Effort) -> dict[str, float]:
    """By column: beyond the same request straight to the backend, in the same turns."""
    backend = proxy.backend()
    assert backend is not None
    load = lineup.bed.programs.generator.run(
        [backend, proxy.address], proxy.chat(), requests=int(effort.fast_requests * pace.share), warm_up=_WARM_UP,
        pause_ms=pace.pause_ms,
    )  # fmt: skip
    alone, ours = load.answers
    percentiles = {"p50": 0.5, "p95": 0.95}
    return {
        f"added {label}, {pace.name}": (ours.percentile_s(part) - alone.percentile_s(part)) * MS
        for label, part in percentiles.items()
    }


def _note_idle(proxy: Contender, name: str, effort: Effort, into: Measurement) -> None:
    assert proxy.pid is not None
    time.sleep(1)  # what the last requests left to do is done
    before_s = cpu_s(proxy.pid)
    time.sleep(effort.idle_s)
    into.add(name, "CPU idle (ms/s)", (cpu_s(proxy.pid) - before_s) / effort.idle_s * MS)
    into.add(name, "memory idle, resident (MiB)", rss_mib(proxy.pid))
    into.add(name, "proportional (MiB)", pss_mib(proxy.pid))


# --- the watchers -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _watchers(address: str) -> Iterator[None]:
    """Within, the tabs and Prometheus are connected, and have got their first answers."""
    is_over = threading.Event()
    scraper = threading.Thread(target=_scrape, args=(address, is_over))
    with contextlib.ExitStack() as stack:
        for _ in range(_TABS):
            stack.enter_context(_tab(address))
        ask(address, "/metrics")  # the first one imports the library
        scraper.start()
        try:
            yield
        finally:
            is_over.set()
            scraper.join()


@contextlib.contextmanager
def _tab(address: str) -> Iterator[None]:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET /api/events HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        first = connection.recv(1 << 16)
        assert first.startswith(b"HTTP/1.1 200"), first
        reader = threading.Thread(target=_read, args=(connection,))
        reader.start()
        try:
            yield
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            reader.join()


def _read(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        continue


def _scrape(address: str, is_over: threading.Event) -> None:
    while not is_over.wait(_SCRAPE_EVERY_S):
        ask(address, "/metrics")
