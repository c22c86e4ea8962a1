"""Streams as they come, and how long a backend works on after its client left."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

from bench.contenders import ALONE, Contender, ContenderError, Kind, Lineup, backend_of, port_pid, turned
from bench.effort import Effort
from bench.figures import MS, Figures, Measurement, percentile
from bench.processes import cpu_s

# The stand-in's stream: as a model that needs 50 ms for the prompt and then makes 100 tokens a second.
_PACE = {"standin": {"delay_ms": 50, "chunks": 20, "chunk_ms": 10}}
_TOKENS = 16
_GENERATING_S = 0.7
_LOOK_S = 0.05
_WORK_S = 0.002
_QUIET_S = 0.3
_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When the pieces of a streamed answer came, in seconds after its request."""

    times_s: list[float]

    @property
    def first_s(self) -> float:
        return self.times_s[0]

    @property
    def gaps_s(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times_s, self.times_s[1:], strict=False)]


def stream(address: str, body: dict[str, Any]) -> Arrivals:
    """One streamed request; blocks until its end."""
    times_s: list[float] = []
    with _connect(address) as sock:
        began = time.perf_counter()
        _send(sock, address, body)
        line = b""
        while data := sock.recv(65536):
            at = time.perf_counter() - began
            *lines, line = (line + data).split(b"\n")
            times_s += [at] * sum(map(_has_text, lines))
            if any(each.startswith(b"data: [DONE]") for each in lines):
                break
    if not times_s:
        raise ContenderError(f"{address} streamed no text")
    return Arrivals(times_s)


def _has_text(line: bytes) -> bool:
    if not line.startswith(b"data: {"):
        return False
    choices = json.loads(line[6:]).get("choices") or [{}]
    return bool(choices[0].get("delta", {}).get("content"))


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=120)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _send(sock: socket.socket, address: str, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)


def measure_stream(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """5: time to first token and between tokens, request by request in turn."""
    fast = figures.of("stream-fast", "Streams, stand-in: 50 ms, then 20 tokens at 10 ms (ms)")
    real = figures.of("stream-real", f"Streams, real model, cached prompt, {_TOKENS} tokens (ms)")
    for number in range(effort.rounds):
        _streams(lineup, Kind.FAST, number, effort.stream_requests, _PACE, fast)
        _streams(lineup, Kind.REAL, number, effort.stream_requests, {"max_tokens": _TOKENS}, real)
    for measurement in (fast, real):
        measurement.note("This proxy runs with `streaming: live`; the others pass streams through anyway.")


def _streams(lineup: Lineup, kind: Kind, number: int, requests: int, fields: dict[str, Any], into: Measurement) -> None:
    proxies = lineup.with_alone(kind)[1:]
    backends = [backend_of(proxy, proxies) for proxy in proxies]
    addresses = list(dict.fromkeys([*backends, *(proxy.address for proxy in proxies)]))
    body = proxies[0].chat(stream=True, **fields)
    seen: dict[str, list[Arrivals]] = {address: [] for address in addresses}
    for address in addresses:
        stream(address, body)
    for turn in range(requests):
        for address in turned(addresses, number + turn):
            seen[address].append(stream(address, body))
    _tell(into, ALONE, seen[backends[0]], None)
    for proxy, backend in zip(proxies, backends, strict=True):
        _tell(into, proxy.name, seen[proxy.address], seen[backend])


def _tell(into: Measurement, name: str, own: list[Arrivals], backend: list[Arrivals] | None) -> None:
    first_s = percentile([each.first_s for each in own], 0.5)
    into.add(name, "first token, p50", first_s * MS)
    if backend is not None:
        into.add(name, "added", (first_s - percentile([each.first_s for each in backend], 0.5)) * MS)
    gaps_s = [gap for each in own for gap in each.gaps_s] or [0.0]
    into.add(name, "between tokens, p50", percentile(gaps_s, 0.5) * MS)
    into.add(name, "p99", percentile(gaps_s, 0.99) * MS)


def measure_disconnect(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """6: how long a backend works on after its client left."""
    into = figures.of("disconnect", "A dropped request: how long the backend works on (s), real model")
    into.note(
        f"A request for {effort.long_tokens} tokens, dropped {_GENERATING_S:g} s after it was sent; the CPU time "
        f"of the backend's process is watched until it stops growing."
    )
    for number in range(effort.disconnect_rounds):
        proxies = lineup.with_alone(Kind.REAL)
        for contender in turned(proxies, number):
            address = contender.address if contender.name == ALONE else contender.backend()
            pid = port_pid(address) if address else None
            if pid is None:
                into.note(f"The backend of {contender.name} cannot be seen.")
                continue
            for label, is_streamed in (("plain", False), ("streamed", True)):
                body = contender.chat(stream=is_streamed, max_tokens=effort.long_tokens, ignore_eos=True)
                into.add(contender.name, label, _busy_after_drop(contender, body, pid))


def _busy_after_drop(contender: Contender, body: dict[str, Any], pid: int) -> float:
    with _connect(contender.address) as sock:
        _send(sock, contender.address, body)
        time.sleep(_GENERATING_S)
        if not _is_busy(pid):
            raise ContenderError(f"the backend of {contender.name} does not work on the request")
    return _busy_for_s(pid)


def _busy_for_s(pid: int) -> float:
    """Seconds until the last moment at which the process worked; blocks a little longer."""
    began = last_busy = time.perf_counter()
    while (now := time.perf_counter()) - last_busy < _QUIET_S and now - began < _LIMIT_S:
        if _is_busy(pid):
            last_busy = time.perf_counter()
    return last_busy - began


def _is_busy(pid: int) -> bool:
    """Whether a process works now; one that waits for requests takes no CPU time at all. Blocks for a moment."""
    before_s = cpu_s(pid)
    time.sleep(_LOOK_S)
    return cpu_s(pid) - before_s > _WORK_S
