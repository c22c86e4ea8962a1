"""Whether the config and a unit let contexts be kept, or what is missing. Reads the folder, changes nothing."""

from __future__ import annotations

from systemd_llm_switch.config.records import Config, Model
from systemd_llm_switch.contexts.folder import Folder, FolderProblem
from systemd_llm_switch.contexts.unit import Command


def refusal(config: Config, unit: str) -> str | None:
    """Why the config wants no contexts of a unit; None if it does."""
    if config.server.contexts.max_gb == 0:
        return "switched off: server.contexts.max_gb is 0"
    models = [model for model in config.models.values() if model.unit == unit]
    if not models:
        return "no configured model has this unit"
    off = next((model for model in models if not model.contexts), None)
    return None if off is None else f"switched off: models.{off.id}.contexts is false"


def why_unsupported(config: Config, model: Model, command: Command) -> str | None:
    """Why a model's contexts cannot be kept, and what to do; None if they can."""
    why = refusal(config, model.unit) or command.problem
    if why is None and command.folder is not None:
        try:
            Folder(command.folder).check()
        except FolderProblem as problem:
            return str(problem)
    return why
