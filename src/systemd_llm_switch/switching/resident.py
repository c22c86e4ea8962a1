"""A loaded model: the process that became ready, and facts about its start."""

from __future__ import annotations

import time

from systemd_llm_switch.backend.exchange import BackendLost, Exchange
from systemd_llm_switch.contexts.records import Loaded
from systemd_llm_switch.systemd.unit import MainProcess, ProcessWatch


class Resident:
    """A unit whose backend was ready: which process it is, and how it was started.

    `since` is seconds since the epoch; `began` and `ready` are `time.monotonic`; `restore_s` is the part of the time
    between them in which contexts were restored.
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
        """How many replies in a row reported a failed device."""

    def note_restored(self, took_s: float) -> None:
        """Saved contexts were restored first, so the model is ready only now."""
        self.restore_s = took_s
        self.ready = time.monotonic()

    def check(self, exchange: Exchange) -> None:
        """Makes sure that a connection leads to this process.

        If this process has ended, another one may have taken its port, and must not answer in its place. So this
        process must still live after a new connection was made. A kept connection always leads to the same process.

        Raises:
            BackendLost
        """
        if exchange.is_new and self.watch.has_exited():
            raise BackendLost("its process ended before the request came", was_unread=True)
