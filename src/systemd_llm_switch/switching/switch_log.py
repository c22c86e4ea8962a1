"""The last switches, and for each unit how long it last loaded and why it last failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from systemd_llm_switch.switching.status import SwitchRecord
from systemd_llm_switch.switching.switch_run import SwitchOutcome, SwitchRun

log = logging.getLogger(__name__)

_REMEMBERED_SWITCHES = 20


class SwitchLog:
    """Written by one switch at a time and when a unit is adopted; may be read at any time."""

    def __init__(self) -> None:
        self.switches: tuple[SwitchRecord, ...] = ()
        self.on_switch: Callable[[SwitchRecord], None] = lambda record: None
        self._last_load_s: dict[str, float] = {}
        self._last_error: dict[str, str] = {}

    def note(self, run: SwitchRun, outcome: SwitchOutcome) -> None:
        """Remembers a switch that is over, and logs it."""
        model = run.target.model if run.target is not None else None
        error = outcome.error.message if outcome.error is not None else None
        if model is not None and error is not None:
            self._last_error[model.unit] = error
        elif model is not None and outcome.resident is not None:
            self._last_load_s[model.unit] = round(outcome.load_s, 3)
            self.forget_error(model.unit)
        for unit in outcome.still_running:
            self._last_error[unit] = error or "it did not stop"
        record = SwitchRecord(
            at=time.time(),
            left=run.left,
            to=model.id if model is not None else None,
            stop_ms=round(outcome.stop_s * 1000, 1),
            load_ms=round(outcome.load_s * 1000, 1),
            error="nobody waits for it any more" if outcome.is_aborted else error,
        )
        self.switches = (*self.switches[1 - _REMEMBERED_SWITCHES :], record)
        self.on_switch(record)
        if outcome.error is not None:
            log.error("switch_failed %s code=%s reason=%r", record.as_words(), outcome.error.code, error)
        else:
            log.info("%s %s", "switch_aborted" if outcome.is_aborted else "switch", record.as_words())

    def forget_error(self, unit: str) -> None:
        """The unit runs well again."""
        self._last_error.pop(unit, None)

    def last_load_s(self, unit: str) -> float | None:
        return self._last_load_s.get(unit)

    def last_error(self, unit: str) -> str | None:
        return self._last_error.get(unit)
