"""What may be loaded together, and what must go to make room: pure functions over specs.

Knows no clock, no queue and no state of any unit; the scheduler passes in what it needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from systemd_llm_switch.config.records import ROUNDING_GIB, Model


@dataclass(frozen=True, slots=True)
class Spec:
    """What the scheduler must know of a unit. Two units with the same url exclude each other."""

    unit: str
    url: str
    vram_gib: float | None = None  # None: needs the whole card; 0: runs on the CPU
    ttl_s: float | None = None  # unload after so many idle seconds; None: never

    @classmethod
    def of(cls, model: Model) -> Spec:
        """What the config says of the unit."""
        return cls(unit=model.unit, url=model.llama_url, vram_gib=model.vram, ttl_s=model.ttl)


@dataclass(frozen=True, slots=True)
class Occupant:
    """A loaded unit, as a unit that needs its place sees it."""

    spec: Spec
    takeable_at: float  # when it may be evicted: now at the earliest; inf: never
    is_busy: bool
    used_at: float


def needed_gib(spec: Spec, card_gib: float | None) -> float:
    """The part of the card that the unit needs. If the card's size is unknown, the card counts as 1 and each unit takes
    all of it, except for CPU units."""
    if spec.vram_gib == 0:
        return 0.0
    if card_gib is None:
        return 1.0
    return card_gib if spec.vram_gib is None else min(spec.vram_gib, card_gib)


def fit_together(specs: Collection[Spec], card_gib: float | None) -> bool:
    """Whether these units may be loaded at once: no two share a url, and together they fit on the card."""
    if len({spec.url for spec in specs}) < len(specs):
        return False
    return _fit_on_card(specs, card_gib)


def choose_evictions(target: Spec, residents: Iterable[Occupant], card_gib: float | None) -> tuple[str, ...]:
    """The units to stop so that `target` fits: as few as possible, in the order in which they go.

    A unit on the target's url always goes. Of the others, those that may be evicted soonest go first: idle before busy,
    then the least recently used. Each unit in the result is needed: without its eviction, the target would not fit.
    """
    order = sorted(residents, key=lambda it: (it.takeable_at, it.is_busy, it.used_at))
    conflicts = [it.spec for it in order if it.spec.url == target.url]
    others = [it.spec for it in order if it.spec.url != target.url]
    if needed_gib(target, card_gib) == 0:
        return tuple(spec.unit for spec in conflicts)
    evicted: list[Spec] = []
    for spec in others:
        if _fit_on_card([target, *_without(others, evicted)], card_gib):
            break
        if needed_gib(spec, card_gib) > 0:
            evicted.append(spec)
    for spec in evicted[::-1]:  # the later evictions may have made enough room already
        stay = _without(others, [other for other in evicted if other is not spec])
        if _fit_on_card([target, *stay], card_gib):
            evicted.remove(spec)
    return tuple(spec.unit for spec in conflicts + evicted)


def _without(specs: Iterable[Spec], evicted: Collection[Spec]) -> list[Spec]:
    return [spec for spec in specs if spec not in evicted]


def _fit_on_card(specs: Iterable[Spec], card_gib: float | None) -> bool:
    card = 1.0 if card_gib is None else card_gib
    return sum(needed_gib(spec, card_gib) for spec in specs) <= card + ROUNDING_GIB
