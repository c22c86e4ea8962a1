"""Messages that say why a start failed and what to do next. Only reads: systemd's status, the journal, and what can be
checked from outside."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from systemd_llm_switch import advice
from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.errors import ModelStartFailed, ModelStartTimeout
from systemd_llm_switch.quoting import printable, quoted
from systemd_llm_switch.switching.address import Elsewhere
from systemd_llm_switch.switching.read_ahead import model_files
from systemd_llm_switch.systemd import journal
from systemd_llm_switch.systemd.listeners import control_groups, listening_sockets
from systemd_llm_switch.systemd.manager import Systemd
from systemd_llm_switch.systemd.programs import ProgramError, run
from systemd_llm_switch.systemd.unit import MainProcess, UnitStatus

_MEMORY_WORDS = ("out of memory", "outofdevicememory", "failed to allocate", "cannot allocate memory")
_MAX_QUOTE = 1400  # characters of the journal in one message
_HELP_TIMEOUT_S = 5.0
_OPTION = re.compile(r"--?[A-Za-z][A-Za-z0-9-]*")


class PortTaken(ModelStartFailed):
    """A process that we do not manage holds the model's port. The model's own unit has not failed."""


class Diagnosis:
    """Explains one model's start."""

    def __init__(self, systemd: Systemd, model: Model, backend: Backend) -> None:
        self._systemd = systemd
        self._model = model
        self._backend = backend

    def failure(self, status: UnitStatus, reason: str = "") -> ModelStartFailed:
        """The error with systemd's result, our own findings, the next step, and the last journal lines of this start.
        The lines come last because they are long and a client may show only the beginning. `reason` is systemd's answer
        if it refused the start."""
        excerpt = journal.read(status.last_process, has_ended=not status.main_pid)
        parts = [f"model {self._model.id!r} failed to start: unit {status.unit}: {_reason(status, reason)}."]
        parts += self._findings(status, excerpt)
        parts.append(_next_step(self._model.id, status))
        if excerpt.lines:
            parts.append(quote_journal(excerpt.lines))
        memory = status.was_out_of_memory or _names_memory(excerpt.lines)
        return ModelStartFailed(" ".join(parts), permanent=_is_permanent(status, memory), out_of_memory=memory)

    def timeout(self, after_s: float, seen: str, process: MainProcess) -> ModelStartTimeout:
        """The error for a backend that was not ready in time; `seen` is its state as we last saw it."""
        lines = journal.read(process).lines
        return ModelStartTimeout(
            f"model {self._model.id!r} was not ready within {after_s:g} s (server.health_timeout): {seen} at "
            f"{self._backend.url}. Unit {self._model.unit} was stopped again. {_journal_or_where(self._model, lines)}",
            param="model",
        )

    def unfinished(self, after_s: float, status: UnitStatus) -> ModelStartTimeout:
        """The error for a unit whose start job did not end in time."""
        lines = journal.read(status.last_process).lines
        return ModelStartTimeout(
            f"model {self._model.id!r} was not ready within {after_s:g} s (server.health_timeout): unit {status.unit} "
            f"was still {status.describe()}. It was stopped again. {_journal_or_where(self._model, lines)}",
            param="model",
        )

    def elsewhere(self, wrong: Elsewhere) -> ModelStartFailed:
        """The error for a unit that would listen elsewhere than the proxy asks."""
        unit = self._model.unit
        return ModelStartFailed(
            f"model {self._model.id!r} was not started: its unit {unit} has `{wrong.flag} {wrong.given}`, but "
            f"`llama_url` in the config is {self._backend.url}. Write `{wrong.flag} {wrong.wanted}` into the unit "
            f"(`systemctl --user edit --full {unit}`), or give the model a `llama_url` that fits.",
            permanent=True,
        )

    def port_taken(self) -> PortTaken:
        """The error for a port on which another process listens."""
        return PortTaken(f"model {self._model.id!r} was not started: {self._taken_by()}")

    def _findings(self, status: UnitStatus, excerpt: journal.Excerpt) -> list[str]:
        """What we find out ourselves, as sentences: llama-server's last lines are sometimes lost."""
        if not _has_failed(status):
            return []
        found = _missing_files(status.command)
        if not excerpt.has_words:
            found += _unknown_options(status.command)
            if not self._backend.is_silent():
                found.append(f"{self._taken_by()}.")
            found = found or ["The journal has no lines of it."]
        return found

    def _taken_by(self) -> str:
        return f"{self._backend.url} is taken by {self._taker()}"

    def _taker(self) -> str:
        """What holds the model's port, and how to stop it. Most often it is the unit of a model that was removed from
        the config while it ran."""
        for group in control_groups(listening_sockets(self._backend.port)):
            unit = group.rpartition("/")[2]
            # A unit of that name may be another user's, or the system's.
            if unit.endswith(".service") and self._systemd.show([unit])[unit].control_group == group:
                return f"unit {unit}; stop it (`systemctl --user stop {unit}`) or add it to the config"
        return "a process that this proxy does not manage; find it with `ss -ltnp` and stop it"


def quote_journal(lines: Sequence[str]) -> str:
    """The last lines of a start as a sentence. Leaves out the oldest if they are too long; empty without lines."""
    shown: list[str] = []
    left = _MAX_QUOTE
    for line in reversed([printable(line) for line in lines]):
        left -= len(line) + len(" | ")
        if left < 0 and shown:
            break
        shown.insert(0, line)
    return f"Last journal lines: {' | '.join(shown)}" if shown else ""


def _journal_or_where(model: Model, lines: Sequence[str]) -> str:
    return quote_journal(lines) or f"See `{advice.logs_of(model.id)}`."


def _reason(status: UnitStatus, reason: str) -> str:
    if status.is_missing or status.result not in ("", "success") or not status.is_stopped:
        return status.describe()
    return reason or f"it was stopped, or ended by itself, while it loaded; now {status.describe()}"


def _next_step(model: str, status: UnitStatus) -> str:
    if status.load_state == "not-found":
        return f"Install it (`{_how_to('setup')}`), or correct `unit:` in the config."
    if status.needs_daemon_reload:
        return "Its unit file changed on disk: run `systemctl --user daemon-reload`, then try again."
    return (
        f"See `journalctl --user -u {status.unit}` or `{advice.logs_of(model)}`, and "
        f"`systemctl --user status {status.unit}`."
    )


def _how_to(step: str) -> str:
    return advice.how_to(step, advice.find_checkout())


def _has_failed(status: UnitStatus) -> bool:
    """Whether the unit's process ended by itself, with an error."""
    return status.exec_code == os.CLD_EXITED and status.exec_status != 0


def _missing_files(command: str) -> list[str]:
    """A sentence about the first model file that is missing or cannot be read."""
    for file in model_files(command):
        name = quoted(str(file))
        try:
            is_there, is_readable = file.exists(), os.access(file, os.R_OK)
        except (OSError, ValueError):
            continue
        if not is_there:
            return [f"The model file {name} is missing; `{_how_to('check')}` says how to get it back."]
        if not is_readable:
            return [f"The model file {name} cannot be read: check its owner and mode."]
    return []


def _unknown_options(command: str) -> list[str]:
    """A sentence about the options that the unit's llama-server does not know. Only a llama-server is run: another
    program might do anything with `--help`."""
    program, *words = command.split() or [""]
    if not Path(program).name.startswith("llama-server"):
        return []
    try:
        known = set(_OPTION.findall(run(program, "--help", timeout_s=_HELP_TIMEOUT_S)))
    except ProgramError:
        return []
    given = dict.fromkeys(name for word in words if _OPTION.fullmatch(name := word.partition("=")[0]))
    unknown = [name for name in given if name not in known]
    if "--model" not in known or not unknown:
        return []
    return [f"{quoted(program)} does not know {', '.join(printable(name, 60) for name in unknown[:5])} (see `--help`)."]


def _is_permanent(status: UnitStatus, memory: bool) -> bool:
    """Whether a client's retries cannot help: a missing file stays missing until a person acts."""
    return status.is_missing or (_has_failed(status) and not memory)


def _names_memory(lines: Sequence[str]) -> bool:
    return any(word in line.lower() for line in lines for word in _MEMORY_WORDS)
