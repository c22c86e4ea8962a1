"""The config file: found, read strictly, and watched for edits while the proxy runs.

Knows YAML and the file system; what a config means is `config`'s business.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from systemd_llm_switch.config import Config, ConfigError, Problem, parse

PACKAGED = Path(__file__).with_name("config.yaml")


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a later key win in silence; a doubled model line is a mistake worth a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # what is merged may be overridden
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            if isinstance(key, str | int | float | bool):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load(path: Path) -> Config:
    """Reads and parses a file, and the key file it names.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or is no valid config.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise ConfigError([Problem("", f"cannot read {path}: {error.strerror}")]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("", f"{path} is no valid YAML: {' '.join(str(error).split())}")]) from error
    config = parse(raw)
    if config.server.api_keys_file is None:
        return config
    keys = (*config.server.api_keys, *_read_keys(key_file(config, path)))
    return replace(config, server=replace(config.server, api_keys=keys))


def key_file(config: Config, path: Path) -> Path:
    """Where `server.api_keys_file` points: `~` and variables (`${CREDENTIALS_DIRECTORY}/keys`) are expanded, and
    a relative path is beside the config file."""
    named = os.path.expandvars(config.server.api_keys_file or "")
    return path.parent / Path(named).expanduser()


def _read_keys(path: Path) -> list[str]:
    """One key a line; empty lines and lines that start with # are skipped."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("server.api_keys_file", f"cannot read {path}: {error}")]) from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError([Problem("server.api_keys_file", f"{path} holds no key")])
    return keys


def find(argument: str | None, environ: Mapping[str, str]) -> Path:
    """The config file to use: `--config`, `$LLM_SWITCH_CONFIG`, the user's, else the packaged one."""
    named = argument or environ.get("LLM_SWITCH_CONFIG")
    if named:
        return Path(named)
    home = environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    users = Path(home) / "systemd-llm-switch" / "config.yaml"
    return users if users.exists() else PACKAGED


class LiveConfig:
    """The config of a file that may change at any time.

    `current()` costs one `stat` when nothing changed. A broken edit leaves the last good config in force and
    is told by `error`. Thread-safe; raises only from the constructor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: str | None = None
        # Called once per change, with the new config before any request sees it, or None and the reason.
        self.on_change: Callable[[Config | None, str | None], None] = lambda config, error: None
        self._lock = threading.Lock()
        self._files = [path]
        stamp = self._read_stamp()  # before the load: an edit during it is seen at the next request
        self._config = self._load()
        self._stamp = (stamp[0], *self._read_stamp()[1:])

    def current(self) -> Config:
        """The config in force now."""
        if self._read_stamp() != self._stamp:
            self._reload()
        return self._config

    def _read_stamp(self) -> tuple[tuple[int, ...], ...]:
        return tuple(map(_stamp, self._files))

    def _load(self) -> Config:
        config = load(self.path)
        keys = [key_file(config, self.path)] if config.server.api_keys_file else []
        self._files = [self.path, *keys]
        return config

    def _reload(self) -> None:
        with self._lock:
            stamp = self._read_stamp()
            if stamp == self._stamp:
                return
            try:
                config = self._load()
            except ConfigError as error:
                self.error = str(error)
                self.on_change(None, self.error)
            else:
                self.error = None
                self.on_change(config, None)
                self._config = config
                stamp = (stamp[0], *self._read_stamp()[1:])
            self._stamp = stamp


def _stamp(path: Path) -> tuple[int, ...]:
    """What differs once a file was edited or replaced; empty when it is not there."""
    try:
        stat = os.stat(path)  # noqa: PTH116  (on the hot path; Path.stat takes twice as long)
    except OSError:
        return ()
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_ctime_ns)
