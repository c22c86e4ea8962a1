"""The config file: found, read strictly, and watched for edits while the proxy runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from systemd_llm_switch.config.document import Unreadable, read_yaml
from systemd_llm_switch.config.key_files import find_exposed, find_key_files, with_keys
from systemd_llm_switch.config.parse import parse
from systemd_llm_switch.config.records import Config, ConfigError, Problem

PACKAGED = Path(__file__).parents[1] / "config.yaml"
_PATIENCE_S = 5.0  # that the first request after an edit waits for the new config

_Stamp = tuple[tuple[int, ...], ...]


def places(argument: str | None, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where the config file may be, the first place first: where `--config` or `$LLM_SWITCH_CONFIG` says, else the
    user's, else the packaged one."""
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
    """A config that was read, from where, and the stamp of its files from before that: so the next look sees an edit
    that came meanwhile."""

    config: Config
    path: Path
    warnings: tuple[str, ...]
    stamp: _Stamp


class LiveConfig:
    """The config in a file that may change at any time.

    `current()` costs a `stat` of each file (the config, the places where another would come first, and the key files)
    when nothing changed. A broken edit leaves the last good config in force, and `error` says what is wrong.
    Thread-safe; raises only from the constructor.
    """

    def __init__(self, *places: Path) -> None:
        """`places` are those where the file may be, the first place first."""
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
        """The config in force now. After an edit, the first caller waits a few seconds at most for the new one; the
        others go on with the old one meanwhile."""
        if self._read_stamp() != self._stamp and self._reading.acquire(blocking=False):
            reader = threading.Thread(target=self._reload, name="config", daemon=True)
            try:
                reader.start()
            except RuntimeError:  # no thread to be had now; the next caller tries again
                self._reading.release()
            else:
                reader.join(_PATIENCE_S)
        return self._config

    @property
    def latest(self) -> Config:
        """What `current()` returned last, without another look at the files: for the later steps of a request."""
        return self._config

    def _read_stamp(self) -> _Stamp:
        return tuple(map(_stamp, self._watched))

    def _load(self) -> _Loaded:
        """Reads the files.

        Raises:
            ConfigError: `_tried` is the stamp of what was wrong, with the key files.
        """
        while True:
            self._tried, known = self._read_stamp(), self._watched
            path = _first_there(self._places)
            places = self._places[: self._places.index(path) + 1]
            config = _parse_file(path)
            self._watched = [str(file) for file in (*places, *find_key_files(config, path))]
            if self._watched == known:
                # Where a file has been in force, an editor may replace it; a place behind it is not looked at again.
                loaded = _Loaded(with_keys(config, path), path, tuple(find_exposed(config, path)), self._tried)
                self._places = places
                return loaded

    def _reload(self) -> None:
        """Takes up an edit, and lets the next one be taken up."""
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
    """The first place with a file; the last one needs none, and is an error there."""
    return next((place for place in places[:-1] if os.path.exists(place)), places[-1])  # noqa: PTH110 (never raises)


def _parse_file(path: Path) -> Config:
    try:
        raw = read_yaml(path)
    except Unreadable as error:
        raise ConfigError([Problem("", str(error))]) from error
    return parse(raw)


def _stamp(path: str) -> tuple[int, ...]:
    """Differs once a file was edited or replaced; empty when it is not there."""
    try:
        stat = os.stat(path)  # noqa: PTH116  (on the hot path; Path.stat takes twice as long)
    except (OSError, ValueError):
        return ()
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_ctime_ns)
