"""Explains why a backend's connection broke: its process has ended, or is about to."""

from __future__ import annotations

from systemd_llm_switch import advice
from systemd_llm_switch.switching.diagnosis import quote_journal
from systemd_llm_switch.switching.leases import Lease
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.systemd import journal
from systemd_llm_switch.systemd.manager import Systemd, SystemdError
from systemd_llm_switch.waiting import Client

_ENDING_S = 0.25


class Losses:
    """Explains broken connections and reports lost processes to the switcher. Thread-safe."""

    def __init__(self, switcher: Switcher, systemd: Systemd) -> None:
        self._switcher = switcher
        self._systemd = systemd

    def explain(self, lease: Lease) -> str | None:
        """What systemd and the journal say if the backend's process has ended; None if it still lives.

        Blocks for up to a quarter of a second, because a connection may break a moment before its process is gone. If
        systemd is stopping a process that takes longer, its unit is not used again before it has stopped.
        """
        resident = lease.resident
        if resident is None:
            return None
        model, unit = resident.model.id, resident.model.unit
        if not Client(None).wait_readable(resident.watch.fileno(), _ENDING_S):
            return self._explain_end(unit)
        self._switcher.lose(resident)
        try:
            status = self._systemd.show_after_exit(unit, resident.watch.pid)
        except SystemdError as error:
            return str(error)
        has_failed = status.result not in ("", "success")
        lines = journal.read(resident.process, has_ended=has_failed).lines
        where = f"`journalctl --user -u {unit}`" + ("" if lines else f" or `{advice.logs_of(model)}`")
        return f"unit {unit}: {status.describe()}. See {where}. {quote_journal(lines)}".strip()

    def _explain_end(self, unit: str) -> str | None:
        """The state of a unit whose process still lives; None if it is not being stopped."""
        try:
            status = self._systemd.show([unit])[unit]
        except SystemdError as error:
            return str(error)
        if status.is_running:
            return None
        self._switcher.unload([unit], force=False)
        return f"unit {unit}: {status.describe()}; it is being stopped."
