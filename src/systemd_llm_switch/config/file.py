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

from systemd_llm_switch.config.parse import parse
from systemd_llm_switch.config.records import Config, ConfigError, Problem

_Stamp = tuple[tuple[int, ...], ...]

PACKAGED = Path(__file__).parents[1] / "config.yaml"
# PyYAML's own, and what Python raises at a value or a node that PyYAML did not expect: `2024-13-45`, `!!int abc`,
# `!!map 5`, bytes that are no UTF-8, a list within three thousand others.
_MALFORMED = (yaml.YAMLError, AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError)


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
    return _with_keys(_parse_file(path), path)


def _parse_file(path: Path) -> Config:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise ConfigError([Problem("", f"cannot read {path}: {error.strerror}")]) from error
    except _MALFORMED as error:
        raise ConfigError([Problem("", f"{path} is no valid YAML: {_describe(error)}")]) from error
    return parse(raw)


def _describe(error: Exception) -> str:
    """What is wrong and where, without the lines themselves: a key may stand in them."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    words = " ".join(word for word in (error.context, error.problem) if word)
    return words if mark is None else f"{words}, in line {mark.line + 1}, column {mark.column + 1}"


def key_file(config: Config, path: Path) -> Path | None:
    """Where `server.api_keys_file` points: `~` and variables (`${CREDENTIALS_DIRECTORY}/keys`) are expanded, and
    a relative path is beside the config file."""
    if config.server.api_keys_file is None:
        return None
    return path.parent / Path(os.path.expandvars(config.server.api_keys_file)).expanduser()


def _with_keys(config: Config, path: Path) -> Config:
    """The config with the keys of its key file.

    Raises:
        ConfigError
    """
    file = key_file(config, path)
    if file is None:
        return config
    return replace(config, server=replace(config.server, api_keys=(*config.server.api_keys, *_read_keys(file))))


def _read_keys(path: Path) -> list[str]:
    """One key a line; empty lines and lines that start with # are skipped."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("server.api_keys_file", f"{path} is no text in UTF-8")]) from error
    except OSError as error:
        told = f"cannot read {path}: {error.strerror}"
        if "CREDENTIALS_DIRECTORY" in str(path):
            told += "; systemd sets $CREDENTIALS_DIRECTORY for the unit alone"
        raise ConfigError([Problem("server.api_keys_file", told)]) from error
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

    `current()` costs a `stat` of each file (the config, and the keys' if it names one) when nothing changed. A
    broken edit leaves the last good config in force and is told by `error`. Thread-safe; raises only from the
    constructor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: str | None = None
        # Called once per change, with the new config before any request sees it, or None and the reason.
        self.on_change: Callable[[Config | None, str | None], None] = lambda config, error: None
        self._lock = threading.Lock()
        self._files = [str(path)]
        self._tried: _Stamp = ()
        self._config, self._stamp = self._load()

    def current(self) -> Config:
        """The config in force now."""
        if self._read_stamp() != self._stamp:
            self._reload()
        return self._config

    @property
    def latest(self) -> Config:
        """What `current()` gave last, without another look at the files: for the later steps of a request whose
        first one has looked."""
        return self._config

    def _read_stamp(self) -> _Stamp:
        return tuple(map(_stamp, self._files))

    def _load(self) -> tuple[Config, _Stamp]:
        """The config, and the stamp of its files from before they were read: an edit meanwhile is seen next time.

        Raises:
            ConfigError: `_tried` is the stamp of what was wrong, the key file included.
        """
        while True:
            self._tried, known = self._read_stamp(), self._files
            config = _parse_file(self.path)
            keys = key_file(config, self.path)
            self._files = [str(self.path)] if keys is None else [str(self.path), str(keys)]
            if self._files == known:
                return _with_keys(config, self.path), self._tried

    def _reload(self) -> None:
        with self._lock:
            if self._read_stamp() == self._stamp:
                return
            try:
                config, stamp = self._load()
            except ConfigError as error:
                self.error = str(error)
                self._stamp = self._tried
                self.on_change(None, self.error)
            else:
                self.error = None
                self.on_change(config, None)
                self._config, self._stamp = config, stamp


def _stamp(path: str) -> tuple[int, ...]:
    """What differs once a file was edited or replaced; empty when it is not there."""
    try:
        stat = os.stat(path)  # noqa: PTH116  (on the hot path; Path.stat takes twice as long)
    except OSError:
        return ()
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_ctime_ns)
