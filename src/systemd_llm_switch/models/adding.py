"""Adds a planned model: its unit and its entry in the config. All or nothing, even if it is interrupted."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from systemd_llm_switch.config.file import load
from systemd_llm_switch.models import config_entry
from systemd_llm_switch.models.planning import Plan, check_free, edited_config
from systemd_llm_switch.models.undoing import Undo, put_back, without_interrupts
from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.ledger import Ledger, Outcome, checksum, remove_empty, write
from systemd_llm_switch.setup.lock import only_one
from systemd_llm_switch.setup.places import Places, SetupError
from systemd_llm_switch.setup.systemctl import Systemctl


def add(plan: Plan, places: Places, systemd: Systemctl, use: Callable[[], None]) -> None:
    """Writes the unit and the entry, and calls `use`, which tries the model. If anything raises, even a signal, all is
    undone.

    Raises:
        SetupError, OSError, KeyboardInterrupt, and what `use` raises.
    """
    with only_one(places, uses_clone=False) as missing, Undo() as undo:
        ledger = Ledger.load(places)
        check_free(plan.unit, load(plan.config), ledger, places, systemd)
        _remove_leftover(plan.unit, ledger, places, systemd)
        ledger.note_folders(missing)
        _add_unit(plan, ledger, places, systemd, undo)
        console.done(f"unit {places.short(places.linked / plan.unit)}")
        entry = _Entry(plan)
        undo.later(entry.undo)
        entry.write()
        console.done(f"entry in {places.short(plan.target)}")
        entry.may_be_read = True
        use()


def _add_unit(plan: Plan, ledger: Ledger, places: Places, systemd: Systemctl, undo: Undo) -> None:
    unit = plan.unit
    folders = (places.rendered, places.linked, places.linked.parent, plan.target.parent)
    fresh = [folder for folder in folders if not folder.exists()]
    before = places.ledger.read_text() if places.ledger.exists() else None

    def forget() -> None:
        systemd.stop([unit])
        systemd.forget([unit])
        ledger.remove_unit(unit, places)
        put_back(places.ledger, before)
        remove_empty(fresh)

    undo.later(systemd.reload)
    undo.later(forget)
    # Recorded first: a crash in between leaves something that the next `add` or the uninstall removes.
    ledger.added_units.append(unit)
    ledger.units[unit] = checksum(plan.unit_text)
    ledger.save()
    if ledger.put_unit(unit, plan.unit_text, places) is Outcome.KEPT:
        raise SetupError(f"{places.short(places.rendered / unit)} is there already; remove it or choose another name")
    systemd.reload()
    if not systemd.is_known(unit):
        raise SetupError(f"your user manager finds no units in {places.linked}; is XDG_CONFIG_HOME right?")


def _remove_leftover(unit: str, ledger: Ledger, places: Places, systemd: Systemctl) -> None:
    """Removes what a killed `add` left."""
    if unit in ledger.added_units:
        systemd.stop([unit])
        ledger.remove_unit(unit, places)
        ledger.added_units.remove(unit)
        ledger.save()


class _Entry:
    """The edit of the config, and how it is undone."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._before, self._after = edited_config(plan)
        self._was_there = plan.target.exists()
        self.may_be_read = False  # by a running proxy, which reports a file that vanishes as broken

    def write(self) -> None:
        target = self._plan.target
        # It may contain keys, so its mode must not change.
        mode = stat.S_IMODE(target.stat().st_mode) if self._was_there else 0o644
        write(target, self._after, mode)

    def undo(self) -> None:
        target = self._plan.target
        if not target.exists():
            return
        current = target.read_bytes().decode(errors="replace")
        if current == self._before:
            before: str | None = self._before
        elif current == self._after:
            before = self._before if self._was_there or self.may_be_read else None
        else:  # edited meanwhile
            before = config_entry.removed(current, self._plan.name)
        put_back(target, before)


def remove(name: str, unit: str, config: Path, places: Places, systemd: Systemctl) -> None:
    """Removes the entry and the unit. Both are gone when it returns; after an interruption, the next call goes on.

    Raises:
        SetupError, OSError
    """
    with only_one(places, uses_clone=False), without_interrupts():
        ledger = Ledger.load(places)
        text = config.read_bytes().decode()
        if name in load(config).models:
            write(config, config_entry.removed(text, name), stat.S_IMODE(config.stat().st_mode))
            console.done(f"entry removed from {places.short(config)}")
        systemd.stop([unit])
        systemd.forget([unit])
        outcome = ledger.remove_unit(unit, places)
        ledger.added_units.remove(unit)
        if ledger == Ledger(places.ledger, folders=ledger.folders):  # nothing was ever set up
            places.ledger.unlink(missing_ok=True)
            remove_empty((places.rendered, places.own_data, *ledger.made_folders(places)))
        else:
            ledger.save()
        systemd.reload()
        if outcome is Outcome.KEPT:
            console.note(f"your edit is now {places.short(places.rendered / unit)}; nothing reads it there")
        else:
            console.done(f"unit {unit} removed")
