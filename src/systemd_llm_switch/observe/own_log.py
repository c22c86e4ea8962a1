"""The proxy's own last log lines, for users who cannot read the journal and for a proxy that runs without one."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from systemd_llm_switch.logs import syslog_priority
from systemd_llm_switch.quoting import printable

KEPT = 1000
_MOST_CHARACTERS = 2000
_ENDING_CHARACTERS = 50  # room for the words that say how much was cut


class LogLine(NamedTuple):
    """A line as it was logged. It is kept for each, and shown for few, so it is made readable when it is shown."""

    at: float
    level: int
    message: str

    def shown(self) -> tuple[float, int, str]:
        """Seconds since the epoch, priority as in syslog(3), and the message on one line."""
        return self.at, syslog_priority(self.level), printable(self.message, _MOST_CHARACTERS + _ENDING_CHARACTERS)


Listener = Callable[[LogLine], None]


class OwnLog(logging.Handler):
    """Keeps the last lines. Thread-safe."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[LogLine] = deque(maxlen=KEPT)
        self._listeners: tuple[Listener, ...] = ()

    def handle(self, record: logging.LogRecord) -> bool:
        """Keeps the line. Unlike other handlers, applies no filters, and takes the lock only for listeners:
        every request logs a line, and an append is atomic."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises: `logging` reports a line that cannot be formatted."""
        try:
            # The formatter of a handler before this one has left the message in the record.
            message = record.__dict__.get("message") or record.getMessage()
            if len(message) > _MOST_CHARACTERS:
                message = printable(message, _MOST_CHARACTERS)
        except Exception:
            self.handleError(record)
            return
        line = LogLine(record.created, record.levelno, message)
        self._lines.append(line)
        if self._listeners:
            with self.lock:  # type: ignore[union-attr]  # so that no listener is called after its end
                for listener in self._listeners:
                    listener(line)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with each new line until the returned function is called. The listener must not log."""
        with self.lock:  # type: ignore[union-attr]  # made by logging
            self._listeners = (*self._listeners, listener)
        return lambda: self._unlisten(listener)

    def _unlisten(self, listener: Listener) -> None:
        with self.lock:  # type: ignore[union-attr]
            self._listeners = tuple(it for it in self._listeners if it is not listener)

    def last(self, count: int) -> list[tuple[float, int, str]]:
        """The last `count` lines, the oldest first."""
        lines = self._lines.copy()
        return [lines[at].shown() for at in range(max(0, len(lines) - count), len(lines))]
