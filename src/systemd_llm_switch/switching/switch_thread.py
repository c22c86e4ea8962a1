"""The thread that carries out switches, one after the other. Makes each from a decision of the scheduler."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.config.records import Config, Model
from systemd_llm_switch.contexts.fingerprint import Fingerprint
from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.scheduler import Switch
from systemd_llm_switch.switching.failures import Failures
from systemd_llm_switch.switching.read_ahead import ReadAhead
from systemd_llm_switch.switching.resident import Resident
from systemd_llm_switch.switching.switch_run import Helpers, SwitchOutcome, SwitchRun, Target
from systemd_llm_switch.systemd.manager import Systemd

log = logging.getLogger(__name__)


class SwitchThread:
    """Carries out switches. Calls `on_end` in its thread, with each run and its outcome."""

    def __init__(
        self,
        systemd: Systemd,
        read_ahead: ReadAhead,
        contexts: Contexts,
        on_end: Callable[[SwitchRun, SwitchOutcome], None],
    ) -> None:
        self._helpers = Helpers(systemd, Failures(), read_ahead, contexts)
        self._on_end = on_end
        self._runs: queue.SimpleQueue[SwitchRun] = queue.SimpleQueue()

    def start(self) -> None:
        """Starts the thread, which lives as long as the proxy."""
        threading.Thread(target=self._work, name="switches", daemon=True).start()

    def begin(
        self,
        switch: Switch,
        config: Config,
        residents: Iterable[Resident],
        backend: Callable[[Model], Backend],
        beginnings: Callable[[str], Sequence[Fingerprint]],
    ) -> SwitchRun:
        """Passes a switch to the thread; returns at once. `backend` finds the backend of a model, and `beginnings`
        returns the beginnings of the requests that wait for a unit."""
        models = {model.unit: model for model in config.models.values()}
        others, target = list(switch.evict), None
        if switch.target is not None:
            model = models[switch.target]
            waiting = partial(beginnings, model.unit)
            target = Target(model, backend(model), config.server.health_timeout, waiting)
            others = _units_to_stop(switch, models)
        leaving = [resident for resident in residents if resident.model.unit in others]
        run = SwitchRun(self._helpers, target, others, leaving)
        self._runs.put(run)
        return run

    def _work(self) -> None:
        while True:
            self._carry_out(self._runs.get())  # keep no reference: a run holds the processes that it stopped

    def _carry_out(self, run: SwitchRun) -> None:
        try:
            self._on_end(run, run.carry_out())
        except Exception:
            log.exception("switch_crashed")


def _units_to_stop(switch: Switch, models: Mapping[str, Model]) -> list[str]:
    """Every unit that must not run beside the target, even if it was started by hand: all units that are not kept,
    except for CPU units whose port no kept unit and no target needs. `models` are the configured models, by unit."""
    ports = {model.llama_url for unit, model in models.items() if unit == switch.target or unit in switch.keep}
    harmless = {unit for unit, model in models.items() if model.vram == 0 and model.llama_url not in ports}
    stay = {switch.target, *switch.keep, *(harmless - set(switch.evict))}
    return [unit for unit in dict.fromkeys([*switch.evict, *models]) if unit not in stay]
