"""One model added: found or downloaded, planned, shown, written, and tried."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from systemd_llm_switch.command.fetch import fetch
from systemd_llm_switch.command.first_answer import check_ready, first_answer
from systemd_llm_switch.command.proxy_client import ProxyClient, client_of, configured
from systemd_llm_switch.config.file import find, load
from systemd_llm_switch.config.records import ConfigError
from systemd_llm_switch.models import adding, config_entry, planning
from systemd_llm_switch.models.flags import Wishes
from systemd_llm_switch.models.planning import NO_EXTRAS, Extras, Plan
from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.places import Places, SetupError
from systemd_llm_switch.setup.systemctl import Systemctl
from systemd_llm_switch.setup.user_manager import UserManager, is_reachable


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from, and how it is wanted. Without a file, the repository is used."""

    name: str
    file: Path | None
    repo: str
    wishes: Wishes
    extras: Extras = NO_EXTRAS


@dataclass(frozen=True, slots=True)
class Adder:
    """What all models of one command are added to."""

    places: Places
    environ: Mapping[str, str]
    systemd: Systemctl | None
    client: ProxyClient | None  # None where the model is not tried
    config: str | None
    is_dry: bool

    @classmethod
    def of(cls, arguments: argparse.Namespace, environ: Mapping[str, str]) -> Adder:
        """Raises what keeps a model from being tried, before anything is changed."""
        places = Places.of(environ)
        is_tried = not (arguments.no_try or arguments.dry_run)
        client = client_of(configured(arguments)) if is_tried else None
        adder = cls(places, environ, reach_manager(places), client, arguments.config, arguments.dry_run)
        if client:
            check_ready(client, adder.config_path)
        return adder

    @property
    def config_path(self) -> Path:
        """The file in force. The first model that is added may bring a file of the user's own."""
        return find(self.config, self.environ).absolute()

    def add(self, source: Source) -> Plan | None:
        """All of it or nothing. None where a dry run would have to download first.

        Raises:
            SetupError, ConfigError, Refused, NoProxy, OSError, KeyboardInterrupt
        """
        path, file = self.config_path, source.file
        if file is None:
            planning.check_possible(source.name, path, self.places, self.environ, self.systemd)
            file = fetch(source.repo, self.places, self.environ, is_dry=self.is_dry)
            if file is None:
                return None
        plan = planning.plan(
            source.name, file.absolute(), source.wishes, path, self.places, self.environ, self.systemd, source.extras
        )
        _show(plan, self.places, is_dry=self.is_dry)
        if self.is_dry:
            return plan
        if self.systemd is None:
            raise SetupError("no systemd user manager answers, so a unit cannot be added here; log in as a normal user")
        adding.add(plan, self.places, self.systemd, lambda: _use(self.client, plan))
        return plan


def known_models(config: Path) -> frozenset[str]:
    """The names of the models in the config; none if it cannot be read."""
    try:
        return frozenset(load(config).models)
    except ConfigError:
        return frozenset()


def _use(client: ProxyClient | None, plan: Plan) -> None:
    if client:
        first_answer(client, plan.name, plan.purpose)
        console.done(f"{plan.name} is added")
    else:
        console.done(f"{plan.name} is added; `llm-switch load {plan.name}` loads it")


def _show(plan: Plan, places: Places, *, is_dry: bool) -> None:
    facts = plan.facts
    kind = f"{facts.architecture}, {len(facts.layers)} layers" + (f", {facts.experts} experts" if facts.experts else "")
    console.heading(f"{plan.name}: {facts.name or facts.path.name} ({kind}, {facts.size / 1e9:.2f} GB)")
    console.note(f"for {plan.purpose.value}")
    for choice in plan.choices:
        console.note(f"{' '.join(choice.words)}: {choice.why}")
    if is_dry:
        console.heading(f"{places.short(places.linked / plan.unit)} would be:")
        console.plain(plan.unit_text)
        console.heading(f"{places.short(plan.target)} would get:")
        console.plain(config_entry.entry(plan.name, plan.entry))


def reach_manager(places: Places) -> Systemctl | None:
    """The user manager: the demo's private one if that runs, else the usual one; None if none answers."""
    private = UserManager.of_home(places.home)
    systemd = Systemctl(private.env) if private else Systemctl.of(os.environ)
    return systemd if is_reachable(dict(systemd.env)) else None
