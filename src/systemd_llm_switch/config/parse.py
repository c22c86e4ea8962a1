"""The strict parser: takes the value of the YAML, and returns a `Config` or every problem with its path. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from systemd_llm_switch.config.casts import WrongEntry, find_unfit
from systemd_llm_switch.config.checks import check_all
from systemd_llm_switch.config.keys import CONTEXTS, MODEL, REPAIR, SERVER, TOP, Key, Section
from systemd_llm_switch.config.limits import MOST_MODELS, MOST_PROBLEMS
from systemd_llm_switch.config.records import (
    Config,
    ConfigError,
    ContextSettings,
    Model,
    Problem,
    RepairSettings,
    ServerSettings,
)
from systemd_llm_switch.quoting import printable, quoted

_LIKENESS = 0.6  # between an unknown key and the known key that is suggested
_LONGEST_KEY = 40  # characters of an unknown key that are compared
_PLACES = {
    "the top level": TOP,
    "the section `server`": SERVER,
    "a model (`models.NAME`)": MODEL,
    "the section `repair`": REPAIR,
    "the section `server.contexts`": CONTEXTS,
}


def parse(raw: object) -> Config:
    """Makes a `Config` from the value of the YAML.

    Raises:
        ConfigError: with every problem, or with the first ones if there are very many.
    """
    if not isinstance(raw, dict):
        raise ConfigError([Problem("", "the file must hold a mapping with `models:`")])
    reader = _Reader()
    top = reader.section("", raw, TOP)
    server = _server(top.get("server", {}))
    models = reader.models(top.get("models"), server)
    names = reader.names(models)
    check_all(reader.report, server, models, names)
    if reader.problems:
        raise ConfigError(reader.problems)
    repair = RepairSettings(**top.get("repair", {}))
    return Config(server, MappingProxyType(models), MappingProxyType(names), repair, MappingProxyType(_folded(names)))


def _server(values: Mapping[str, Any]) -> ServerSettings:
    return ServerSettings(**{**values, "contexts": ContextSettings(**values.get("contexts", {}))})


class _Reader:
    """Casts values by their tables, and collects the problems."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def report(self, path: str, message: str) -> None:
        """Adds a problem.

        Raises:
            ConfigError: there are very many; the rest is not checked.
        """
        self.problems.append(Problem(printable(path), message))
        if len(self.problems) >= MOST_PROBLEMS:
            raise ConfigError([*self.problems, Problem("", "there may be more; correct these first")])

    def section(self, path: str, raw: object, table: Mapping[str, Key]) -> dict[str, Any]:
        """The values of a mapping, by its table."""
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            self.report(path, "must be a mapping")
            return {}
        values: dict[str, Any] = {}
        for key, value in raw.items():
            place = f"{path}.{key}" if path else str(key)
            kind = table[key].kind if key in table else None
            if kind is None:
                self.report(place, _unknown_key(str(key), table))
            elif isinstance(kind, Section):
                values[key] = self.section(place, value, kind.keys)
            else:
                try:
                    values[key] = kind.cast(value)
                except WrongEntry as error:
                    self.report(f"{place}.{error.index}", str(error))
                except ValueError as error:
                    self.report(place, str(error))
        return values

    def models(self, raw: object, server: ServerSettings) -> dict[str, Model]:
        """The models by their ids."""
        if not isinstance(raw, dict) or not raw:
            form = "must be a mapping with" if raw else "must name"
            self.report("models", f"{form} at least one model, for instance my-model: my-model.service")
            return {}
        if len(raw) > MOST_MODELS:
            self.report("models", f"holds {len(raw)} models; at most {MOST_MODELS} are possible")
            return {}
        found = ((name, self.model(name, value, server)) for name, value in raw.items())
        return {name: model for name, model in found if model is not None}

    def model(self, name: object, raw: object, server: ServerSettings) -> Model | None:
        """One model, or None if there is a problem with it."""
        path, before = f"models.{name}", len(self.problems)
        if not isinstance(name, str) or not name.strip():
            self.report(path, "the model id must be a string (put it in quotes)")
            return None
        if unfit := find_unfit(name):
            self.report(path, f"the model id must not hold the control character {quoted(unfit)}")
        values = self.section(path, {"unit": raw} if isinstance(raw, str) else raw, MODEL)
        if "unit" not in values and len(self.problems) == before:
            self.report(path, "needs a unit, for instance unit: my-model.service")
        if len(self.problems) > before:
            return None
        defaults = {"llama_url": server.llama_url, "streaming": server.streaming}
        return Model(id=name, **(defaults | values))

    def names(self, models: Mapping[str, Model]) -> dict[str, Model]:
        """Each id and alias with its model."""
        names = dict(models)
        for model in models.values():
            for alias in model.aliases:
                other = names.get(alias)
                if other is not None:
                    self.report(f"models.{model.id}.aliases", f"{quoted(alias)} already names {quoted(other.id)}")
                names[alias] = model
        return names


def _folded(names: Mapping[str, Model]) -> dict[str, Model]:
    """The models by their names in lower case, without those that two models share."""
    folded: dict[str, Model | None] = {}
    for name, model in names.items():
        other = folded.setdefault(name.casefold(), model)
        if other is not model:
            folded[name.casefold()] = None
    return {name: model for name, model in folded.items() if model is not None}


def _unknown_key(key: str, table: Mapping[str, Key]) -> str:
    """Says where the key belongs, or which key was probably meant."""
    places = [place for place, keys in _PLACES.items() if keys is not table and key in keys]
    if places:
        return f"this key does not belong here, but to {' or '.join(places)}"
    near = difflib.get_close_matches(key[:_LONGEST_KEY], list(table), n=1, cutoff=_LIKENESS)
    return f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key; the keys here are {', '.join(table)}"
