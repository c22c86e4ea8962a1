"""The log's lines, written to a descriptor whose reader may be slow, or gone."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
import time

_SHARE = 0.1  # of all time may be spent waiting for the reader


class Patience:
    """How long may be waited for a reader: `most_s` at once, and a tenth of all time in the long run. Takes the clock's
    time as an argument."""

    def __init__(self, most_s: float, now: float) -> None:
        self._most_s = self._left_s = most_s
        self._noted_at = now

    def begin_wait(self, now: float) -> float:
        """How long this wait may last, in seconds."""
        self._left_s = min(self._most_s, self._left_s + (now - self._noted_at) * _SHARE)
        self._noted_at = now
        return self._left_s

    def end_wait(self, now: float) -> None:
        self._left_s = max(0.0, self._left_s - (now - self._noted_at))
        self._noted_at = now


class LogWriter(logging.Handler):
    """Writes lines to a descriptor. A reader that falls behind in a burst gets a moment, so that nothing is lost. But
    if journald hangs and its socket is full, each request would wait for ever at its line. So beyond that moment, lines
    are dropped and counted, and the next one that can be written says how many."""

    def __init__(self, descriptor: int, patience_s: float = 1.0) -> None:
        super().__init__()
        self._patience = Patience(patience_s, time.monotonic())
        kind = os.fstat(descriptor).st_mode
        self._descriptor = descriptor
        self._sock = socket.socket(fileno=os.dup(descriptor)) if stat.S_ISSOCK(kind) else None
        self._is_file = stat.S_ISREG(kind)
        self._lost = 0
        self._is_torn = False  # a part of the last entry was written

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises. Blocks for `patience_s` at most."""
        try:
            lines = self.format(record)
            if self._lost:
                lines = f"{self.format(_lines_lost(self._lost))}\n{lines}"
            data = f"{lines}\n".encode("utf-8", "backslashreplace")
        except Exception:
            self.handleError(record)
            return
        written = self._write(b"\n" + data if self._is_torn else data)
        self._lost = 0 if written else self._lost + 1

    def _write(self, data: bytes) -> bool:
        """Whether anything of it could be written."""
        count = 0
        with contextlib.suppress(OSError):  # it is full, or its other side is gone
            while count < len(data):
                piece = self._write_some(data[count:])
                if not piece and not self._wait_for_room():
                    break
                count += piece
        if count:
            self._is_torn = count < len(data)
        return count > 0

    def _write_some(self, data: bytes) -> int:
        """How many bytes were written without blocking.

        Raises:
            OSError: none ever can.
        """
        if self._sock is not None:
            with contextlib.suppress(BlockingIOError):
                return self._sock.send(data, socket.MSG_DONTWAIT)
            return 0
        if self._is_file:
            return os.write(self._descriptor, data)
        # A pipe that is writable takes so many bytes without blocking (pipe(7)).
        return os.write(self._descriptor, data[: select.PIPE_BUF]) if _is_writable(self._descriptor, 0) else 0

    def _wait_for_room(self) -> bool:
        """Whether the reader made room before the patience was used up."""
        has_room = _is_writable(self._descriptor, self._patience.begin_wait(time.monotonic()))
        self._patience.end_wait(time.monotonic())
        return has_room


def _is_writable(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(int(timeout_s * 1000)))  # rounded down: it would be a whole millisecond for each line


def _lines_lost(count: int) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, "", 0, "lines_lost count=%d", (count,), None)
