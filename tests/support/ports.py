"""Gives out free TCP ports; test runs and workers that run at the same time never get the same one."""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
from pathlib import Path

FIRST = 10_000
BLOCK = 200
LEAST_BLOCKS = 50
# From here on the kernel takes ports for outgoing connections. A server might not be able to restart on such a port.
_FIRST_OF_CLIENTS = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
_END = max(_FIRST_OF_CLIENTS, FIRST + LEAST_BLOCKS * BLOCK)


class PortBlock:
    """A range of ports that belongs to this process for as long as it lives.

    An abstract Unix socket marks the range as taken: the kernel gives its name to one process only, and frees it when
    the process ends, however it ends.
    """

    def __init__(self) -> None:
        self._mark, first = _claim()
        self._ports = itertools.cycle(range(first, first + BLOCK))

    def free_port(self) -> int:
        """The next port on which nobody listens."""
        for port in itertools.islice(self._ports, BLOCK):
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
        raise RuntimeError(f"all {BLOCK} ports of this process are in use")


def _claim() -> tuple[socket.socket, int]:
    """The mark that is held, and the first port of its range."""
    for first in range(FIRST, _END - BLOCK + 1, BLOCK):
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind(f"\0systemd-llm-switch-test-ports-{first}")
        except OSError:
            mark.close()
        else:
            return mark, first
    raise RuntimeError("other test runs hold every range of ports")


@functools.cache
def _block() -> PortBlock:
    return PortBlock()


def free_port() -> int:
    """A port that nobody listens on, and that no other process which asks here gets."""
    return _block().free_port()
