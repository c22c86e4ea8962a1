"""Reads requests from connections, with bounds on the time and on how many senders may be slow at once.

A request that has arrived completely is read at once. A request that is still arriving holds a thread. So only some of
the threads may wait longer than a moment, and only while enough bytes come. Slow senders cannot hold all threads, and a
sender that stops is soon disconnected.
"""

from __future__ import annotations

import fcntl
import io
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# The time for a head and for a body, and the rate: each SLOWEST_BYTES_PER_S bytes that arrive add a second.
HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 30.0
SLOWEST_BYTES_PER_S = 100_000
_MOMENT_S = 0.25
_BUFFER_BYTES = 64 * 1024


class TooSlow(OSError):
    """The request did not arrive in time."""


class Truncated(Exception):
    """The client closed its connection before its request was complete."""


class _Source(io.RawIOBase):
    """The reading side of a blocking socket. Its reads either do not wait, or share one deadline. A timeout on the
    socket itself would cost a poll before each read, and most reads need none."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        self.may_wait = True

    def allow(self, seconds: float | None) -> None:
        """Sets the deadline, in seconds from now. None: each read may wait for the timeout."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        while True:
            try:
                received = self._sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not self.may_wait:
                    return None
            else:
                break
            self._wait()
        if self._deadline is not None:
            self._deadline += received / SLOWEST_BYTES_PER_S
        return received

    def _wait(self) -> None:
        left_s = self._timeout_s if self._deadline is None else self._deadline - time.monotonic()
        if left_s <= 0 or not self._poll.poll(int(left_s * 1000) + 1):
            raise TooSlow("timed out")


class RequestReader(io.BufferedReader):
    """The buffer that cheroot reads a connection's requests from: CPython's, which is written in C."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self.source = _Source(sock, timeout_s)
        super().__init__(self.source, _BUFFER_BYTES)
        self._sock = sock

    def has_data(self) -> bool:
        """Whether a read will not wait: bytes have arrived, or the client reset the connection. False if the client
        closed it, which the server's selector sees. Must not raise: that would end cheroot's thread and the server."""
        try:
            return bool(self.arrived())
        except OSError:
            return True

    def has_bytes(self, count: int) -> bool:
        """Whether this many bytes can be read without waiting."""
        if count == 0:
            return True
        buffered = len(self.arrived())
        if buffered >= count:
            return True
        waiting: int = struct.unpack("i", fcntl.ioctl(self._sock, termios.FIONREAD, b"\0\0\0\0"))[0]
        return buffered + waiting >= count

    def arrived(self) -> bytes:
        """The bytes in the buffer. An empty buffer is filled once, without waiting."""
        self.source.may_wait = False
        try:
            return self.peek(1)
        finally:
            self.source.may_wait = True


class SlowReads:
    """How many threads may wait long for slow senders. Thread-safe. A request that arrives in several pieces within a
    moment needs no permit."""

    def __init__(self, limit: int) -> None:
        self._free = threading.BoundedSemaphore(limit)

    @contextmanager
    def patience(self, reader: RequestReader, seconds: float) -> Iterator[None]:
        """Within the block, the reader waits up to `seconds` for the missing bytes, or only a moment if too many
        threads wait already. Each byte that arrives extends the time."""
        may_be_slow = self._free.acquire(blocking=False)
        reader.source.allow(seconds if may_be_slow else min(seconds, _MOMENT_S))
        try:
            yield
        finally:
            reader.source.allow(None)
            if may_be_slow:
                self._free.release()
