"""The link `~/.local/bin/llm-switch`: made if the name is free, removed if it is still ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.ledger import Ledger, leads_to
from systemd_llm_switch.setup.places import Places


def put(places: Places, environ: Mapping[str, str], ledger: Ledger) -> None:
    """Links the command. A person's own file of that name stays."""
    link, target = places.command_link, places.python.with_name("llm-switch")
    if ledger.command and leads_to(link, Path(ledger.command)):
        link.unlink()  # ours, perhaps to where a clone was before
    if link.is_symlink() or link.exists():
        if link.resolve() != target.resolve():  # pipx makes the same link
            console.note(f"kept your own {places.short(link)}; the command is {places.short(target)}")
        return
    if not target.exists():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    ledger.command = str(target)
    ledger.save()
    is_found = str(link.parent) in environ.get("PATH", "").split(os.pathsep)
    hint = "" if is_found else f" ({places.short(link.parent)} is not on your PATH)"
    console.done(f"the command llm-switch: {places.short(link)}{hint}")


def remove(places: Places, ledger: Ledger) -> None:
    """Removes the link that we made, unless it leads elsewhere now."""
    if ledger.command and leads_to(places.command_link, Path(ledger.command)):
        places.command_link.unlink()
    ledger.command = ""
