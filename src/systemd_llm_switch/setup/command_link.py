"""The link `~/.local/bin/llm-switch`: made if the name is free, removed if it is still ours."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.ledger import Ledger, leads_to
from systemd_llm_switch.setup.places import Places


def put(places: Places, ledger: Ledger) -> None:
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
    console.done(f"the command llm-switch: {places.short(link)}")


def typed(places: Places, environ: Mapping[str, str]) -> str:
    """What to type for the command: its name where the PATH leads to it, else its path."""
    target, link = places.python.with_name("llm-switch"), places.command_link
    found = shutil.which("llm-switch", path=environ.get("PATH", ""))
    if found and Path(found).resolve() == target.resolve():
        return "llm-switch"
    is_linked = link.is_symlink() and link.resolve() == target.resolve()
    return places.short(link) if is_linked else quote(str(target))


def say_how_to_type(places: Places, environ: Mapping[str, str]) -> None:
    """What makes the bare name work, where the PATH does not lead to it."""
    if typed(places, environ) == places.short(places.command_link):
        console.plain("  To type just `llm-switch`, in this shell and the next ones:")
        console.plain('    export PATH="$HOME/.local/bin:$PATH"   # and add this line to ~/.profile')


def remove(places: Places, ledger: Ledger) -> None:
    """Removes the link that we made, unless it leads elsewhere now."""
    if ledger.command and leads_to(places.command_link, Path(ledger.command)):
        places.command_link.unlink()
    ledger.command = ""
