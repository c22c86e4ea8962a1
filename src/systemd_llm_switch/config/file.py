"""The config file: finds it, reads it strictly, and notices edits while the proxy runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from systemd_llm_switch.config.document import UnreadableFile, read_yaml
from systemd_llm_switch.config.key_files import find_exposed, find_key_files, with_keys
from systemd_llm_switch.config.parse import parse
from systemd_llm_switch.config.records import Config, ConfigError, Problem

PACKAGED = Path(__file__).parents[1] / "config.yaml"
_PATIENCE_S = 5.0  # how long the first request after an edit waits for the new config

_Stamp = tuple[tuple[int, ...], ...]


def places(argument: str | None, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where the config file may be, in order: the path in `--config` or `$LLM_SWITCH_CONFIG`; else the user's file,
    then the packaged one."""
    named = argument or environ.get("LLM_SWITCH_CONFIG")
    if named:
        return (Path(named),)
    home = environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "systemd-llm-switch" / "config.yaml", PACKAGED


def find(argument: str | None, environ: Mapping[str, str]) -> Path:
    """The config file to use."""
    return _first_there(places(argument, environ))


def load(path: Path) -> Config:
    """Reads and checks a file, and the key files that it names.

    Raises:
        ConfigError: the file cannot be read, is not valid YAML, or is not a valid config.
    """
    return with_keys(_parse_file(path), path)


def warnings(path: Path) -> tuple[str, ...]:
    """What is unwise about a valid config file.

    Raises:
        ConfigError
    """
    return tuple(find_exposed(_parse_file(path), path))


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A config, its path, and the stamp that its files had before they were read: so the next check notices an edit
    that was made during the reading."""

    config: Config
    path: Path
    warnings: tuple[str, ...]
    stamp: _Stamp


class LiveConfig:
    """The config in a file that may change at any time.

    If nothing changed, `current()` costs a `stat` of each file: the config, the places before it, and the key files.
    After a broken edit, the last good config stays in force, and `error` says what is wrong.
    Thread-safe; raises only from the constructor.
    """

    def __init__(self, *places: Path) -> None:
        """`places` are the paths where the file may be, in order."""
        self.error: str | None = None
        # Called once for each change, with the new config before any request sees it, or None and the reason.
        self.on_change: Callable[[Config | None, str | None], None] = lambda config, error: None
        self._reading = threading.Lock()
        self._places = places
        self._watched = [str(place) for place in places]
        self._tried: _Stamp = ()
        self._loaded = self._load()
        self._config, self._stamp = self._loaded.config, self._loaded.stamp

    @property
    def path(self) -> Path:
        """The file in force."""
        return self._loaded.path

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is unwise about the file in force."""
        return self._loaded.warnings

    def current(self) -> Config:
        """The config in force now. After an edit, the first caller waits at most a few seconds for the new config.
        Other callers use the old one meanwhile."""
        if self._read_stamp() != self._stamp and self._reading.acquire(blocking=False):
            reader = threading.Thread(target=self._reload, name="config", daemon=True)
            try:
                reader.start()
            except RuntimeError:  # the kernel refused a thread; the next caller tries again
                self._reading.release()
            else:
                reader.join(_PATIENCE_S)
        return self._config

    @property
    def latest(self) -> Config:
        """The last result of `current()`. Checks no files, so the later steps of a request use it."""
        return self._config

    def _read_stamp(self) -> _Stamp:
        return tuple(map(_stamp, self._watched))

    def _load(self) -> _Loaded:
        """Reads the files.

        Raises:
            ConfigError: `_tried` is the stamp of the broken files, key files included.
        """
        while True:
            self._tried, known = self._read_stamp(), self._watched
            path = _first_there(self._places)
            places = self._places[: self._places.index(path) + 1]
            config = _parse_file(path)
            self._watched = [str(file) for file in (*places, *find_key_files(config, path))]
            if self._watched == known:
                # From here on, only the places up to this file are looked at. An editor that replaces the file may
                # remove it for a moment, and the next place must not be used then.
                loaded = _Loaded(with_keys(config, path), path, tuple(find_exposed(config, path)), self._tried)
                self._places = places
                return loaded

    def _reload(self) -> None:
        """Reads the files again if they changed. Then another thread may do the same."""
        try:
            if self._read_stamp() == self._stamp:
                return
            try:
                loaded = self._load()
            except ConfigError as error:
                self.error = str(error)
                self._stamp = self._tried
                self.on_change(None, self.error)
            else:
                self.error = None
                self._loaded = loaded
                self.on_change(loaded.config, None)
                self._config, self._stamp = loaded.config, loaded.stamp
        finally:
            self._reading.release()


def _first_there(places: tuple[Path, ...]) -> Path:
    """The first place with a file, else the last place. (Reading it reports that it is missing.)"""
    return next((place for place in places[:-1] if os.path.exists(place)), places[-1])  # noqa: PTH110 (never raises)


def _parse_file(path: Path) -> Config:
    try:
        raw = read_yaml(path)
    except UnreadableFile as error:
        raise ConfigError([Problem("", str(error))]) from error
    return parse(raw)


def _stamp(path: str) -> tuple[int, ...]:
    """Changes when the file is edited or replaced; empty if it does not exist."""
    try:
        stat = os.stat(path)  # noqa: PTH116  (on the hot path; Path.stat takes twice as long)
    except (OSError, ValueError):
        return ()
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_ctime_ns)
