"""The key files that the config names: finds and reads them, and checks that other users cannot read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from systemd_llm_switch.config.casts import as_key
from systemd_llm_switch.config.document import UnreadableFile, read_text
from systemd_llm_switch.config.records import Config, ConfigError, Model, Problem
from systemd_llm_switch.quoting import printable


def find_key_files(config: Config, path: Path) -> list[Path]:
    """The key files that the config at `path` names, each once."""
    named = [config.server.api_keys_file, *(model.backend_key_file for model in config.models.values())]
    return list(dict.fromkeys(_resolve(name, path) for name in named if name))


def with_keys(config: Config, path: Path) -> Config:
    """The config with the keys from its key files.

    Raises:
        ConfigError: a file cannot be read, or holds no valid key.
    """
    server = config.server
    if server.api_keys_file:
        keys = _read_keys(server.api_keys_file, path, "server.api_keys_file")
        server = replace(server, api_keys=(*server.api_keys, *keys))
    if all(model.backend_key_file is None for model in config.models.values()):
        return replace(config, server=server)
    models = {name: _with_key(model, path) for name, model in config.models.items()}
    return replace(
        config,
        server=server,
        models=MappingProxyType(models),
        names=MappingProxyType({name: models[model.id] for name, model in config.names.items()}),
        folded=MappingProxyType({name: models[model.id] for name, model in config.folded.items()}),
    )


def find_exposed(config: Config, path: Path) -> Iterator[str]:
    """A warning for each file with keys that every user of the machine may read. `config` must not yet have the keys
    from its key files."""
    holds_keys = bool(config.server.api_keys) or any(model.backend_key for model in config.models.values())
    for file in [*([path] if holds_keys else ()), *find_key_files(config, path)]:
        if _is_open_to_all(file):
            name = printable(str(file))
            yield f"{name} holds keys, and every user of this machine may read it; run `chmod 600 {name}`"


def _resolve(named: str, path: Path) -> Path:
    """The file, with `~` and variables (`${CREDENTIALS_DIRECTORY}/keys`) expanded. A relative name is relative to the
    config's folder."""
    # Not Path.expanduser, which raises for a user that does not exist.
    return path.parent / os.path.expanduser(os.path.expandvars(named))  # noqa: PTH111


def _with_key(model: Model, path: Path) -> Model:
    if model.backend_key_file is None:
        return model
    place = f"models.{model.id}.backend_key_file"
    key = _read_keys(model.backend_key_file, path, place)[0]
    try:
        return replace(model, backend_key=as_key(key))
    except ValueError as error:
        raise ConfigError([Problem(place, f"its first key {error}")]) from error


def _read_keys(named: str, path: Path, place: str) -> list[str]:
    """The lines of a key file that are neither empty nor comments."""
    file = _resolve(named, path)
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except UnreadableFile as error:
        message = str(error)
        if "CREDENTIALS_DIRECTORY" in named and "CREDENTIALS_DIRECTORY" not in os.environ:
            message += "; systemd sets $CREDENTIALS_DIRECTORY for the unit alone"
        raise ConfigError([Problem(place, message)]) from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError([Problem(place, f"{printable(str(file))} holds no key")])
    return keys


def _is_open_to_all(path: Path) -> bool:
    """Whether every user may read the file and enter each folder above it."""
    try:
        whole = path.resolve()
        return bool(whole.stat().st_mode & stat.S_IROTH) and all(
            folder.stat().st_mode & stat.S_IXOTH for folder in whole.parents
        )
    except (OSError, ValueError):
        return False
