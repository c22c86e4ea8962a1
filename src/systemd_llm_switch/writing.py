"""Writing an answer to its connection: its head in one go with the body's beginning, and no copy of a large body."""

from __future__ import annotations

import socket


class ReplyWriter:
    """A connection's writing side, as cheroot asks for it. Used by one thread.

    Each `write` sends at once and blocks until all is sent; a part of it may take as long as the socket's time-out.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
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
        sent = self._sock.sendmsg((head, data)) if head else self._sock.send(data)
        if sent < len(head) + len(data):
            rest = memoryview(head + data)[sent:]
            while rest:
                rest = rest[self._sock.send(rest) :]
