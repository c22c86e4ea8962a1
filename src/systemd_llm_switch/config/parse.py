"""The strict parser: what YAML gave in, a `Config` out, or every problem with its path in the file. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from systemd_llm_switch.config.casts import (
    Cast,
    WrongEntry,
    as_count,
    as_flag,
    as_host,
    as_hosts,
    as_mapping,
    as_not_negative,
    as_origins,
    as_port,
    as_positive,
    as_streaming,
    as_text,
    as_texts,
    as_unit,
    as_url,
)
from systemd_llm_switch.config.records import (
    ROUNDING_GIB,
    Config,
    ConfigError,
    Model,
    Problem,
    RepairSettings,
    ServerSettings,
    is_loopback,
)

SERVER: Mapping[str, Cast] = {
    "host": as_host,
    "port": as_port,
    "llama_url": as_url,
    "health_timeout": as_positive,
    "request_timeout": as_positive,
    "queue_limit": as_count,
    "max_body_mb": as_positive,
    "streaming": as_streaming,
    "vram": as_positive,
    "max_wait": as_not_negative,
    "min_resident": as_not_negative,
    "drain_timeout": as_not_negative,
    "preload": as_texts,
    "api_keys": as_texts,
    "api_keys_file": as_text,
    "allow_unauthenticated": as_flag,
    "cors_origins": as_origins,
    "allowed_hosts": as_hosts,
}
MODEL: Mapping[str, Cast] = {
    "unit": as_unit,
    "aliases": as_texts,
    "llama_url": as_url,
    "vram": as_not_negative,
    "ttl": as_positive,
    "streaming": as_streaming,
    "params": as_mapping,
    "force": as_mapping,
}
REPAIR: Mapping[str, Cast] = {"rescue": as_flag}
_TOP = ("server", "models", "repair")


class _Reader:
    """Casts sections by their tables and remembers what was wrong."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def problem(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))

    def unknown(self, path: str, key: object, known: Mapping[str, Any] | tuple[str, ...]) -> None:
        near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.0)
        self.problem(f"{path}.{key}" if path else str(key), f"unknown key; did you mean {near[0]!r}?")

    def section(self, path: str, raw: object, table: Mapping[str, Cast]) -> dict[str, Any]:
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            self.problem(path, "must be a mapping")
            return {}
        values: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in table:
                self.unknown(path, key, table)
            else:
                try:
                    values[key] = table[key](value)
                except WrongEntry as error:
                    self.problem(f"{path}.{key}.{error.index}", str(error))
                except ValueError as error:
                    self.problem(f"{path}.{key}", str(error))
        return values

    def model(self, name: str, raw: object, server: ServerSettings) -> Model | None:
        path = f"models.{name}"
        before = len(self.problems)
        values = self.section(path, {"unit": raw} if isinstance(raw, str) else raw, MODEL)
        if "unit" not in values and len(self.problems) == before:
            self.problem(path, "needs a unit, for instance unit: my-model.service")
        if len(self.problems) > before:
            return None
        defaults = {"llama_url": server.llama_url, "streaming": server.streaming}
        return Model(id=name, **(defaults | values))


def parse(raw: object) -> Config:
    """Makes a `Config` of what YAML gave.

    Raises:
        ConfigError: with every problem that was found.
    """
    reader = _Reader()
    if not isinstance(raw, dict):
        raise ConfigError([Problem("", "the file must hold a mapping with `models:`")])
    for key in raw:
        if key not in _TOP:
            reader.unknown("", key, _TOP)
    server = ServerSettings(**reader.section("server", raw.get("server"), SERVER))
    repair = RepairSettings(**reader.section("repair", raw.get("repair"), REPAIR))
    models = _parse_models(reader, raw.get("models"), server)
    names = _parse_names(reader, models)
    for index, name in enumerate(server.preload):
        if models and name not in names:
            reader.problem(f"server.preload.{index}", f"{name!r} is no model of this config")
    _check_shared_ports(reader, server, models)
    _check_own_port(reader, server, models)
    if not (server.is_loopback or server.has_keys or server.allow_unauthenticated):
        reader.problem(
            "server.host",
            f"{server.host} opens the proxy to the network: set server.api_keys (or api_keys_file), or say that "
            f"everybody may use it with server.allow_unauthenticated: true",
        )
    if reader.problems:
        raise ConfigError(reader.problems)
    return Config(server, MappingProxyType(models), MappingProxyType(names), repair)


def _parse_models(reader: _Reader, raw: object, server: ServerSettings) -> dict[str, Model]:
    if not isinstance(raw, dict) or not raw:
        reader.problem("models", "must name at least one model, for instance my-model: my-model.service")
        return {}
    models: dict[str, Model] = {}
    for name, value in raw.items():
        if not isinstance(name, str) or not name.strip():
            reader.problem(f"models.{name}", "the model id must be a text (put it in quotes)")
            continue
        model = reader.model(name, value, server)
        if model is not None:
            models[name] = model
    return models


def _parse_names(reader: _Reader, models: Mapping[str, Model]) -> dict[str, Model]:
    names = dict(models)
    for model in models.values():
        for alias in model.aliases:
            other = names.get(alias)
            if other is not None:
                reader.problem(f"models.{model.id}.aliases", f"{alias!r} already names {other.id!r}")
            names[alias] = model
    return names


def _check_shared_ports(reader: _Reader, server: ServerSettings, models: Mapping[str, Model]) -> None:
    """Two models that fit beside each other need a port each, or one would answer for the other."""
    seen = list(models.values())
    for index, model in enumerate(seen):
        for other in seen[:index]:
            if model.unit == other.unit:
                if model.llama_url != other.llama_url:
                    reader.problem(f"models.{model.id}.llama_url", f"differs from that of {other.id!r}, the same unit")
            elif model.llama_url == other.llama_url and _fit_together(server.vram, model.vram, other.vram):
                reader.problem(
                    f"models.{model.id}.llama_url",
                    f"{model.id!r} and {other.id!r} may be loaded together, so each needs its own port; "
                    f"both use {model.llama_url}",
                )


def _check_own_port(reader: _Reader, server: ServerSettings, models: Mapping[str, Model]) -> None:
    for model in models.values():
        parts = urlsplit(model.llama_url)
        if parts.port == server.port and is_loopback(parts.hostname or ""):
            reader.problem(
                f"models.{model.id}.llama_url", f"{model.llama_url} is where the proxy itself listens (server.port)"
            )


def _fit_together(card: float | None, one: float | None, other: float | None) -> bool:
    """Whether two models may be loaded at once (GiB; None: a model needs the whole card)."""
    if one == 0 or other == 0:
        return True
    return card is not None and one is not None and other is not None and one + other <= card + ROUNDING_GIB
