"""Owns `./setup.sh --uninstall`: undoes what the ledger says the set-up did, and tells what stays."""

from __future__ import annotations

import getpass
import shutil
from collections.abc import Mapping

from systemd_llm_switch.setup import console, demo_config
from systemd_llm_switch.setup.ledger import Ledger, Outcome, remove_empty
from systemd_llm_switch.setup.places import NAME, Places
from systemd_llm_switch.setup.running_proxy import UNIT
from systemd_llm_switch.setup.systemctl import Systemctl
from systemd_llm_switch.setup.user_manager import UserManager, is_reachable


def run(places: Places, environ: Mapping[str, str], ledger: Ledger) -> None:
    """Stops the proxy and all models, then removes what is ours."""
    private = UserManager.of_home(places.home)
    systemd = Systemctl(private.env) if private else Systemctl.of(environ)
    can_reach = is_reachable(dict(systemd.env))
    names = list(ledger.units)
    console.heading("Removing systemd-llm-switch")
    if can_reach and names:
        # The slice goes too: it holds models that a person added as well.
        systemd.stop([UNIT, *names])
        systemd.forget([name for name in names if name.endswith(".service")])
        console.done("stopped the proxy and its models")
    kept = _remove_files(places, ledger)
    if can_reach:
        systemd.reload()
    if ledger.linger and systemd.set_linger(getpass.getuser(), on=False):
        console.done("lingering switched off again")
    if private and ledger.manager:
        private.stop()
        console.done("ended the private user manager")
    _remove_own_data(places)
    console.done("removed the units and the downloaded llama-server" if names else "no unit was installed")
    _tell_kept(places, kept)


def _remove_files(places: Places, ledger: Ledger) -> list[str]:
    kept = [
        places.short(places.rendered / name)
        for name in list(ledger.units)
        if ledger.remove_unit(name, places) is Outcome.KEPT
    ]
    edited = demo_config.remove(places, ledger)
    return [*kept, places.short(edited)] if edited else kept


def _remove_own_data(places: Places) -> None:
    for folder in (places.wheels, places.cache_home / NAME, places.state_home / NAME):
        shutil.rmtree(folder, ignore_errors=True)
    places.ledger.unlink(missing_ok=True)
    own_folders = (places.rendered, places.own_data, places.user_config.parent)
    remove_empty((*own_folders, places.linked, places.linked.parent))


def _tell_kept(places: Places, kept: list[str]) -> None:
    if places.user_config.exists() and places.short(places.user_config) not in kept:
        kept.append(f"{places.short(places.user_config)} (your config)")
    for path in kept:
        console.note(f"kept {path}")
    console.note("kept your models and llama.cpp, and .venv here (rm -r .venv removes it)")
