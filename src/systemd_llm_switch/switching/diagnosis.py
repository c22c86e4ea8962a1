"""Why a start failed, in words that name the cause and the next step. Only reads: systemd's status, the journal, and
what can be seen by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence

from systemd_llm_switch.backend.backend import Backend, Readiness
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.errors import ModelStartFailed, ModelStartTimeout
from systemd_llm_switch.switching.read_ahead import model_files
from systemd_llm_switch.systemd import journal
from systemd_llm_switch.systemd.listeners import control_groups, listening_sockets
from systemd_llm_switch.systemd.manager import Systemd
from systemd_llm_switch.systemd.unit import UnitStatus

_MEMORY_WORDS = ("out of memory", "outofdevicememory", "failed to allocate", "cannot allocate memory")


class PortTaken(ModelStartFailed):
    """Something that is not one of our units listens where the model would; its own unit is not to blame."""


class Diagnosis:
    """Explains one model's start."""

    def __init__(self, model: Model, backend: Backend) -> None:
        self._model = model
        self._backend = backend

    def failure(self, status: UnitStatus, reason: str = "") -> ModelStartFailed:
        """The error with all that is known: systemd's result, the next step, and the last lines of this start. The
        lines come last: they are long, and a client may show the beginning only. `reason` is systemd's answer to the
        start, if it refused."""
        lines = journal.last_lines(status.invocation_id)
        parts = [f"model {self._model.id!r} failed to start: unit {status.unit}: {_reason(status, reason)}."]
        parts.append(_next_step(status, lines))
        if lines:
            parts.append(quote_journal(lines))
        memory = status.was_out_of_memory or _names_memory(lines)
        return ModelStartFailed(" ".join(parts), permanent=_is_permanent(status, memory), out_of_memory=memory)

    def timeout(self, after_s: float, readiness: Readiness, invocation_id: str) -> ModelStartTimeout:
        """The error for a backend that was not ready in time."""
        seen = "nothing listened" if readiness is Readiness.SILENT else "it was still loading"
        lines = journal.last_lines(invocation_id)
        return ModelStartTimeout(
            f"model {self._model.id!r} was not ready within {after_s:g} s (server.health_timeout): {seen} at "
            f"{self._backend.url}. Unit {self._model.unit} was stopped again. {quote_journal(lines)}".strip(),
            param="model",
        )

    def port_taken(self, systemd: Systemd) -> PortTaken:
        """The error for a port on which another process listens."""
        return PortTaken(
            f"model {self._model.id!r} was not started: {self._backend.url} is taken by {self._taker(systemd)}"
        )

    def _taker(self, systemd: Systemd) -> str:
        """Who listens where the model would, and how to stop it. Most often it is the unit of a model that was removed
        from the config while it ran."""
        for group in control_groups(listening_sockets(self._backend.port)):
            unit = group.rpartition("/")[2]
            # A unit of that name may be another user's, or the system's.
            if unit.endswith(".service") and systemd.show([unit])[unit].control_group == group:
                return f"unit {unit}: `systemctl --user stop {unit}` stops it; in the config, it would be switched"
        return "something that is none of the configured units; find it with `ss -ltnp` and stop it"


def quote_journal(lines: Sequence[str]) -> str:
    """The last lines of a start as a sentence; empty where there are none."""
    return f"Last journal lines: {' | '.join(lines)}" if lines else ""


def _reason(status: UnitStatus, reason: str) -> str:
    if status.is_missing or status.result not in ("", "success") or not status.is_stopped:
        return status.describe()
    return reason or f"it was stopped, or ended by itself, while it loaded; now {status.describe()}"


def _next_step(status: UnitStatus, lines: Sequence[str]) -> str:
    if status.load_state == "not-found":
        return "Install it (./setup.sh), or correct `unit:` in the config."
    if status.needs_daemon_reload:
        return "Its unit file changed on disk: run `systemctl --user daemon-reload`, then try again."
    lost = next((file for file in model_files(status.command) if not file.exists()), None)
    if lost is not None and any(str(lost) in line for line in lines):
        return f"There is no model file {lost}; `./setup.sh --check` names the command that downloads it."
    return f"See `journalctl --user -u {status.unit}` and `systemctl --user status {status.unit}`."


def _is_permanent(status: UnitStatus, memory: bool) -> bool:
    """Whether a client's own retries cannot help: a missing file stays missing until somebody acts."""
    exited = status.exec_code == os.CLD_EXITED and status.exec_status != 0
    return status.is_missing or (exited and not memory)


def _names_memory(lines: Sequence[str]) -> bool:
    return any(word in line.lower() for line in lines for word in _MEMORY_WORDS)
