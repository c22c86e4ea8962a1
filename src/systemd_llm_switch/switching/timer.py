"""The thread that acts on the scheduler's next deadline."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from systemd_llm_switch.waiting import LONGEST_WAIT_S

log = logging.getLogger(__name__)

_PAUSE_S = 1.0  # after an unexpected error, so that it does not repeat a thousand times a second


class Timer:
    """Calls `on_due`, outside the lock, when `next_deadline` (`time.monotonic`; called under the lock) has come."""

    def __init__(
        self, lock: threading.Lock, next_deadline: Callable[[], float | None], on_due: Callable[[], None]
    ) -> None:
        self._wakeup = threading.Condition(lock)
        self._next_deadline = next_deadline
        self._on_due = on_due
        self._deadline: float | None = None
        self._is_closing = False

    def start(self) -> None:
        """Starts the thread, which lives as long as the proxy."""
        threading.Thread(target=self._run, name="switcher-timer", daemon=True).start()

    def note_change(self) -> None:
        """The next deadline may have changed. The caller holds the lock."""
        deadline = self._next_deadline()
        if deadline is not None and (self._deadline is None or deadline < self._deadline):
            self._wakeup.notify_all()

    def close(self) -> None:
        """Ends the thread. The caller holds the lock."""
        self._is_closing = True
        self._wakeup.notify_all()

    def _run(self) -> None:
        while not self._is_closing:
            try:
                if self._wait():
                    self._on_due()
            except Exception:
                log.exception("timer_crashed")  # the thread must go on, because later deadlines concern other events
                time.sleep(_PAUSE_S)

    def _wait(self) -> bool:
        """Blocks until the deadline has come (True) or may have changed (False)."""
        with self._wakeup:
            deadline = self._deadline = self._next_deadline()
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is None or left_s > 0:
                self._wakeup.wait(left_s if left_s is None else min(left_s, LONGEST_WAIT_S))
            return not self._is_closing and deadline is not None and time.monotonic() >= deadline
