"""A loaded model: the process that was ready, and what is known of its start."""

from __future__ import annotations

import time

from systemd_llm_switch.backend.exchange import BackendLost, Exchange
from systemd_llm_switch.contexts.records import Loaded
from systemd_llm_switch.systemd.unit import MainProcess, ProcessWatch


class Resident:
    """A unit whose backend was ready: which process it is, and how it was started.

    `since` is seconds since the epoch; `began` and `ready` are `time.monotonic`; `restore_s` is how much of that time
    was for a context.
    """

    def __init__(self, loaded: Loaded, watch: ProcessWatch, process: MainProcess, began: float) -> None:
        self.loaded = loaded
        self.model = loaded.model
        self.backend = loaded.backend
        self.watch = watch
        self.process = process
        self.began = began
        self.ready = time.monotonic()
        self.since = time.time()
        self.restore_s = 0.0
        self.device_errors = 0
        """Replies in a row that said the device failed."""

    def note_restored(self, took_s: float) -> None:
        """Requests reach it only now: saved contexts were read back first."""
        self.restore_s = took_s
        self.ready = time.monotonic()

    def check(self, exchange: Exchange) -> None:
        """Makes sure that a new connection leads to this process: the process must still live once it is connected.
        Otherwise another one may have taken the port, and must not answer for it. A kept connection always leads to the
        process that it was made to.

        Raises:
            BackendLost
        """
        if exchange.is_new and self.watch.has_exited():
            raise BackendLost("its process ended before the request came", was_unread=True)
