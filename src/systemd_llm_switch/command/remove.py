"""`llm-switch remove`: undoes `add`. The model's file stays."""

from __future__ import annotations

import argparse
import contextlib
import os

from systemd_llm_switch.command.add_one import reach_manager
from systemd_llm_switch.command.exits import DONE, FAILED
from systemd_llm_switch.command.proxy_client import NoProxy, ProxyClient, Refused, client_of, complain, config_problem
from systemd_llm_switch.config.file import find, load
from systemd_llm_switch.config.records import Config, ConfigError
from systemd_llm_switch.models import adding
from systemd_llm_switch.quoting import quoted
from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.ledger import Ledger
from systemd_llm_switch.setup.places import Places, SetupError
from systemd_llm_switch.setup.unit_files import model_in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a model that `llm-switch add` added")
    parser.add_argument("--config", metavar="FILE", help="the proxy's config; as for serve")


def run(arguments: argparse.Namespace) -> int:
    console.accept_any_text()
    try:
        return _run(arguments)
    except ConfigError as error:
        return complain(config_problem(arguments, error), FAILED)
    except (SetupError, Refused) as error:
        return complain(str(error), FAILED)
    except OSError as error:
        return complain(f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}", FAILED)
    except KeyboardInterrupt:
        return complain("interrupted; run it again to go on", FAILED)


def _run(arguments: argparse.Namespace) -> int:
    places = Places.of(os.environ)
    path = find(arguments.config, os.environ).absolute()
    config = load(path)
    unit = _unit_of(arguments.name, config, Ledger.load(places))
    systemd = reach_manager(places)
    if systemd is None:
        raise SetupError("no systemd user manager answers; log in as a normal user")
    file = model_in(_text(places, unit), places.home)
    if arguments.name in config.models:
        with contextlib.suppress(NoProxy):
            _unload(client_of(config), arguments.name)
    adding.remove(arguments.name, unit, path.resolve(), places, systemd)
    if file and file.exists():
        console.note(f"the model's file stays: {places.short(file)} ({file.stat().st_size / 1e9:.2f} GB)")
    return DONE


def _unit_of(name: str, config: Config, ledger: Ledger) -> str:
    """The unit of a model that was added; also when only its unit is left.

    Raises:
        SetupError
    """
    model = config.models.get(name)
    unit = model.unit if model else f"{name}.service"
    if unit not in ledger.added_units:
        if model is None:
            raise SetupError(f"there is no model {quoted(name)}; the models are {', '.join(config.models)}")
        raise SetupError(f"{quoted(name)} was not added by `llm-switch add`: its unit {unit} is not ours to remove")
    if model and len(config.models) == 1:
        raise SetupError(f"{quoted(name)} is the only model of the config, which needs one; add another first")
    others = [it.id for it in config.models.values() if it.unit == unit and it.id != name]
    if others:
        raise SetupError(f"{quoted(others[0])} of the config has the same unit {unit}; take it out first")
    return unit


def _unload(client: ProxyClient, name: str) -> None:
    """And forgets its saved contexts. A proxy with another config does not know the model."""
    with contextlib.suppress(Refused):
        client.post("/api/unload", {"model": name})
        client.post("/api/contexts/forget", {"model": name})


def _text(places: Places, unit: str) -> str:
    file = places.rendered / unit
    return file.read_text(errors="replace") if file.is_file() else ""
