"""What /api/status and /v1/models report: models, waiting requests, the hold, the last switches. Only reads."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.contexts.records import Totals
from systemd_llm_switch.switching.queue import QueueEntry, describe
from systemd_llm_switch.switching.status import ModelStatus, SwitchRecord, UnitSnapshot
from systemd_llm_switch.switching.switcher import Switcher


@dataclass(frozen=True, slots=True)
class Overview:
    """The state at one moment. `hold_until` is seconds since the epoch; None without a hold or if it has no end."""

    models: dict[str, ModelStatus]
    waiting: int
    queue: Sequence[QueueEntry]
    on_hold: bool
    hold_until: float | None
    switches: Sequence[SwitchRecord]
    contexts: Totals


class Report:
    """Reads the switcher and its log of switches. Thread-safe."""

    def __init__(self, switcher: Switcher, contexts: Contexts) -> None:
        self._switcher = switcher
        self._contexts = contexts

    def models(self) -> dict[str, ModelStatus]:
        """Every configured model, by id. Costs one poll for each loaded unit, and no fork."""
        self._switcher.notice_losses()
        return {it.model.id: self._describe(it) for it in self._switcher.snapshot()}

    def overview(self) -> Overview:
        """The whole report."""
        hold_until = self._switcher.hold_until
        return Overview(
            models=self.models(),
            waiting=self._switcher.waiting,
            queue=describe(self._switcher.waiters(), self._switcher.snapshot(), time.time() - time.monotonic()),
            on_hold=hold_until is not None,
            hold_until=None if hold_until is None or hold_until == math.inf else _as_epoch(hold_until),
            switches=self._switcher.switch_log.switches,
            contexts=self._contexts.totals(),
        )

    def _describe(self, snapshot: UnitSnapshot) -> ModelStatus:
        unit, switch_log = snapshot.model.unit, self._switcher.switch_log
        return ModelStatus(
            state=snapshot.state.value,
            unit=unit,
            in_flight=snapshot.in_flight,
            waiting=snapshot.waiting,
            loaded_since=snapshot.loaded_since,
            loading_since=None if snapshot.load_began is None else _as_epoch(snapshot.load_began),
            last_load_s=switch_log.last_load_s(unit),
            last_error=switch_log.last_error(unit),
            contexts=self._contexts.model_status(snapshot.model),
        )


def _as_epoch(moment: float) -> float:
    """`time.monotonic` as seconds since the epoch."""
    return round(time.time() + moment - time.monotonic(), 1)
