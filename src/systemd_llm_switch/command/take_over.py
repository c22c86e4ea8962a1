"""The models of llama-swap or of llama.cpp's router, added one by one. Each is added whole or not at all."""

from __future__ import annotations

from pathlib import Path

from systemd_llm_switch.command.add_one import Adder, Source, known_models
from systemd_llm_switch.command.exits import DONE, FAILED
from systemd_llm_switch.command.proxy_client import Refused
from systemd_llm_switch.config.file import load
from systemd_llm_switch.config.records import ConfigError
from systemd_llm_switch.models import llama_swap, planning, presets
from systemd_llm_switch.models.foreign import Foreign, NotTaken
from systemd_llm_switch.models.planning import Extras
from systemd_llm_switch.quoting import printable
from systemd_llm_switch.setup import console, server_flags
from systemd_llm_switch.setup.places import SetupError


def run(adder: Adder, llama_swap_file: Path | None, presets_file: Path | None) -> int:
    """DONE if every model of the file was taken over.

    Raises:
        SetupError, NoProxy, KeyboardInterrupt
    """
    known = server_flags.ask(planning.server_of(adder.places, adder.environ))
    if llama_swap_file is not None:
        found = llama_swap.read(llama_swap_file, known, adder.environ)
    else:
        assert presets_file is not None
        found = presets.read(presets_file, known)
    for line in found.lost:
        console.note(f"not taken over: {line}")
    before = known_models(adder.config_path)
    taken: list[str] = []
    failed: list[str] = []
    units: set[str] = set()
    try:
        for model in found.models:
            (taken if _take(adder, model, units) else failed).append(model.name)
    finally:
        # The config knows best: an interrupt may come when a model is complete, and not counted yet.
        now = known_models(adder.config_path) - before
        added = taken if adder.is_dry else [model.name for model in found.models if model.name in now]
        _say_end(adder, added, failed)
    return FAILED if failed else DONE


def _take(adder: Adder, model: Foreign | NotTaken, units: set[str]) -> bool:
    """Whether it was added. Says why not."""
    name = printable(model.name)
    if isinstance(model, NotTaken):
        console.warn(f"{name} is not taken over: {model.reason}")
        return False
    try:
        _check_unit(model.name, units)
        aliases, clashing = _free_aliases(adder, model)
        entry = {**({"aliases": aliases} if aliases else {}), **model.entry}
        source = Source(model.name, model.file, model.repo, model.wishes, Extras(entry, model.environment))
        adder.add(source)
    except (SetupError, Refused, ConfigError, OSError) as error:
        console.warn(f"{name} is not taken over: {error}")
        return False
    for line in (*model.lost, *clashing):
        console.note(f"{name}: not taken over: {line}")
    return True


def _check_unit(name: str, units: set[str]) -> None:
    """In a dry run, too, two names whose units would be the same are noticed."""
    unit = planning.unit_name(name)
    if unit in units:
        raise SetupError(f"another model of the file has the unit {unit} already")
    units.add(unit)


def _free_aliases(adder: Adder, model: Foreign) -> tuple[list[str], list[str]]:
    """Those that mean nothing else yet, and a line for each other one."""
    names = load(adder.config_path).names
    free = [alias for alias in dict.fromkeys(model.aliases) if alias not in names and alias != model.name]
    taken = [alias for alias in dict.fromkeys(model.aliases) if alias in names]
    return free, [f"alias {printable(alias, 60)}: another model has that name" for alias in taken]


def _say_end(adder: Adder, added: list[str], failed: list[str]) -> None:
    would = "would be added" if adder.is_dry else "added"
    console.heading(f"{len(added)} {would}{f': {_listed(added)}' if added else ''}")
    if failed:
        console.plain(f"  {len(failed)} not taken over: {_listed(failed)}")


def _listed(names: list[str], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + rest
