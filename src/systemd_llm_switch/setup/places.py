"""All paths: the checkout or the installed package, the user's folders, and what the set-up makes in them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from systemd_llm_switch import advice

NAME = "systemd-llm-switch"
_PACKAGE = Path(__file__).absolute().parents[1]


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
    checkout: Path | None = None

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
            advice.find_checkout(),
        )

    @property
    def venv(self) -> Path | None:
        """The virtual environment that the set-up makes; an installed package runs where it was installed."""
        return self.checkout / ".venv" if self.checkout else None

    @property
    def python(self) -> Path:
        """The interpreter that runs the proxy."""
        return self.venv / "bin/python" if self.venv else Path(sys.executable)

    @property
    def deploy(self) -> Path:
        """The tracked units, the demo and the pins."""
        return self.checkout / "deploy" if self.checkout else _PACKAGE / "setup/deploy"

    @property
    def unit_sources(self) -> Path:
        return self.deploy / "systemd"

    @property
    def demo_sources(self) -> Path:
        return self.deploy / "demo"

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
    def cache(self) -> Path:
        """The models' CacheDirectory=."""
        return self.cache_home / NAME

    @property
    def state(self) -> Path:
        """The proxy's StateDirectory=."""
        return self.state_home / NAME

    @property
    def linked(self) -> Path:
        """Where the user manager looks for units."""
        return self.config_home / "systemd/user"

    @property
    def user_config(self) -> Path:
        return self.config_home / NAME / "config.yaml"

    @property
    def command_link(self) -> Path:
        return self.home / ".local/bin/llm-switch"

    @property
    def shell_files(self) -> dict[str, Path]:
        """The man page and the completions in deploy/command, and where man, bash, zsh and fish look for theirs."""
        data = self.data_home
        return {
            "llm-switch.1": data / "man/man1/llm-switch.1",
            "llm-switch.bash": data / "bash-completion/completions/llm-switch",
            "_llm-switch": data / "zsh/site-functions/_llm-switch",
            "llm-switch.fish": data / "fish/vendor_completions.d/llm-switch.fish",
        }

    @property
    def folders(self) -> frozenset[Path]:
        """Every folder that a set-up may have to make, also those that other programs share, such as ~/.local/bin."""
        files = (self.command_link, self.ledger, self.user_config, *self.shell_files.values())
        folders = (self.linked, self.rendered, self.cache, self.state, *(file.parent for file in files))
        tops = (self.home, self.config_home, self.data_home, self.cache_home, self.state_home)
        outside = {self.home, *(top for top in tops if not top.is_relative_to(self.home))}
        found: set[Path] = set()
        for folder in folders:
            found.update(takewhile(lambda it: it not in outside, (folder, *folder.parents)))
        return frozenset(found)

    def how_to(self, step: str = "setup") -> str:
        """The command for a step of the set-up."""
        return advice.how_to(step, self.checkout)

    def short(self, path: Path | str) -> str:
        """The path as shown to users: `~/…` if it is below the home folder."""
        text = str(path)
        return f"~{text[len(str(self.home)) :]}" if text.startswith(f"{self.home}{os.sep}") else text
