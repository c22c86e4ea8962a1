"""Models that run although the switcher did not start them: finds them, and adopts those that are ready."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable

from systemd_llm_switch.config.records import Model
from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.contexts.unit import Command
from systemd_llm_switch.errors import ModelStartFailed, ProxyError
from systemd_llm_switch.quoting import quoted
from systemd_llm_switch.switching.resident import Resident
from systemd_llm_switch.switching.start import LoadAborted, Start
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.systemd.manager import Systemd, SystemdError
from systemd_llm_switch.systemd.unit import UnitStatus

log = logging.getLogger(__name__)

_HEALTH_TIMEOUT_S = 1.0


class Adoption:
    """Asks systemd which units run, and reports them to the switcher. Thread-safe; every method blocks."""

    def __init__(self, switcher: Switcher, systemd: Systemd, contexts: Contexts) -> None:
        self._switcher = switcher
        self._systemd = systemd
        self._contexts = contexts

    def adopt(self, *, is_look: bool = False) -> None:
        """Adopts what runs already and is ready, so that a restarted proxy reloads nothing.

        Units that run on the same port are left to the next switch, because it is unknown which of them answers. With
        `is_look`, units that could not stay loaded are ignored: those that do not fit beside the others, and all units
        during a hold.

        Raises:
            SystemdError: systemd cannot be asked.
        """
        self._switcher.notice_losses()  # a process that has ended must not block an adoption
        models = {model.unit: model for model in self._switcher.models()}
        known = self._switcher.present
        statuses = self._systemd.show(models)
        self._contexts.learn({unit: Command.of_status(status) for unit, status in statuses.items()})
        running = [models[unit] for unit, status in statuses.items() if status.is_running]
        urls = Counter(model.llama_url for model in running)
        for model in running:
            if model.unit not in known and urls[model.llama_url] == 1:
                self._adopt_one(model, statuses[model.unit], is_look)

    def learn(self) -> None:
        """Reads the units' commands, for their contexts. `adopt` does that as well.

        Raises:
            SystemdError: systemd cannot be asked.
        """
        statuses = self._systemd.show(self._switcher.units())
        self._contexts.learn({unit: Command.of_status(status) for unit, status in statuses.items()})

    def find(self, units: Iterable[str]) -> None:
        """Reports the units that are not stopped, ready or not, to the scheduler.

        Raises:
            ModelStartFailed: systemd cannot be asked.
        """
        try:
            statuses = self._systemd.show(units)
        except SystemdError as error:
            raise ModelStartFailed(str(error)) from error
        for unit, status in statuses.items():
            if not status.is_stopped:
                self._switcher.note_found(unit)

    def _adopt_one(self, model: Model, status: UnitStatus, is_look: bool) -> None:
        try:
            resident = self._check_ready(model, status)
        except (ProxyError, LoadAborted, OSError) as reason:
            level = logging.DEBUG if is_look else logging.INFO  # there may be many looks while one model loads
            text = quoted(str(reason) or "not ready")
            log.log(level, "not_adopted model=%s unit=%s reason=%s", model.id, model.unit, text)
            return
        if self._switcher.take_in(resident, is_look=is_look):
            log.info("adopted model=%s unit=%s pid=%d", model.id, model.unit, resident.watch.pid)
            self._contexts.ready(resident.loaded)

    def _check_ready(self, model: Model, status: UnitStatus) -> Resident:
        """The running unit as a resident.

        Raises:
            ProxyError, LoadAborted: it is not ready. A unit that still loads is left to the first request for it.
            OSError: no file descriptor is left.
        """
        abort_fd = os.eventfd(1, os.EFD_CLOEXEC)
        try:
            rivals = [unit for unit in self._switcher.units() if unit != model.unit]
            backend = self._switcher.backend(model)
            start = Start(self._systemd, model, backend, abort_fd, _HEALTH_TIMEOUT_S, rivals)
            return start.wait_until_ready(start.launch(status))
        finally:
            os.close(abort_fd)
