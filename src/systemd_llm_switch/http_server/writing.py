"""Writes answers to connections: the head together with the beginning of the body, and without copying a large body.

What fits into the socket's buffer is sent at once. A client that reads slowly holds a thread until all is sent. So only
some of the threads may wait for such clients, and only while enough is read, as for slow senders (`reading`).
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Sequence

# How long an answer may wait for its reader; each SLOWEST_BYTES_PER_S bytes that are read add a second.
READ_TIMEOUT_S = 30.0
SLOWEST_BYTES_PER_S = 20_000
_MOMENT_S = 0.25


class TooSlowReader(TimeoutError):
    """The client does not take the answer in time."""

    def __init__(self) -> None:
        super().__init__("timed out")  # cheroot recognises a timeout by these words


class SlowWrites:
    """How many threads may wait long for slow readers. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._free = threading.BoundedSemaphore(limit)

    def begin(self) -> bool:
        """Whether another thread may wait. If so, it must call `end`."""
        return self._free.acquire(blocking=False)

    def end(self) -> None:
        self._free.release()


class ReplyWriter:
    """A connection's writing side, as cheroot asks for it. Used by one thread at a time.

    Each `write` sends at once and blocks until all is sent, or until the client was too slow.
    """

    def __init__(self, sock: socket.socket, slow: SlowWrites) -> None:
        """`sock` must be blocking."""
        self._sock = sock
        self._slow = slow
        self._held = b""
        self._is_holding = False
        self.begin_answer()

    def begin_answer(self) -> None:
        """Begins another answer, which has its own time."""
        self._left_s = READ_TIMEOUT_S
        self._moment_s = _MOMENT_S
        self.sent_bytes = 0

    def hold(self) -> None:
        """Holds the next `write` back until the one after it, or until `flush`."""
        self._is_holding = True

    def write(self, data: bytes) -> int:
        """
        Raises:
            OSError: the client is gone or too slow.
        """
        if self._is_holding:
            self._held, self._is_holding = data, False
        else:
            held, self._held = self._held, b""
            self._send(held, data)
        return len(data)

    def flush(self) -> None:
        """Sends what is held. Raises as `write` does."""
        if self._held:
            self.write(b"")

    def _send(self, head: bytes, data: bytes) -> None:
        sent = self._send_some((head, data) if head else (data,))
        if sent < len(head) + len(data):
            self._send_slowly([memoryview(head)[sent:], memoryview(data)[max(0, sent - len(head)) :]])

    def _send_slowly(self, pieces: list[memoryview]) -> None:
        """Sends the rest as the client reads it: for a moment, and longer if few other threads wait like this."""
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        is_slow = False
        try:
            for piece in pieces:
                rest = piece
                while rest:
                    if not is_slow and not self._wait(poll, min(self._moment_s, self._left_s)):
                        is_slow = self._slow.begin()
                        if not is_slow:
                            raise TooSlowReader
                    if is_slow and not self._wait(poll, self._left_s):
                        raise TooSlowReader
                    rest = rest[self._send_some((rest,)) :]
        finally:
            if is_slow:
                self._slow.end()

    def _wait(self, poll: select.poll, seconds: float) -> bool:
        """Whether the client can take more within so many seconds. The wait is subtracted from its time."""
        if seconds <= 0:
            return False
        began = time.monotonic()
        is_ready = bool(poll.poll(int(seconds * 1000) + 1))
        waited_s = time.monotonic() - began
        self._left_s -= waited_s
        self._moment_s -= waited_s
        return is_ready

    def _send_some(self, pieces: Sequence[bytes | memoryview]) -> int:
        try:
            sent = self._sock.sendmsg(pieces, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        self._left_s += sent / SLOWEST_BYTES_PER_S
        self.sent_bytes += sent
        return sent
