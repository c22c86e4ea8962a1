"""What the routes share: the parts that they call, the access rules, and places for requests outside the queue."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from systemd_llm_switch.api.access import Access
from systemd_llm_switch.api.model_events import ModelEvents
from systemd_llm_switch.api.model_list import ModelList
from systemd_llm_switch.config.file import LiveConfig
from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.errors import ProxyError, QueueFull
from systemd_llm_switch.forward.proxy import Proxy
from systemd_llm_switch.observe.metrics import MOST_SERIES_BYTES, Metrics
from systemd_llm_switch.observe.observation import Observation
from systemd_llm_switch.openai.shapes import JSON_TYPE, Json
from systemd_llm_switch.switching.operations import Operations
from systemd_llm_switch.switching.report import Report
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.systemd.manager import Systemd
from systemd_llm_switch.waiting import Client

# How many requests may wait outside the queue: the operator's, and those passed through to a loaded backend.
UNQUEUED_LIMIT = 16
_METRICS_TIMEOUT_S = 1.0  # Prometheus gives up on a scrape after ten


class Services:
    """The parts that the routes call. `host` is the address that the proxy listens on."""

    def __init__(
        self,
        live: LiveConfig,
        systemd: Systemd,
        proxy: Proxy,
        switcher: Switcher,
        operations: Operations,
        contexts: Contexts,
        observation: Observation,
        host: str,
    ) -> None:
        self.live = live
        self.proxy = proxy
        self.switcher = switcher
        self.operations = operations
        self.contexts = contexts
        self.observation = observation
        self.metrics = Metrics(observation.tally, self.status, contexts.counts, self._fetch_metrics)
        self.report = Report(switcher, contexts)
        self.model_list = ModelList(proxy, systemd, time.time())
        self.model_events = ModelEvents(switcher, self.report)
        self._unqueued = threading.BoundedSemaphore(UNQUEUED_LIMIT)
        self._host = host
        self._access = (live.latest, Access(live.latest.server, host))

    def status(self) -> Json:
        """What /api/status shows: what is loaded, which requests wait, what went wrong. Blocks for a moment."""
        self.live.current()  # notices an edited config now, not only at the next request; `look` notices manual starts
        self.operations.look()
        overview = self.report.overview()
        return {
            "models": {name: dataclasses.asdict(state) for name, state in overview.models.items()},
            "waiting": overview.waiting,
            "queue": [dataclasses.asdict(entry) for entry in overview.queue],
            "on_hold": overview.on_hold,
            "hold_until": overview.hold_until,
            "switches": [record.as_json() for record in overview.switches],
            "contexts": dataclasses.asdict(overview.contexts),
            "repairs": self.proxy.repairs(),
            "config": {"path": str(self.live.path), "error": self.live.error},
        }

    def _fetch_metrics(self, model_id: str) -> bytes | None:
        """A loaded model's own series; None if it has none or does not answer in time."""
        model = self.live.latest.models.get(model_id)
        if model is None:
            return None
        try:
            answer = self.proxy.pass_through(
                "GET", model, "/metrics", b"", JSON_TYPE[1], Client(None), _METRICS_TIMEOUT_S
            )
        except ProxyError:
            return None
        return answer.body if answer.status == 200 and len(answer.body) <= MOST_SERIES_BYTES else None

    def access(self) -> Access:
        """The rules of the config in force."""
        config = self.live.latest
        known, access = self._access
        if known is not config:
            access = Access(config.server, self._host)
            self._access = (config, access)
        return access

    @contextmanager
    def unqueued(self) -> Iterator[None]:
        """A place for a request that waits outside the queue; given back at the end.

        Raises:
            QueueFull: all places are taken. The other threads must stay free for requests that do not wait.
        """
        if not self._unqueued.acquire(blocking=False):
            raise QueueFull(f"{UNQUEUED_LIMIT} requests of this kind wait already; try again later", retry_after_s=5)
        try:
            yield
        finally:
            self._unqueued.release()
