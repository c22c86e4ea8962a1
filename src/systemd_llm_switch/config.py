"""The configuration: frozen records and a strict parser. Pure.

Knows nothing of files, units that run, HTTP or logging. `parse` collects every problem with its path in the file,
so that `--check` can name all of them at once.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

# systemd.unit(5), "Description": the characters a unit name may have.
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?\.service")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/:?#@*\[\]]+)(:\d+)?")
ROUNDING_GIB = 1e-9  # 0.1 + 0.2 GiB fit on a card of 0.3
_STREAMING = ("buffered", "live")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where in the file (`models.bge-m3.unit`)."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(Exception):
    """The config cannot be used; `problems` names every reason."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Server:
    """`server:`. Times are seconds, sizes as named; None means "measured" or "off" as the README says."""

    host: str = "127.0.0.1"
    port: int = 3002
    llama_url: str = "http://127.0.0.1:3004"
    health_timeout: float = 120.0
    request_timeout: float = 1800.0
    queue_limit: int = 64
    max_body_mb: float = 64.0
    streaming: str = "buffered"
    vram: float | None = None
    max_wait: float | None = None
    min_resident: float | None = None
    drain_timeout: float | None = None
    preload: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    api_keys_file: str | None = None
    allow_unauthenticated: bool = False
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the proxy."""
        return is_loopback(self.host)

    @property
    def has_keys(self) -> bool:
        """Whether a key is asked for."""
        return bool(self.api_keys or self.api_keys_file)


@dataclass(frozen=True, slots=True)
class Model:
    """One public model id and the unit that serves it."""

    id: str
    unit: str
    llama_url: str
    aliases: tuple[str, ...] = ()
    vram: float | None = None
    ttl: float | None = None
    streaming: str = "buffered"
    params: Mapping[str, object] = field(default_factory=dict)
    force: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RepairSettings:
    """`repair:`. What the repair of replies may do."""

    rescue: bool = True


@dataclass(frozen=True, slots=True)
class Config:
    """A valid configuration. `names` maps each id and alias to its model."""

    server: Server
    models: Mapping[str, Model]
    names: Mapping[str, Model]
    repair: RepairSettings = RepairSettings()


def is_loopback(host: str) -> bool:
    """Whether a bind address is this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# --- casts: value in, value out, ValueError with a readable reason --------------------------------


class _WrongEntry(ValueError):
    """One entry of a list is wrong, and the message is only of it."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def _text(value: object) -> str:
    if isinstance(value, int | float):
        raise ValueError("must be a text (put it in quotes)")
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text")
    return value.strip()


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError("must be a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("must be a smaller number") from error


def _positive(value: object) -> float:
    number = _number(value)
    if not 0 < number < float("inf"):
        raise ValueError("must be greater than 0")
    return number


def _not_negative(value: object) -> float:
    number = _number(value)
    if not 0 <= number < float("inf"):
        raise ValueError("must be 0 or more")
    return number


def _count(value: object) -> int:
    number = _not_negative(value)
    if number != int(number):
        raise ValueError("must be a whole number")
    return int(number)


def _port(value: object) -> int:
    port = _count(value)
    if not 1 <= port <= 65535:
        raise ValueError("must be a port, 1 to 65535")
    return port


def _each(cast: Callable[[object], str], value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of texts")
    entries = []
    for index, entry in enumerate(value):
        try:
            entries.append(cast(entry))
        except ValueError as error:
            raise _WrongEntry(index, str(error)) from error
    return tuple(entries)


def _texts(value: object) -> tuple[str, ...]:
    return _each(_text, value)


def _host(value: object) -> str:
    return _text(value).removeprefix("[").removesuffix("]")  # as IPv6 addresses stand in URLs


def _hosts(value: object) -> tuple[str, ...]:
    return _each(_host_name, value)


def _host_name(value: object) -> str:
    name = _text(value)
    if "/" in name or "*" in name:
        raise ValueError(f"must be a name like my-box.lan, without scheme, path or *, not {name!r}")
    return name


def _origins(value: object) -> tuple[str, ...]:
    return _each(_origin, value)


def _origin(value: object) -> str:
    """As browsers send it (https://www.rfc-editor.org/rfc/rfc6454#section-6.1): anything else would never match."""
    text = _text(value)
    origin = text.lower().removesuffix("/")
    if origin in ("*", "null"):
        return origin
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"must look like https://chat.example.org or http://localhost:8080 (or '*'), not {text!r}")
    default = ":443" if origin.startswith("https:") else ":80" if origin.startswith("http:") else None
    return origin if default is None else origin.removesuffix(default)


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("must be a mapping of request fields")
    for name in ("model", "stream", "messages", "prompt", "input"):
        if name in value:
            raise ValueError(f"must not set {name!r}")
    try:
        json.dumps(value, allow_nan=False)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"must hold what JSON can say: {error}") from error
    return MappingProxyType(dict(value))


def _streaming(value: object) -> str:
    if value not in _STREAMING:
        raise ValueError(f"must be one of {', '.join(_STREAMING)}")
    return str(value)


def _unit(value: object) -> str:
    unit = _text(value)
    if not _UNIT_NAME.fullmatch(unit):
        hint = "" if "." in unit else f"; did you mean {unit}.service?"
        raise ValueError(f"{unit!r} is no systemd service name{hint}")
    return unit


def _url(value: object) -> str:
    url = _text(value).rstrip("/").lower().replace("//localhost:", "//127.0.0.1:")  # one spelling: they are compared
    try:
        parts = urlsplit(url)
        is_plain = parts.scheme == "http" and parts.hostname and parts.port
    except ValueError:
        is_plain = None
    if not is_plain or parts.path or parts.query or parts.fragment:
        raise ValueError(f"must look like http://127.0.0.1:3004, not {url!r}")
    return url


Cast = Callable[[object], Any]

_SERVER: Mapping[str, Cast] = {
    "host": _host,
    "port": _port,
    "llama_url": _url,
    "health_timeout": _positive,
    "request_timeout": _positive,
    "queue_limit": _count,
    "max_body_mb": _positive,
    "streaming": _streaming,
    "vram": _positive,
    "max_wait": _not_negative,
    "min_resident": _not_negative,
    "drain_timeout": _not_negative,
    "preload": _texts,
    "api_keys": _texts,
    "api_keys_file": _text,
    "allow_unauthenticated": _flag,
    "cors_origins": _origins,
    "allowed_hosts": _hosts,
}
_MODEL: Mapping[str, Cast] = {
    "unit": _unit,
    "aliases": _texts,
    "llama_url": _url,
    "vram": _not_negative,
    "ttl": _positive,
    "streaming": _streaming,
    "params": _mapping,
    "force": _mapping,
}
_REPAIR: Mapping[str, Cast] = {"rescue": _flag}
_TOP = ("server", "models", "repair")


# --- parsing --------------------------------------------------------------------------------------


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
                except _WrongEntry as error:
                    self.problem(f"{path}.{key}.{error.index}", str(error))
                except ValueError as error:
                    self.problem(f"{path}.{key}", str(error))
        return values

    def model(self, name: str, raw: object, server: Server) -> Model | None:
        path = f"models.{name}"
        before = len(self.problems)
        values = self.section(path, {"unit": raw} if isinstance(raw, str) else raw, _MODEL)
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
    server = Server(**reader.section("server", raw.get("server"), _SERVER))
    repair = RepairSettings(**reader.section("repair", raw.get("repair"), _REPAIR))
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


def _parse_models(reader: _Reader, raw: object, server: Server) -> dict[str, Model]:
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


def _check_shared_ports(reader: _Reader, server: Server, models: Mapping[str, Model]) -> None:
    """Two models that fit beside each other need a port each, or one would answer for the other."""
    seen = list(models.values())
    for index, model in enumerate(seen):
        for other in seen[:index]:
            if model.unit == other.unit:
                if model.llama_url != other.llama_url:
                    reader.problem(
                        f"models.{model.id}.llama_url", f"differs from that of {other.id!r}, the same unit"
                    )
            elif model.llama_url == other.llama_url and _fit_together(server.vram, model.vram, other.vram):
                reader.problem(
                    f"models.{model.id}.llama_url",
                    f"{model.id!r} and {other.id!r} may be loaded together, so each needs its own port; "
                    f"both use {model.llama_url}",
                )


def _check_own_port(reader: _Reader, server: Server, models: Mapping[str, Model]) -> None:
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
