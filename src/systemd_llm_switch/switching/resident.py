"""A loaded model: the process that was ready, and what is known of its start."""

from __future__ import annotations

import time

from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.backend.exchange import BackendLost, Exchange
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.systemd.unit import ProcessWatch


class Resident:
    """A unit whose backend was ready: which process it is, and how it was started.

    `since` is seconds since the epoch; `began` and `ready` are `time.monotonic`.
    """

    def __init__(self, model: Model, backend: Backend, watch: ProcessWatch, invocation_id: str, began: float) -> None:
        self.model = model
        self.backend = backend
        self.watch = watch
        self.invocation_id = invocation_id
        self.began = began
        self.ready = time.monotonic()
        self.since = time.time()

    def check(self, exchange: Exchange) -> None:
        """Makes sure that a new connection leads to this process: the process must still live once it is connected.
        Otherwise another one may have taken the port, and must not answer for it. A kept connection always leads to the
        process that it was made to.

        Raises:
            BackendLost
        """
        if exchange.is_new and self.watch.has_exited():
            raise BackendLost("its process ended before the request came", was_unread=True)
