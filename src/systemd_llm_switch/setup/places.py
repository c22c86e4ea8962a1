"""Owns where everything lies: the repository, the user's folders, and what the set-up makes in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NAME = "systemd-llm-switch"
REPOSITORY = Path(__file__).absolute().parents[3]


class SetupError(Exception):
    """The set-up cannot go on. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Places:
    """Every path that the set-up reads or writes, for one user."""

    home: Path
    config_home: Path
    data_home: Path
    cache_home: Path
    state_home: Path
    repository: Path = REPOSITORY

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Places:
        """The XDG base directories of this environment, with their defaults."""
        home = Path(environ.get("HOME") or Path.home()).absolute()

        def folder(name: str, default: str) -> Path:
            return Path(environ.get(name) or home / default).absolute()

        return cls(
            home,
            folder("XDG_CONFIG_HOME", ".config"),
            folder("XDG_DATA_HOME", ".local/share"),
            folder("XDG_CACHE_HOME", ".cache"),
            folder("XDG_STATE_HOME", ".local/state"),
        )

    @property
    def venv_python(self) -> Path:
        return self.repository / ".venv/bin/python"

    @property
    def unit_sources(self) -> Path:
        return self.repository / "deploy/systemd"

    @property
    def demo_sources(self) -> Path:
        return self.repository / "deploy/demo"

    @property
    def own_data(self) -> Path:
        """What the set-up makes for this user: rendered units, wheels, the ledger."""
        return self.data_home / NAME

    @property
    def rendered(self) -> Path:
        return self.own_data / "units"

    @property
    def wheels(self) -> Path:
        return self.own_data / "wheels"

    @property
    def ledger(self) -> Path:
        return self.own_data / "installed.json"

    @property
    def linked(self) -> Path:
        """Where the user manager looks for units."""
        return self.config_home / "systemd/user"

    @property
    def user_config(self) -> Path:
        return self.config_home / NAME / "config.yaml"

    def short(self, path: Path | str) -> str:
        """`~/…` where that is possible, for people to read."""
        text = str(path)
        return f"~{text[len(str(self.home)) :]}" if text.startswith(f"{self.home}{os.sep}") else text
