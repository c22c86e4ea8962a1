"""Writing an answer to its connection: its head in one go with the body's beginning, and no copy of a large body."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence


class ReplyWriter:
    """A connection's writing side, as cheroot asks for it. Used by one thread.

    Each `write` sends at once and blocks until all is sent, and at most `timeout_s` while the client takes nothing.
    """

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        """`sock` is a blocking one."""
        self._sock = sock
        self._timeout_s = timeout_s
        self._held = b""
        self._is_holding = False

    def hold(self) -> None:
        """What is written next leaves only with what follows it, or with `flush`."""
        self._is_holding = True

    def write(self, data: bytes) -> int:
        """
        Raises:
            OSError: the client is gone, or takes nothing.
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
        if sent == len(head) + len(data):
            return
        for piece in (head, data):
            rest = memoryview(piece)[sent:]
            sent = max(sent - len(piece), 0)
            while rest:
                self._wait()
                rest = rest[self._send_some((rest,)) :]

    def _send_some(self, pieces: Sequence[bytes | memoryview]) -> int:
        try:
            return self._sock.sendmsg(pieces, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        if not poll.poll(self._timeout_s * 1000):
            raise TimeoutError("timed out")
