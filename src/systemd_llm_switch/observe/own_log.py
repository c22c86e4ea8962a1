"""The proxy's own last log lines, for users who cannot read the journal and for a proxy that runs without one."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from systemd_llm_switch.quoting import printable

KEPT = 1000
Listener = Callable[[float, int, str], None]
_MOST_CHARACTERS = 2000
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class OwnLog(logging.Handler):
    """Keeps lines as (seconds since the epoch, priority as in syslog(3), message). Thread-safe."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[tuple[float, int, str]] = deque(maxlen=KEPT)
        self._listeners: tuple[Listener, ...] = ()

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises: `logging` reports a line that cannot be formatted."""
        try:
            priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
            line = (record.created, priority, printable(record.getMessage(), _MOST_CHARACTERS))
        except Exception:
            self.handleError(record)
            return
        self._lines.append(line)
        for listener in self._listeners:
            listener(*line)

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
        return [lines[at] for at in range(max(0, len(lines) - count), len(lines))]
