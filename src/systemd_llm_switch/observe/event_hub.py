"""Events for the clients that watch (/api/events): each event is encoded once and sent to every watcher.

A watcher that reads too slowly is dropped, never waited for. One thread encodes the events and computes the status, for
all watchers, and only while there are any. It sends the events of a twentieth of a second together. So a request pays
for watchers with one append, and a thousand requests a second wake each watcher twenty times.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from systemd_llm_switch.errors import TooManyWatchers
from systemd_llm_switch.openai.shapes import Json, dump
from systemd_llm_switch.waiting import Client

log = logging.getLogger(__name__)

MOST_WATCHERS = 16
_MOST_UNREAD_BYTES = 1 << 20  # that a watcher may leave
_MOST_PENDING = 5000  # events that wait to be encoded; the oldest are dropped
_STATUS_INTERVAL_S = 0.25
_PAUSE_S = 0.05  # between two sends: what comes meanwhile goes together


class Watcher:
    """One client's unread events. The hub adds to them, and the client's own thread takes them."""

    def __init__(self, first: bytes = b"") -> None:
        self._unread = [first]
        self._unread_bytes = len(first)
        self._lock = threading.Lock()
        self._fd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.is_dropped = False

    def give(self, events: bytes) -> None:
        """Does not block. A watcher that has left too much unread is dropped."""
        with self._lock:
            self.is_dropped = self.is_dropped or self._unread_bytes > _MOST_UNREAD_BYTES
            if not self.is_dropped:
                self._unread.append(events)
                self._unread_bytes += len(events)
        os.eventfd_write(self._fd, 1)

    def take(self, client: Client, patience_s: float) -> bytes:
        """The events since the last call; empty if none came within `patience_s`.

        Raises:
            ClientGone: the client hung up.
        """
        if not client.wait_readable(self._fd, patience_s):
            return b""
        os.eventfd_read(self._fd)
        with self._lock:
            unread, self._unread = self._unread, []
            self._unread_bytes = 0
        return b"".join(unread)

    def close(self) -> None:
        os.close(self._fd)


class EventHub:
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
        self._pending: deque[tuple[str, Callable[[], Json]]] = deque(maxlen=_MOST_PENDING)
        self._news = threading.Event()  # something is pending, or the last watcher left
        self._is_over = threading.Event()  # the last watcher left

    @property
    def is_watched(self) -> bool:
        """Whether anybody watches. Without a lock: who comes a moment later missed the moment before anyway."""
        return bool(self._watchers)

    def publish(self, name: str, make: Callable[[], Json]) -> None:
        """Sends an event to every watcher. Another thread calls `make` for its data. Does not block, and costs almost
        nothing."""
        if self._watchers:
            self._pending.append((name, make))
            if not self._news.is_set():
                self._news.set()

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
                try:
                    self._begin()
                except BaseException:  # the kernel refused a thread: the next watcher tries again
                    self._leave(watcher)
                    raise

    def _begin(self) -> None:
        self._is_over = threading.Event()
        for begin in self._companions:
            self._ends.append(begin())
        threading.Thread(target=self._run, args=(self._is_over,), name="status-events", daemon=True).start()

    def _dismiss(self, watcher: Watcher) -> None:
        with self._turn:
            self._leave(watcher)

    def _leave(self, watcher: Watcher) -> None:
        with self._lock:
            self._watchers.remove(watcher)
        if self._watchers:
            return
        self._is_over.set()
        self._news.set()
        self._pending.clear()
        ends, self._ends = self._ends, []
        for end in ends:
            end()

    def _run(self, is_over: threading.Event) -> None:
        """Sends what was published, and the status whenever it has changed."""
        last, due = b"", time.monotonic() + _STATUS_INTERVAL_S
        while not is_over.wait(_PAUSE_S):
            self._news.wait(max(0.0, due - time.monotonic()))
            if is_over.is_set():
                return
            self._news.clear()
            events = b"".join(self._encode(*event) for event in self._take_pending())
            if time.monotonic() >= due:
                due = time.monotonic() + _STATUS_INTERVAL_S
                status = self._encode("status", self._make_status)
                events += b"" if status == last else status
                last = status
            if events:
                self._send(events)

    def _take_pending(self) -> list[tuple[str, Callable[[], Json]]]:
        taken: list[tuple[str, Callable[[], Json]]] = []
        with suppress(IndexError):  # whoever leaves last clears them at any moment
            while len(taken) < _MOST_PENDING:
                taken.append(self._pending.popleft())
        return taken

    @staticmethod
    def _encode(name: str, make: Callable[[], Json]) -> bytes:
        try:
            return frame(name, make())
        except Exception:
            if name != "log":  # its own line would be the next event
                log.exception("event_failed name=%s", name)
            return b""

    def _send(self, events: bytes) -> None:
        with self._lock:  # a watcher that has left is not in the list: its descriptor is closed
            for watcher in self._watchers:
                watcher.give(events)


def frame(name: str, data: Json) -> bytes:
    """One event (https://html.spec.whatwg.org/#parsing-an-event-stream)."""
    return b"event: " + name.encode("ascii") + b"\ndata: " + dump(data) + b"\n\n"
