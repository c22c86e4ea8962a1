"""Events for the clients that watch (/api/events): each event is encoded once and sent to every watcher.

A watcher that reads too slowly is dropped, never waited for. The status is computed by one thread for all watchers, and
only while there are any.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from systemd_llm_switch.errors import TooManyWatchers
from systemd_llm_switch.openai.shapes import Json, dump
from systemd_llm_switch.waiting import Client

log = logging.getLogger(__name__)

MOST_WATCHERS = 16
_MOST_PENDING = 1500  # events that a watcher may leave unread
_STATUS_INTERVAL_S = 0.25


class Watcher:
    """One client's unread events. The hub adds to them, and the client's own thread takes them."""

    def __init__(self, first: bytes = b"") -> None:
        self._pending: deque[bytes] = deque([first])
        self._fd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.is_dropped = False

    def give(self, event: bytes) -> None:
        """Does not block. A watcher that has too many unread events is dropped."""
        self._pending.append(event)
        self.is_dropped = self.is_dropped or len(self._pending) > _MOST_PENDING
        os.eventfd_write(self._fd, 1)

    def take(self, client: Client, patience_s: float) -> bytes:
        """The events since the last call; empty if none came within `patience_s`.

        Raises:
            ClientGone: the client hung up.
        """
        if not client.wait_readable(self._fd, patience_s):
            return b""
        os.eventfd_read(self._fd)
        return b"".join(self._pending.popleft() for _ in range(len(self._pending)))

    def close(self) -> None:
        os.close(self._fd)


class Hub:
    """Thread-safe. `make_status` computes what /api/status shows; it may block for a moment. `companions` run while
    there are watchers: a call starts each, and returns the function that ends it."""

    def __init__(self, make_status: Callable[[], Json], companions: tuple[Callable[[], Callable[[], None]], ...] = ()):
        self._make_status = make_status
        self._companions = companions
        self._ends: list[Callable[[], None]] = []
        self._watchers: list[Watcher] = []
        self._lock = threading.Lock()  # of the list of watchers
        self._turn = threading.Lock()  # one comes or goes at a time; companions may log, and so publish, meanwhile
        self._seats = threading.BoundedSemaphore(MOST_WATCHERS)
        self._wake = threading.Event()  # the last watcher left

    @property
    def is_watched(self) -> bool:
        """Whether anybody watches. Without a lock: who comes a moment later missed the moment before anyway."""
        return bool(self._watchers)

    def publish(self, name: str, data: Json) -> None:
        """Sends an event to every watcher. Costs almost nothing without watchers; does not block."""
        if self._watchers:
            self._send(frame(name, data))

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Within the block, the caller may keep its thread as long as it likes. The number of seats is limited.

        Raises:
            TooManyWatchers
        """
        if not self._seats.acquire(blocking=False):
            raise TooManyWatchers(f"{MOST_WATCHERS} clients watch already; close one, or try again later")
        try:
            yield
        finally:
            self._seats.release()

    @contextmanager
    def watch(self) -> Iterator[Watcher]:
        """Within the block, the watcher gets the status first and then each event. The caller must have a seat."""
        watcher = Watcher(frame("status", self._make_status()))
        try:
            self._admit(watcher)
            try:
                yield watcher
            finally:
                self._dismiss(watcher)
        finally:
            watcher.close()

    def _admit(self, watcher: Watcher) -> None:
        with self._turn:
            with self._lock:
                self._watchers.append(watcher)
            if len(self._watchers) == 1:
                self._begin()

    def _begin(self) -> None:
        self._wake = threading.Event()
        self._ends = [begin() for begin in self._companions]
        threading.Thread(target=self._keep_status, args=(self._wake,), name="status-events", daemon=True).start()

    def _dismiss(self, watcher: Watcher) -> None:
        with self._turn:
            with self._lock:
                self._watchers.remove(watcher)
            if self._watchers:
                return
            self._wake.set()
            ends, self._ends = self._ends, []
            for end in ends:
                end()

    def _send(self, event: bytes) -> None:
        with self._lock:  # a watcher that has left is not in the list: its descriptor is closed
            for watcher in self._watchers:
                watcher.give(event)

    def _keep_status(self, is_over: threading.Event) -> None:
        """Sends the status whenever it has changed."""
        last = b""
        while not is_over.wait(_STATUS_INTERVAL_S):
            try:
                event = frame("status", self._make_status())
            except Exception:
                log.exception("status_failed")
                continue
            if event != last:
                last = event
                self._send(event)


def frame(name: str, data: Json) -> bytes:
    """One event (https://html.spec.whatwg.org/#parsing-an-event-stream)."""
    return b"event: " + name.encode("ascii") + b"\ndata: " + dump(data) + b"\n\n"
