"""The command's man page and completions: put where man and the shells look, removed while they are still ours."""

from __future__ import annotations

from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.ledger import Ledger, Outcome
from systemd_llm_switch.setup.places import Places


def put(places: Places, ledger: Ledger) -> None:
    """Writes them. A person's own file of such a name stays."""
    for name, target in places.shell_files.items():
        text = (places.deploy / "command" / name).read_text(encoding="utf-8")
        if ledger.put_shell_file(name, target, text) is Outcome.KEPT:
            console.note(f"kept your own {places.short(target)}")
    ledger.save()


def remove(places: Places, ledger: Ledger) -> list[str]:
    """Removes those that nobody changed. Returns the others, for people to read."""
    outcomes = {target: ledger.remove_shell_file(name, target) for name, target in places.shell_files.items()}
    return [places.short(target) for target, outcome in outcomes.items() if outcome is Outcome.KEPT]
