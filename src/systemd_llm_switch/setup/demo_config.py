"""The demo's config file: where it is written, and what happens to the user's edits of it."""

from __future__ import annotations

import re
from itertools import chain, count
from pathlib import Path

from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.ledger import Ledger, Outcome
from systemd_llm_switch.setup.places import Places

_EDITED = "demo-edited.yaml"
_UNIT = re.compile(r"[\w:.@\\-]+\.service")


def tracked(places: Places) -> Path:
    """The tracked file that the config is made from."""
    return places.demo_sources / "config.yaml"


def write(text: str, places: Places, ledger: Ledger) -> Path:
    """Writes the user's config file if it is missing or the demo wrote it, else a file beside it. Edits are kept, and
    the user's own config is never touched."""
    is_free = not places.user_config.exists() or ledger.wrote_config(places.user_config)
    path = places.user_config if is_free else places.user_config.with_name("demo.yaml")
    if ledger.put_config(path, text) is Outcome.KEPT:
        console.note(f"kept your edit of {places.short(path)}")
    else:
        console.done(f"config {places.short(path)}" + ("" if is_free else " (your own config.yaml is untouched)"))
    return path


def remove(places: Places, ledger: Ledger) -> Path | None:
    """Removes the demo's config. If the user edited it, it is kept: in place if it names a model of their own, else
    under another name, because the demo's models are gone. Returns where it is kept."""
    written = Path(ledger.config)
    stays = bool(ledger.config) and ledger.remove_config() is Outcome.KEPT
    if not _has_only_demo_units(places.user_config, places):
        return written if stays else None
    path = places.user_config.with_name(_EDITED)
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return places.user_config.rename(next(it for it in chain([path], numbered) if not it.exists()))


def _has_only_demo_units(path: Path, places: Places) -> bool:
    named = set(_UNIT.findall(path.read_text(errors="replace"))) if path.is_file() else set()
    return bool(named) and named <= {source.name for source in places.demo_sources.glob("*.service")}
