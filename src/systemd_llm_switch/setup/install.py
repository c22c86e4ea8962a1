"""Installs units: renders them, links them, and reports the outcome of each. Starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote

from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.ledger import Ledger, Outcome
from systemd_llm_switch.setup.model_files import Folders, find, find_incomplete, missing_parts
from systemd_llm_switch.setup.places import Places
from systemd_llm_switch.setup.unit_files import Machine, UnitSource


def install_units(
    sources: list[UnitSource], machine: Machine, environ: Mapping[str, str], places: Places, ledger: Ledger
) -> None:
    """Renders and links each unit, and prints what was found, written and kept."""
    folders = Folders.of(machine.models_dir, places.home, environ)
    changed = 0
    for source in sources:
        wanted = source.wanted_model
        model = find(wanted, folders) if wanted else None
        if wanted:
            _say_model(source, folders, places)
        text = source.render(machine, model)
        outcome = ledger.put_unit(source.name, text, places)
        changed += outcome is Outcome.WRITTEN
        if outcome is Outcome.KEPT:
            say_kept(source.name, text, places, ledger)
    summary = f"{changed} written, the others are up to date" if changed < len(sources) else "all written"
    console.done(f"units in {places.short(places.rendered)}: {summary}")


def remove_obsolete(sources: list[UnitSource], places: Places, ledger: Ledger) -> list[str]:
    """Removes units whose tracked file is gone; returns their names."""
    wanted = {source.name for source in sources} | {*ledger.demo_units, *ledger.added_units}
    obsolete = [name for name in ledger.units if name not in wanted]
    for name in obsolete:
        outcome = ledger.remove_unit(name, places)
        console.note(f"{name} is no longer part of this set-up: {_removal(outcome)}")
    return obsolete


def say_kept(name: str, text: str, places: Places, ledger: Ledger) -> None:
    """Prints which file stays as the user made it, and how to get this project's version."""
    own = places.linked / name
    is_rendered = own.is_symlink() and own.readlink() == places.rendered / name
    path = places.rendered / name if is_rendered else own
    console.note(f"kept your own {places.short(path)}")
    if not is_rendered or ledger.has_newer(name, text):
        console.note(f"  for this project's version: rm {quote(str(path))} && {places.how_to()}")


def _say_model(source: UnitSource, folders: Folders, places: Places) -> None:
    wanted = source.wanted_model
    assert wanted is not None
    name = source.path.stem.ljust(20)
    model, incomplete = find(wanted, folders), find_incomplete(wanted, folders)
    if model:
        console.done(f"{name} {places.short(model)}")
    elif incomplete:
        count = len(missing_parts(incomplete))
        console.note(f"{name} incomplete, {count} part(s) missing beside {places.short(incomplete)}")
    else:
        console.note(f"{name} not found")


def _removal(outcome: Outcome) -> str:
    return "removed" if outcome is Outcome.WRITTEN else "your edit of it stays, without its link"
