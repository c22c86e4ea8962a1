"""The server's threads: one for each current request, and a few that wait for the next.

A request that waits holds a thread, so there may be hundreds. Each thread costs memory, and switching between many
costs speed. So the pool starts threads only when they are needed, before the last free one is taken, and ends them when
they were idle for a while. A thread that has served a connection stays with it for a moment.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import threading
from collections.abc import Callable
from typing import Any

from cheroot.workers import threadpool

from systemd_llm_switch.http_server.handover import HandOver

log = logging.getLogger(__name__)

_AT_FIRST = 24
_SPARE = 8
_STEP = 16
_IDLE_S = 10.0  # an unused thread ends after this time, if more than _AT_FIRST wait
# At most this many threads stay with their connections, for this long, if others are free.
_STAYING = 8
_STAY_S = 2.0


class _Own(threading.local):
    """A thread's own next connection: one that it has served, and whose next request has arrived. Handing it over would
    wake another thread, which would only contend with this one."""

    is_here = False  # in a thread of the pool
    next: Any = None


class GrowingPool(threadpool.ThreadPool):
    """cheroot's pool, with a queue of ours and with threads that start when they are needed and end when they are not.
    Their number never exceeds `limit`. Thread-safe."""

    # cheroot's own, which its type stubs leave out.
    _threads: list[threading.Thread]
    _spawn_worker: Callable[[], threading.Thread]

    def __init__(self, server: Any, limit: int) -> None:
        super().__init__(server, min=min(_AT_FIRST, limit), max=limit)
        self._queue = HandOver()
        self.get = self._take
        self._own = _Own()
        self._growth_lock = threading.Lock()
        self._is_growing = False
        self._is_short = False  # the kernel refused a thread, which was logged
        self._is_stopped = False
        self._staying = 0  # threads that stay with a connection
        self._staying_lock = threading.Lock()
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)

    def put(self, obj: Any) -> None:
        """Gives a connection to a thread: to the calling one, if no other connection waits. Does not block."""
        if self._own.is_here and self._queue.free >= 0:
            self._own.next = obj
            return
        self._queue.put(obj)
        if self._missing > 0 and not self._is_growing:
            self._is_growing = True
            try:
                threading.Thread(target=self._provide, name="threads", daemon=True).start()
            except RuntimeError as error:
                self._is_growing = False
                self._note_shortage(error)

    def stays_with(self, connection: Any) -> bool:
        """Waits a moment for a connection's next request or its end, and returns whether it came. Most clients send the
        next request soon, and passing it from the selector to a thread takes as long as reading it. A thread stays only
        while enough others are free."""
        with self._staying_lock:
            if not self._own.is_here or self._queue.free <= _SPARE or self._staying >= _STAYING:
                return False
            self._staying += 1
        try:
            poll = select.poll()
            poll.register(connection.socket, select.POLLIN)
            poll.register(self._stop_fd, select.POLLIN)
            is_here = connection.rfile.has_data() or poll.poll(_STAY_S * 1000)
            if not is_here or self._is_stopped:
                return False
        finally:
            with self._staying_lock:
                self._staying -= 1
        self._own.next = connection
        return True

    def stop(self, timeout: int = 5) -> None:
        """Ends all threads. Threads that still serve after `timeout` seconds lose their connections."""
        with self._growth_lock:
            self._is_stopped = True  # a thread that started now would miss the shutdown
        os.eventfd_write(self._stop_fd, 1)
        super().stop(timeout)

    def _take(self) -> Any:
        """The next connection to serve, or cheroot's request to end; blocks."""
        own = self._own
        own.is_here = True
        if own.next is not None:
            connection, own.next = own.next, None
            return connection
        while True:
            try:
                return self._queue.get(timeout=_IDLE_S if len(self._threads) > _AT_FIRST else None)
            except queue.Empty:
                if self._queue.free >= _AT_FIRST:  # without this one
                    self._forget_thread(threading.current_thread())
                    return threadpool._SHUTDOWNREQUEST  # type: ignore[attr-defined]

    def _forget_thread(self, thread: threading.Thread) -> None:
        """The thread ends. (cheroot also keeps statistics for each, for good.)"""
        with self._growth_lock:
            if not self._is_stopped:  # otherwise somebody waits for the end of each
                self._threads.remove(thread)
        self.server.stats["Worker Threads"].pop(thread.name, None)

    @property
    def _missing(self) -> int:
        """How many threads are missing; 0 at the limit."""
        return min(_SPARE - self._queue.free, int(self.max) - len(self._threads))

    def _provide(self) -> None:
        """Starts the missing threads and some more. (cheroot's `grow` would sleep until the new ones run.)"""
        while not self._is_stopped:
            try:
                self._spawn(self._missing + _STEP if self._missing > 0 else 0)
            except RuntimeError as error:
                self._note_shortage(error)
                return  # the existing threads go on serving, and the next connection tries again
            finally:
                self._is_growing = False
            if self._missing <= 0:  # checked again: a connection that just came relies on this thread
                return

    def _spawn(self, count: int) -> None:
        """
        Raises:
            RuntimeError: the kernel refuses another thread.
        """
        for _ in range(count):
            with self._growth_lock:
                if self._is_stopped or len(self._threads) >= int(self.max):
                    return
                self._threads.append(self._spawn_worker())
            self._is_short = False

    def _note_shortage(self, error: RuntimeError) -> None:
        if not self._is_short:
            self._is_short = True
            log.warning("no_more_threads have=%d reason=%r", len(self._threads), str(error))
