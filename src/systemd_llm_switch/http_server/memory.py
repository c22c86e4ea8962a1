"""Gives memory back to the kernel after large requests, and after many.

glibc keeps freed memory in an arena for each thread: after a hundred answers of 4 MB, 360 MB stayed resident.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable

_LARGE_BYTES = 256 * 1024  # a smaller request leaves too little to be worth the work
_MANY_BYTES = 4 << 20  # of smaller ones together
_LEAST_BYTES = 64 * 1024  # that a request counts for, however small it is
_QUIET_S = 2.0
_LONGEST_S = 300.0  # seldom where it is never quiet: while the C library trims, others wait for its lock
_M_MMAP_THRESHOLD = -3  # malloc.h


def return_large_blocks() -> None:
    """Has the C library give a large block back when it is freed: mallopt(3). By default it raises the threshold to the
    largest block that was ever freed, and keeps as much at the end of each arena, where malloc_trim does not reach."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def malloc_trim() -> None:
    """Gives back the memory that the C library holds and does not use. Does nothing if it is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # ctypes releases the GIL meanwhile


class Trimmer:
    """Calls `trim`, in its own thread, a while after a large request or many small ones: once it is quiet, or after
    five minutes where it never is. Thread-safe; `note` does not block."""

    def __init__(
        self, trim: Callable[[], None] = malloc_trim, quiet_s: float = _QUIET_S, longest_s: float = _LONGEST_S
    ) -> None:
        self._trim = trim
        self._quiet_s = quiet_s
        self._longest_s = longest_s
        self._came = threading.Event()
        self._bytes = 0  # of small requests; threads may add at the same time, and lose some

    def note(self, count: int) -> None:
        """A request was answered whose body or answer had `count` bytes."""
        self._bytes += max(count, _LEAST_BYTES)
        if count >= _LARGE_BYTES or self._bytes >= _MANY_BYTES:
            self._bytes = 0
            self._came.set()

    def start(self) -> None:
        """Starts the thread, which ends with the process."""
        threading.Thread(target=self._run, name="memory", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._came.wait()
            began = time.monotonic()
            while time.monotonic() - began < self._longest_s:
                self._came.clear()
                threading.Event().wait(self._quiet_s)
                if not self._came.is_set():
                    break
            self._trim()
