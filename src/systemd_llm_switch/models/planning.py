"""What adding a model will do: its unit, its entry in the config. Decides everything, and changes nothing."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from systemd_llm_switch.config.document import UnreadableFile, read_text
from systemd_llm_switch.config.file import PACKAGED, load
from systemd_llm_switch.config.records import Config
from systemd_llm_switch.models import config_entry
from systemd_llm_switch.models.facts import ModelFacts, Purpose, read_facts
from systemd_llm_switch.models.flags import Choice, Hardware, Wishes, choose, purpose_of
from systemd_llm_switch.models.unit_text import unit_text
from systemd_llm_switch.quoting import quoted
from systemd_llm_switch.setup import card, llama_server, server_flags
from systemd_llm_switch.setup.ledger import Ledger
from systemd_llm_switch.setup.places import Places, SetupError
from systemd_llm_switch.setup.running_proxy import UNIT as PROXY_UNIT
from systemd_llm_switch.setup.systemctl import Systemctl
from systemd_llm_switch.setup.unit_files import ram_bytes

_MOST_NAME_CHARACTERS = 100
_ASSUMED_GIB = 8.0
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Extras:
    """What a model that is taken over brings besides its file and its flags."""

    entry: Mapping[str, object] = field(default_factory=dict)  # further keys of its entry in the config
    environment: tuple[str, ...] = ()  # NAME=value


NO_EXTRAS = Extras()


@dataclass(frozen=True, slots=True)
class Plan:
    """One model that is to be added."""

    name: str
    unit: str
    unit_text: str
    config: Path  # the file in force
    target: Path  # where the entry is written: the user's file, also when the packaged one is in force
    entry: Mapping[str, object]
    facts: ModelFacts
    purpose: Purpose
    choices: tuple[Choice, ...]


def plan(
    name: str,
    file: Path,
    wishes: Wishes,
    config_path: Path,
    places: Places,
    environ: Mapping[str, str],
    systemd: Systemctl | None,
    extras: Extras = NO_EXTRAS,
) -> Plan:
    """Plans a model. `systemd` is None if no user manager answers.

    Raises:
        SetupError: the model cannot be added; nothing was changed.
        ConfigError: the config in force is broken.
    """
    config = check_possible(name, config_path, places, environ, systemd)
    facts = read_facts(file)
    server = server_of(places, environ)
    known = server_flags.ask(server)
    choices = choose(facts, wishes, known, _hardware(wishes, config))
    unit = unit_name(name)
    url = _url(wishes, config)
    address = (urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 80)
    purpose = purpose_of(facts, wishes)
    left_out = systemd.unusable_settings() if systemd else ()
    text = unit_text(name, unit, facts, purpose, server, address, choices, places, left_out, extras.environment)
    entry: dict[str, object] = {"unit": unit, **extras.entry}
    if wishes.on_cpu:
        entry |= {"vram": 0, "llama_url": url}
    target = _target(config_path, places)
    made = Plan(name, unit, text, config_path, target, entry, facts, purpose, tuple(choices))
    edited_config(made)
    return made


def check_possible(
    name: str, config_path: Path, places: Places, environ: Mapping[str, str], systemd: Systemctl | None
) -> Config:
    """What can be said before the file is there: the name is free, and there is a llama-server.

    Raises:
        SetupError, ConfigError
    """
    config = load(config_path)
    _check_name(name, config)
    check_free(unit_name(name), config, Ledger.load(places), places, systemd)
    server_of(places, environ)
    return config


def edited_config(plan: Plan) -> tuple[str, str]:
    """The config's text now, and with the model.

    Raises:
        SetupError: the file cannot be read or edited safely.
    """
    try:
        text = read_text(plan.config)
    except UnreadableFile as error:
        raise SetupError(str(error)) from error
    return text, config_entry.added(text, plan.name, dict(plan.entry))


def check_free(unit: str, config: Config, ledger: Ledger, places: Places, systemd: Systemctl | None) -> None:
    """A unit that an interrupted `add` left behind is free, unless a model of the config uses it.

    Raises:
        SetupError
    """
    users = [model.id for model in config.models.values() if model.unit == unit]
    if users:
        raise SetupError(f"{quoted(users[0])} of the config has the unit {unit} already; choose another name")
    is_left = unit in ledger.added_units
    link = places.linked / unit
    is_there = link.exists() or link.is_symlink() or (systemd is not None and systemd.is_known(unit))
    if unit == PROXY_UNIT or (is_there and not is_left):
        raise SetupError(f"there is a unit {unit} already, which `add` did not make; choose another name")


def _check_name(name: str, config: Config) -> None:
    if not name.strip() or len(name) > _MOST_NAME_CHARACTERS or not name.isprintable() or name.startswith("-"):
        raise SetupError(f"{quoted(name, 60)} is not a good name; take letters, digits, dots and dashes")
    if re.search(r"\s|,", name):
        raise SetupError(f"{quoted(name, 60)} has a blank or a comma, which clients and llama-server take for a list")
    if name in config.names:
        raise SetupError(f"there is a model {quoted(name)} already; `llm-switch remove` removes one that was added")


def unit_name(name: str) -> str:
    """The unit of a model that `add` adds."""
    return f"{re.sub(r'[^A-Za-z0-9:_.-]', '-', name)}.service"


def server_of(places: Places, environ: Mapping[str, str]) -> Path:
    """The llama-server that added models run.

    Raises:
        SetupError: there is none.
    """
    answer = llama_server.default(places, environ, Ledger.load(places).llama_server)
    path = llama_server.resolve(answer, places)
    if answer != llama_server.WHEEL_OFFER and llama_server.is_executable(path):
        return path
    ready_made = llama_server.wheel(places)
    if environ.get("LLAMA_SERVER_PATH"):
        raise SetupError(f"no llama-server at {places.short(path)}, where LLAMA_SERVER_PATH leads; correct or unset it")
    if llama_server.is_executable(ready_made):
        return ready_made  # which the demo brought
    raise SetupError(f"there is no llama-server yet: run {places.how_to()}, or set LLAMA_SERVER_PATH")


def _hardware(wishes: Wishes, config: Config) -> Hardware:
    ram = ram_bytes()
    if wishes.vram_gib is not None:
        return Hardware(wishes.vram_gib, "as you said", ram)
    if config.server.vram is not None:
        return Hardware(config.server.vram, "server.vram in the config", ram)
    found = card.memory_gib()
    if found is not None:
        return Hardware(found, "as the driver says", ram)
    return Hardware(_ASSUMED_GIB, "ASSUMED, since nothing here says it; give --vram GIB", ram)


def _url(wishes: Wishes, config: Config) -> str:
    """Where the model will listen: at the common port, but a model on the CPU runs beside others and needs its own."""
    if not wishes.on_cpu:
        return config.server.llama_url
    usual = urlsplit(config.server.llama_url)
    taken = {urlsplit(model.llama_url).port for model in config.models.values()} | {usual.port, config.server.port}
    port = next((it for it in _ports_after(usual.port or 0) if it not in taken and _is_free(it)), None)
    if port is None:
        raise SetupError("no free port was found for a model on the CPU")
    return f"http://127.0.0.1:{port}"


def _ports_after(port: int) -> Iterable[int]:
    return range(port + 1, min(port + 1000, _LAST_PORT))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _target(config: Path, places: Places) -> Path:
    """The file to edit: never the packaged one, and never a link but the file behind it."""
    return places.user_config if config == PACKAGED else config.resolve()
