"""The configuration as frozen records. Pure: must not know YAML, files, running units, HTTP or logging."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from systemd_llm_switch.errors import ModelNotFound

ROUNDING_GIB = 1e-9  # so that 0.1 + 0.2 GiB fit on a card of 0.3 GiB
_PREFIX, _SUFFIX = "openai/", ":latest"  # litellm's prefix for this API; Ollama's default tag
_MOST_NAME_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, and its path in the file (`models.bge-m3.unit`)."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(Exception):
    """The config cannot be used. `problems` holds the reasons: all of them, or the first if there are very many."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """`server.contexts:`. How much of conversations may be kept on disk; 0 GB switches it off."""

    max_gb: float = 8.0
    max_age_h: float = 24.0
    warm: bool = False


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """`server:`. Times are in seconds, other units are in the names. docs/configuration.md says what None means."""

    host: str = "127.0.0.1"
    port: int = 3002
    llama_url: str = "http://127.0.0.1:3004"
    health_timeout: float = 120.0
    request_timeout: float = 1800.0
    queue_limit: int = 64
    max_body_mb: float = 64.0
    max_reply_mb: float = 256.0
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
    contexts: ContextSettings = ContextSettings()
    strict_names: bool = False
    list_aliases: bool = False
    metrics_open: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the proxy."""
        return is_loopback(self.host)

    @property
    def has_keys(self) -> bool:
        """Whether a client needs a key."""
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
    contexts: bool = True
    backend_key: str | None = field(default=None, repr=False)
    backend_key_file: str | None = None


@dataclass(frozen=True, slots=True)
class RepairSettings:
    """`repair:`. What the repair of replies may do."""

    rescue: bool = True
    thoughts: bool = True


@dataclass(frozen=True, slots=True)
class Config:
    """A valid configuration. `names` maps each id and alias to its model. `folded` does so for the names in lower case,
    without names that two models share."""

    server: ServerSettings
    models: Mapping[str, Model]
    names: Mapping[str, Model]
    repair: RepairSettings = RepairSettings()
    folded: Mapping[str, Model] = field(default_factory=dict)

    def find_model(self, name: str) -> Model:
        """The model with this id or alias. Unless `server.strict_names` is set, `openai/NAME`, `NAME:latest` and NAME
        in another case are accepted too, if they can mean only one model.

        Raises:
            ModelNotFound
        """
        model = self.names.get(name)
        if model is None and not self.server.strict_names and len(name) <= _MOST_NAME_CHARACTERS:
            model = self._find_like(name)
        if model is None:
            raise ModelNotFound(name, self.models)
        return model

    def _find_like(self, name: str) -> Model | None:
        """The model whose exact name is in the name, or else in another case."""
        variants = list(_variants(name))
        for names, spelled in ((self.names, str), (self.folded, str.casefold)):
            found = {model.id: model for variant in variants if (model := names.get(spelled(variant)))}
            if found:
                return next(iter(found.values())) if len(found) == 1 else None
        return None


def _variants(name: str) -> Iterator[str]:
    """The name as it is, without its prefix, without its suffix, and without both."""
    for front in (name, name[len(_PREFIX) :] if name[: len(_PREFIX)].lower() == _PREFIX else ""):
        yield front
        yield front[: -len(_SUFFIX)] if front[-len(_SUFFIX) :].lower() == _SUFFIX else ""


def is_loopback(host: str) -> bool:
    """Whether a bind address is this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
