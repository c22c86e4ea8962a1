"""Waits that a client's disconnect ends: every long wait of a request goes through here.

Owns `poll(2)` on the awaited descriptor together with the client's connection. Knows nothing of HTTP or models.
"""

from __future__ import annotations

import os
import select
import threading
import time

from systemd_llm_switch.errors import ClientGone

# A half-closed connection counts as gone: no client that wants the answer shuts its side down first.
_HANGUP = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
# poll(2) takes 31 bits of milliseconds, which is three weeks. A longer wait ends early, as if its time were over.
LONGEST_WAIT_S = 2_000_000.0


def is_readable(fd: int) -> bool:
    """Whether a descriptor can be read now, or its other side is gone. Thread-safe: a poll object is not, and making
    one takes less than a microsecond."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


class Client:
    """The connection of whoever sent the request. `Client(None)` never hangs up: a caller inside the proxy."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def wait_readable(self, fd: int, timeout_s: float) -> bool:
        """Blocks until `fd` is readable (True) or the time is over (False).

        Raises:
            ClientGone: the client hung up first.
        """
        return bool(self._wait(fd, select.POLLIN, timeout_s))

    def wait_either(self, fd: int, timeout_s: float) -> tuple[bool, bool]:
        """Blocks until `fd` is readable or broken (the first), or only writable (the second), or the time is over.

        Raises:
            ClientGone: the client hung up first.
        """
        events = self._wait(fd, select.POLLIN | select.POLLOUT, timeout_s)
        return bool(events & ~select.POLLOUT), events == select.POLLOUT

    def is_gone(self) -> bool:
        """Whether the client has hung up; never blocks."""
        if self._fd is None:
            return False
        poll = select.poll()
        poll.register(self._fd, _HANGUP)
        return bool(poll.poll(0))

    def _wait(self, fd: int, events: int, timeout_s: float) -> int:
        poll = select.poll()
        poll.register(fd, events)
        if self._fd is not None:
            poll.register(self._fd, _HANGUP)
        found = 0
        # Rounded up: poll(2) takes whole milliseconds, and 0 would spin until the deadline.
        for ready_fd, ready in poll.poll(max(0, int(min(timeout_s, LONGEST_WAIT_S) * 1000) + 1)):
            if ready_fd == self._fd:
                raise ClientGone("the client closed its connection")
            found = ready
        return found


class Signal:
    """A one-shot event between threads that can be polled beside a socket. Thread-safe.

    Its file descriptor exists only while a thread waits, so the hot path creates none.
    """

    __slots__ = ("_fd", "_lock", "is_set")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd: int | None = None
        self.is_set = False

    def set(self) -> None:
        """Ends the wait that goes on, and every later one."""
        with self._lock:
            self.is_set = True
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)

    def wait(self, client: Client, timeout_s: float) -> bool:
        """Blocks until set (True), or until the time is over (False).

        Raises:
            ClientGone: the client hung up first.
        """
        with self._lock:
            if self.is_set:
                return True
            self._fd = fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            return client.wait_readable(fd, timeout_s) or self.is_set
        finally:
            with self._lock:
                self._fd = None
                os.close(fd)


def remaining_s(deadline: float) -> float:
    """Seconds until a `time.monotonic` deadline, never negative."""
    return max(0.0, deadline - time.monotonic())
