"""The record of what the set-up made and so may change or remove. A file that the user edited is never touched.

A file is ours as long as its content has the checksum that we recorded when we made it. Every path is checked again
when the record is read: an entry that leads out of our folders is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from systemd_llm_switch.setup.places import Places, SetupError

_RECORDED = {
    **dict.fromkeys(("config", "config_sum", "llama_server", "models_dir", "command", "unfinished"), str),
    **dict.fromkeys(("linger", "manager"), bool),
    **dict.fromkeys(("demo_units", "added_units", "wheel_files", "folders"), list),
    **dict.fromkeys(("units", "shell_files"), dict),
}
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(?:service|slice)")


class Outcome(Enum):
    """What became of one file."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"
    KEPT = "kept"  # the user's edit, or a file that was never ours


@dataclass(slots=True)
class Ledger:
    """What was made for one user. `save()` writes it down."""

    path: Path
    units: dict[str, str] = field(default_factory=dict)  # unit name -> checksum of the rendered text
    demo_units: list[str] = field(default_factory=list)
    added_units: list[str] = field(default_factory=list)  # by `llm-switch add`; no set-up takes them away
    wheel_files: list[str] = field(default_factory=list)  # what pip put into the wheels' folder, relative to it
    folders: list[str] = field(default_factory=list)  # those that were not there before the set-up
    config: str = ""  # the demo's config file, and its checksum
    config_sum: str = ""
    shell_files: dict[str, str] = field(default_factory=dict)  # name of a man page or completion -> its checksum
    command: str = ""  # what our ~/.local/bin/llm-switch points to
    llama_server: str = ""  # the answers of the last run are the next run's defaults
    models_dir: str = ""
    unfinished: str = ""  # the step, `setup` or `demo`, that has begun to install units and has not ended
    linger: bool = False  # the set-up switched it on, so the uninstall switches it off
    manager: bool = False  # the demo started a private user manager, so the uninstall ends it

    @classmethod
    def load(cls, places: Places) -> Ledger:
        """Keys of another version, and entries that lead out of our folders, are ignored.

        Raises:
            SetupError: the file is damaged.
        """
        path = places.ledger
        if not path.exists():
            return cls(path)
        try:
            known = _checked(json.loads(path.read_text()))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise SetupError(f"{path} is damaged ({error}); remove it and run {places.how_to()} again") from error
        ledger = cls(path, **known)
        ledger._forget_what_is_outside(places)
        return ledger

    @property
    def is_empty(self) -> bool:
        """Whether nothing is set up, or everything was removed."""
        return not (self.units or self.config or self.manager)

    def begin(self, step: str) -> None:
        """A step begins to install units."""
        self.unfinished = step
        self.save()

    def end(self) -> None:
        """All that the step installs is there and runs."""
        self.unfinished = ""
        self.save()

    def note_folders(self, missing: Iterable[Path]) -> None:
        """Notes folders that were not there before the set-up: those that it makes are among them."""
        self.folders = sorted({*self.folders, *map(str, missing)})

    def made_folders(self, places: Places) -> list[Path]:
        """The folders that the set-up made, those within others first."""
        made = {str(folder): folder for folder in places.folders}
        return [made[name] for name in sorted(self.folders, reverse=True) if name in made]

    def save(self) -> None:
        values = asdict(self)
        del values["path"]
        write(self.path, json.dumps(values, indent=2) + "\n")

    def put_unit(self, name: str, text: str, places: Places) -> Outcome:
        """Writes the rendered unit and links it, unless the user's own file is in one of the two places."""
        rendered, link = places.rendered / name, places.linked / name
        if not leads_to(link, rendered) and (link.exists() or link.is_symlink()):
            return Outcome.KEPT
        outcome = self._put(rendered, text, self.units.get(name, ""))
        if outcome is Outcome.KEPT:
            self.units.setdefault(name, "")  # the link is ours, and goes with the next uninstall
        else:
            self.units[name] = checksum(text)
        self.save()  # now, so that an uninstall finds it whatever happens next
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(rendered)
        return outcome

    def put_config(self, path: Path, text: str) -> Outcome:
        """Writes the demo's config, unless the user's own file is there."""
        outcome = self._put(path, text, self.config_sum if self.config == str(path) else "")
        if outcome is not Outcome.KEPT:
            self.config, self.config_sum = str(path), checksum(text)
        return outcome

    def put_shell_file(self, name: str, path: Path, text: str) -> Outcome:
        """Writes a man page or a completion, unless a person's file is there."""
        outcome = self._put(path, text, self.shell_files.get(name, ""))
        if outcome is not Outcome.KEPT:
            self.shell_files[name] = checksum(text)
        return outcome

    def remove_shell_file(self, name: str, path: Path) -> Outcome:
        recorded = self.shell_files.pop(name, "")
        if not recorded or not path.exists():
            return Outcome.UNCHANGED
        if _sum_of(path) != recorded:
            return Outcome.KEPT
        path.unlink()
        return Outcome.WRITTEN

    def wrote_config(self, path: Path) -> bool:
        """Whether the demo wrote this file, even if it was edited since."""
        return self.config == str(path)

    def has_newer(self, name: str, text: str) -> bool:
        """Whether a kept unit's text would differ from the one that was last rendered."""
        return self.units.get(name) != checksum(text)

    def remove_unit(self, name: str, places: Places) -> Outcome:
        """Removes the link and the rendered file. A file that the user edited stays, without the link; one that
        `systemctl edit --full` put in the place of the link is moved to where it was rendered."""
        rendered, link = places.rendered / name, places.linked / name
        for enabled in places.linked.glob("*.wants/*"):  # these are left if no manager could disable the unit
            if enabled.name == name and leads_to(enabled, rendered):
                enabled.unlink()
        if leads_to(link, rendered):
            link.unlink()
        is_ours, recorded = name in self.units, self.units.pop(name, "")
        if is_ours and link.is_file() and not link.is_symlink() and _sum_of(rendered) in ("", recorded):
            shutil.move(link, rendered)
        if rendered.exists() and _sum_of(rendered) != recorded:
            return Outcome.KEPT
        rendered.unlink(missing_ok=True)
        return Outcome.WRITTEN

    def remove_config(self) -> Outcome:
        path, self.config = Path(self.config), ""
        if path.exists() and _sum_of(path) != self.config_sum:
            return Outcome.KEPT
        path.unlink(missing_ok=True)
        return Outcome.WRITTEN

    def _put(self, path: Path, text: str, recorded: str) -> Outcome:
        current = _sum_of(path)
        if current == checksum(text):
            return Outcome.UNCHANGED
        if current and current != recorded:
            return Outcome.KEPT
        write(path, text)
        return Outcome.WRITTEN

    def _forget_what_is_outside(self, places: Places) -> None:
        """Keeps only valid unit names, and the config only if it is where we write one. (`wheel_files` are checked one
        by one when they are removed, because a link may lead outside.)"""
        self.units = {name: checked for name, checked in self.units.items() if _UNIT_NAME.fullmatch(name)}
        self.demo_units = [name for name in self.demo_units if _UNIT_NAME.fullmatch(name)]
        self.added_units = [name for name in self.added_units if _UNIT_NAME.fullmatch(name)]
        if Path(self.config).parent != places.user_config.parent or Path(self.config).suffix != ".yaml":
            self.config = ""


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def is_inside(path: Path, folder: Path) -> bool:
    """Whether the path is below the folder once `..` and links on the way are followed (itself may be a link)."""
    if path.name in ("", ".", ".."):
        return False
    return path.parent.resolve().is_relative_to(folder.parent.resolve() / folder.name)


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes the folders that exist and are empty."""
    for folder in folders:
        if folder.is_dir() and not folder.is_symlink():
            with contextlib.suppress(OSError):  # not empty, or not ours to remove
                folder.rmdir()


def leads_to(link: Path, target: Path) -> bool:
    return link.is_symlink() and link.readlink() == target


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes all or nothing: a full disk or a signal never leaves half a file. Follows no link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # known before it exists: a signal may come then
    try:
        with fresh.open("x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """The keys that we know. Raises TypeError where one has a value of another kind."""
    known = {key: values[key] for key in values.keys() & _RECORDED.keys()}
    for key, value in known.items():
        if not isinstance(value, _RECORDED[key]):
            raise TypeError(f"{key} is not a {_RECORDED[key].__name__}")
        words = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        if not all(isinstance(word, str) for word in words):
            raise TypeError(f"{key} holds something else than strings")
    return known


def _sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
