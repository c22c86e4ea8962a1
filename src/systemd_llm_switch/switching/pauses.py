"""Requests that are paused for a hold, and go on after it.

Must not know the switcher or its lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from systemd_llm_switch.contexts.fingerprint import Fingerprint
from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.switching.leases import Lease
from systemd_llm_switch.waiting import Signal


class Pauses:
    """Thread-safe; nothing here blocks."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts
        self._lock = threading.Lock()
        self._waiting: list[Signal] = []

    @staticmethod
    def begin(leases: Iterable[Lease]) -> None:
        """Pauses the requests that can go on later."""
        for lease in leases:
            lease.pause()

    def note(self, lease: Lease, beginning: Fingerprint, message: bytes) -> None:
        """A running request was paused and goes on after the hold, so its context is worth saving."""
        self._contexts.note_paused(lease.model.unit, lease.start, beginning, message)

    def add(self, signal: Signal) -> None:
        """`signal` is set when the hold is over."""
        with self._lock:
            self._waiting.append(signal)

    def take(self) -> list[Signal]:
        """The signals of all requests that wait for the end of the hold; the caller sets them."""
        with self._lock:
            signals, self._waiting = self._waiting, []
        return signals
