"""The demo's config file: where it goes, and what becomes of a person's edit of it."""

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
    """The file that it is made of."""
    return places.demo_sources / "config.yaml"


def write(text: str, places: Places, ledger: Ledger) -> Path:
    """The user's config file where that is free or the demo's, also when it was edited since; else one beside it. A
    person's own config is never touched."""
    is_free = not places.user_config.exists() or ledger.wrote_config(places.user_config)
    path = places.user_config if is_free else places.user_config.with_name("demo.yaml")
    if ledger.put_config(path, text) is Outcome.KEPT:
        console.note(f"kept your edit of {places.short(path)}")
    else:
        console.done(f"config {places.short(path)}" + ("" if is_free else " (your own config.yaml is untouched)"))
    return path


def remove(places: Places, ledger: Ledger) -> Path | None:
    """Removes the demo's config. A person's edit of it is kept: as it is if it has a model of their own, else under
    another name, since with the demo's models alone the proxy could serve nothing. Returns where it is kept."""
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
