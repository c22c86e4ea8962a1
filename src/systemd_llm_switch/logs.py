"""Logging, set up: one record is one line of at most two kilobytes, whatever is in it.

To stderr: for the journal with priorities (sd-daemon(3)), for a person with the time.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator

from systemd_llm_switch.log_writer import LogWriter
from systemd_llm_switch.quoting import printable

MAX_LINE_BYTES = 2000
_ENDING_BYTES = 40  # room for the words that say how much was cut
_MOST_TRACEBACK_LINES = 60
_TRACEBACK_MARK = "  | "  # no line of a traceback looks like an entry: an exception's message is foreign text, too
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY = 7


class LineFormatter(logging.Formatter):
    """A record as one line, and its traceback as marked lines below it. Control characters are escaped, and each line
    ends at `MAX_LINE_BYTES`."""

    def __init__(self, line_format: str, *, has_priority: bool) -> None:
        super().__init__(line_format)
        self._has_priority = has_priority

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        if self.usesTime():
            record.asctime = self.formatTime(record)
        prefix = _priority(record.levelno) if self._has_priority else ""
        if not record.exc_info:
            return prefix + _as_line(self.formatMessage(record), MAX_LINE_BYTES - len(prefix))
        lines = [self.formatMessage(record), *_traceback_lines(record)]
        return "\n".join(prefix + _as_line(line, MAX_LINE_BYTES - len(prefix)) for line in lines)


def set_up() -> None:
    """Starts logging for the process."""
    # Our lines show none of these, so logging need not look them up for each record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # the way that logging's HOWTO gives, "Optimization"
    handler = LogWriter(sys.stderr.fileno())
    is_journal = bool(os.environ.get("JOURNAL_STREAM"))
    line_format = "%(message)s" if is_journal else "%(asctime)s %(levelname)s %(message)s"
    handler.setFormatter(LineFormatter(line_format, has_priority=is_journal))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    threading.excepthook = _log_crash


def _log_crash(crash: threading.ExceptHookArgs) -> None:
    """Logs an error that ended a thread. Python itself would print it, foreign text and all."""
    if crash.exc_value is not None:
        name = "-" if crash.thread is None else crash.thread.name
        error = (crash.exc_type, crash.exc_value, crash.exc_traceback)
        logging.getLogger(__name__).error("thread_crashed name=%s", name, exc_info=error)


def syslog_priority(level: int) -> int:
    """A level of `logging` as a priority of syslog(3)."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG_PRIORITY)


def _priority(level: int) -> str:
    return f"<{syslog_priority(level)}>"


def _traceback_lines(record: logging.LogRecord) -> Iterator[str]:
    """The traceback's beginning and end; a deep one has the cause in its last lines."""
    if not record.exc_info or record.exc_info[0] is None:
        return
    lines = [line for text in traceback.format_exception(*record.exc_info) for line in text.splitlines()]
    half = _MOST_TRACEBACK_LINES // 2
    if len(lines) > _MOST_TRACEBACK_LINES:
        lines = [*lines[:half], f"… {len(lines) - 2 * half} lines left out …", *lines[-half:]]
    for line in lines:
        yield _TRACEBACK_MARK + line


def _as_line(text: str, limit: int) -> str:
    """The text on one line of at most `limit` bytes, its end included."""
    limit -= 1
    is_fine = len(text) <= limit and text.isprintable()
    if is_fine and text.isascii():
        return text
    shown = text if is_fine else printable(text, limit - _ENDING_BYTES)
    raw = shown.encode("utf-8", "backslashreplace")
    if len(raw) <= limit:
        return shown
    kept = raw[: limit - _ENDING_BYTES].decode("utf-8", "ignore")
    return f"{kept}… ({len(text)} characters in all)"
