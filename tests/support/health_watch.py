"""How long /health takes, asked twenty times a second by a process of its own, and beside it a bare process's answer.

    python health_watch.py PORT FILE

Writes a line for each question until it is ended: milliseconds of /health (`-` where nobody listens), and of a byte
through `cat`, which shows how long the machine takes to wake two processes.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

_PAUSE_S = 0.05
_PATIENCE_S = 60
_QUESTION = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def ask(port: int) -> float | None:
    """Milliseconds; None where nobody listens, or the server ended meanwhile."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), _PATIENCE_S) as sock:
        sock.sendall(_QUESTION)
        if sock.recv(1000).startswith(b"HTTP/1.1 200"):
            return (time.monotonic() - began) * 1000
    return None


def watch(port: int, path: Path) -> None:
    """Until the process is ended."""
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as cat,
        path.open("w") as file,
    ):
        assert cat.stdin is not None
        assert cat.stdout is not None
        while True:
            time.sleep(_PAUSE_S)
            began = time.monotonic()
            cat.stdin.write(b"x")
            cat.stdout.read(1)
            bare_ms = (time.monotonic() - began) * 1000
            health_ms = ask(port)
            print("-" if health_ms is None else f"{health_ms:.2f}", f"{bare_ms:.2f}", file=file, flush=True)


def percentiles(values: list[float]) -> str:
    """The middle, the tail and the worst."""
    ordered = sorted(values)
    points = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    found = [f"{name} {ordered[int(len(ordered) * part)]:.1f}" for name, part in points.items()]
    return f"{', '.join(found)}, max {ordered[-1]:.1f} ms of {len(ordered)}"


if __name__ == "__main__":
    watch(int(sys.argv[1]), Path(sys.argv[2]))
