"""The step `uninstall`: undoes exactly what the ledger says the set-up did, and prints what stays."""

from __future__ import annotations

import getpass
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from systemd_llm_switch.setup import command_link, console, demo_config, shell_files
from systemd_llm_switch.setup.ledger import Ledger, Outcome, is_inside, remove_empty
from systemd_llm_switch.setup.places import Places
from systemd_llm_switch.setup.running_proxy import UNIT
from systemd_llm_switch.setup.systemctl import Systemctl
from systemd_llm_switch.setup.user_manager import UserManager, is_reachable

# What our units write in the folders that systemd makes for them: CacheDirectory= and StateDirectory=.
_CACHED = ("contexts", "cuda", "mesa", "gl", "mesa_shader_cache", "mesa_shader_cache_db", "GLCache")
_STATE = ("hold.json",)


def run(places: Places, environ: Mapping[str, str], ledger: Ledger) -> None:
    """Stops the proxy and all models, then removes what is ours."""
    private = UserManager.of_home(places.home)
    systemd = Systemctl(private.env) if private else Systemctl.of(environ)
    can_reach = is_reachable(dict(systemd.env))
    names = list(ledger.units)
    console.heading("Removing systemd-llm-switch")
    if can_reach and names:
        # The slice is stopped too: it also holds the models that the user added.
        systemd.stop([UNIT, *names])
        systemd.forget([name for name in names if name.endswith(".service")])
        console.done("stopped the proxy and its models")
    kept = _remove_files(places, ledger)
    command_link.remove(places, ledger)
    if can_reach:
        systemd.reload()
    if ledger.linger and systemd.set_linger(getpass.getuser(), on=False):
        console.done("lingering switched off again")
    if private and ledger.manager:
        private.stop()
        console.done("ended the private user manager")
    _remove_own_data(places, ledger)
    console.done("removed the units and the downloaded llama-server" if names else "no unit was installed")
    _say_kept(places, [*kept, *_strangers(places)])


def _remove_files(places: Places, ledger: Ledger) -> list[str]:
    kept = [
        places.short(places.rendered / name)
        for name in list(ledger.units)
        if ledger.remove_unit(name, places) is Outcome.KEPT
    ]
    kept += shell_files.remove(places, ledger)
    edited = demo_config.remove(places, ledger)
    return [*kept, places.short(edited)] if edited else kept


def _remove_own_data(places: Places, ledger: Ledger) -> None:
    """Removes the files that the ledger names and what our units write, and then the folders that are empty."""
    _remove_wheels(places.wheels, ledger.wheel_files)
    for folder, names in ((places.cache, _CACHED), (places.state, _STATE)):
        for name in names:
            _remove(folder / name, folder)
    places.ledger.unlink(missing_ok=True)
    own_folders = (places.cache, places.state, places.rendered, places.own_data, places.user_config.parent)
    remove_empty((*own_folders, *ledger.made_folders(places)))


def _remove_wheels(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if is_inside(folder / name, folder):
            (folder / name).unlink(missing_ok=True)
    below = {parent for name in names for parent in (folder / name).parents if is_inside(parent, folder)}
    remove_empty((*sorted(below, reverse=True), folder))


def _remove(path: Path, folder: Path) -> None:
    if not is_inside(path, folder):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _strangers(places: Places) -> list[str]:
    """The user's own files in our folders."""
    folders = (places.wheels, places.cache, places.state)
    found = [path for folder in folders if folder.is_dir() and not folder.is_symlink() for path in folder.iterdir()]
    return [places.short(path) for path in sorted(found)]


def _say_kept(places: Places, kept: list[str]) -> None:
    if places.user_config.exists() and places.short(places.user_config) not in kept:
        kept.append(f"{places.short(places.user_config)} (your config)")
    for path in kept:
        console.note(f"kept {path}")
    console.note(f"kept your models and llama.cpp{_say_program(places)}")


def _say_program(places: Places) -> str:
    """What is left of the program itself, and how to remove it."""
    if places.venv is None:
        return "; to remove the package too: pipx uninstall systemd-llm-switch (or pip)"
    return ", and .venv here (rm -r .venv removes it)" if places.venv.exists() else ""
