"""Owns the record of what the set-up made, and thus may change or remove. What a person changed is theirs.

A file is ours as long as its text has the checksum that we wrote down when we made it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

from systemd_llm_switch.setup.places import Places, SetupError

_RECORDED = frozenset(
    ("units", "demo_units", "config", "config_sum", "llama_server", "models_dir", "linger", "manager")
)


class Outcome(Enum):
    """What became of one file."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"
    KEPT = "kept"  # a person's edit, or a file that was never ours


@dataclass(slots=True)
class Ledger:
    """What was made for one user. `save()` writes it down."""

    path: Path
    units: dict[str, str] = field(default_factory=dict)  # unit name -> checksum of the rendered text
    demo_units: list[str] = field(default_factory=list)
    config: str = ""  # the demo's config file, and its checksum
    config_sum: str = ""
    llama_server: str = ""  # the answers of the last run are the next run's defaults
    models_dir: str = ""
    linger: bool = False  # we switched it on, so we switch it off
    manager: bool = False  # the demo started a private user manager, so the uninstall ends it

    @classmethod
    def load(cls, path: Path) -> Ledger:
        """Raises SetupError when the file was damaged. Keys of another version are passed over."""
        if not path.exists():
            return cls(path)
        try:
            told = json.loads(path.read_text())
            return cls(path, **{key: told[key] for key in told.keys() & _RECORDED})
        except (ValueError, AttributeError) as error:
            raise SetupError(f"{path} is damaged ({error}); remove it and run ./setup.sh again") from error

    def save(self) -> None:
        told = asdict(self)
        del told["path"]
        _write(self.path, json.dumps(told, indent=2) + "\n")

    def put_unit(self, name: str, text: str, places: Places) -> Outcome:
        """Writes the rendered unit and links it, unless a person's file stands in one of the two places."""
        rendered, link = places.rendered / name, places.linked / name
        if not _leads_to(link, rendered) and (link.exists() or link.is_symlink()):
            return Outcome.KEPT
        outcome = self._put(rendered, text, self.units.get(name, ""))
        if outcome is Outcome.KEPT:
            self.units.setdefault(name, "")  # the link is ours, and goes with the next uninstall
        else:
            self.units[name] = checksum(text)
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(rendered)
        return outcome

    def put_config(self, path: Path, text: str) -> Outcome:
        """Writes the demo's config, unless a person's file stands there."""
        outcome = self._put(path, text, self.config_sum if self.config == str(path) else "")
        if outcome is not Outcome.KEPT:
            self.config, self.config_sum = str(path), checksum(text)
        return outcome

    def owns_config(self, path: Path) -> bool:
        return self.config == str(path) and _sum_of(path) in ("", self.config_sum)

    def has_newer(self, name: str, text: str) -> bool:
        """Would a kept unit have got another text than when it was last rendered?"""
        return self.units.get(name) != checksum(text)

    def remove_unit(self, name: str, places: Places) -> Outcome:
        """Removes link and rendered file; a person's edit stays where it is, without the link."""
        rendered, link = places.rendered / name, places.linked / name
        for enabled in places.linked.glob(f"*.wants/{name}"):  # left when no manager could be asked to disable it
            if _leads_to(enabled, rendered):
                enabled.unlink()
        if _leads_to(link, rendered):
            link.unlink()
        recorded = self.units.pop(name, "")
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
        _write(path, text)
        return Outcome.WRITTEN


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes those that are there and hold nothing."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _leads_to(link: Path, target: Path) -> bool:
    return link.is_symlink() and link.readlink() == target


def _sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _write(path: Path, text: str) -> None:
    """All or nothing: a full disk or a signal never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.replace(path)
