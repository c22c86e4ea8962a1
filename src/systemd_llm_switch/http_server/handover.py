"""A queue whose items go to the thread that began to wait last.

That thread's memory is still in the processor's caches. And where fewer threads would do, the others wait undisturbed
until they end. If they took turns, each would get an item now and then, and none would end.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import Any


class _Own(threading.local):
    """Where a thread that waits is given its item."""

    def __init__(self) -> None:
        self.place: queue.SimpleQueue[Any] = queue.SimpleQueue()


class HandOver:
    """Thread-safe. Has what cheroot's pool calls of `queue.Queue`; `put` does not block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: deque[Any] = deque()  # no thread waits while there are any
        self._waiting: list[queue.SimpleQueue[Any]] = []
        self._own = _Own()

    @property
    def free(self) -> int:
        """How many threads wait; below 0 if it is items that wait."""
        return len(self._waiting) - len(self._items)

    def put(self, item: Any) -> None:
        with self._lock:
            if not self._waiting:
                self._items.append(item)
                return
            place = self._waiting[-1]
            place.put(item)  # may raise: then nothing has happened
            self._waiting.pop()

    def get(self, timeout: float | None = None) -> Any:
        """
        Raises:
            queue.Empty: nothing came within `timeout` seconds.
        """
        place = self._own.place
        with self._lock:
            if self._items:
                return self._items.popleft()
            self._waiting.append(place)
        try:
            return place.get(timeout=timeout)
        except queue.Empty:
            with self._lock:
                if place in self._waiting:
                    self._waiting.remove(place)
                    raise
            return place.get()  # it was given something in this moment
