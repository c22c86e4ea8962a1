"""Checks between the values of a config, each of which is valid by itself. Pure.

Each check looks at a model only once, because a config may name a thousand of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from systemd_llm_switch.config.records import ROUNDING_GIB, Model, ServerSettings, is_loopback
from systemd_llm_switch.quoting import quoted

Report = Callable[[str, str], None]  # takes a path in the file and the problem there


def check_all(report: Report, server: ServerSettings, models: Mapping[str, Model], names: Mapping[str, Model]) -> None:
    """Reports each problem."""
    _check_preload(report, server, names)
    _check_units(report, models)
    _check_shared_ports(report, server, models)
    _check_own_port(report, server, models)
    _check_keys(report, models)
    if not (server.is_loopback or server.has_keys or server.allow_unauthenticated):
        report(
            "server.host",
            f"{server.host} opens the proxy to the network: set server.api_keys (or api_keys_file), or say that "
            f"everybody may use it with server.allow_unauthenticated: true",
        )


def _check_preload(report: Report, server: ServerSettings, names: Mapping[str, Model]) -> None:
    for index, name in enumerate(server.preload):
        if names and name not in names:
            report(f"server.preload.{index}", f"{quoted(name)} is not a configured model")


def _check_units(report: Report, models: Mapping[str, Model]) -> None:
    """Models that share a unit share its llama-server."""
    first: dict[str, Model] = {}
    for model in models.values():
        other = first.setdefault(model.unit, model)
        if model.llama_url != other.llama_url:
            report(f"models.{model.id}.llama_url", f"differs from that of {quoted(other.id)}, which has the same unit")
        if model.backend_key != other.backend_key or model.backend_key_file != other.backend_key_file:
            report(f"models.{model.id}", f"has another backend_key than {quoted(other.id)}, which has the same unit")


def _check_shared_ports(report: Report, server: ServerSettings, models: Mapping[str, Model]) -> None:
    """Models that can be loaded together need different ports, or one would answer for the other.

    It is enough to compare each model with the smallest model before it: if any of them fits beside it, the smallest
    one does. The smallest model of another unit is kept as well, because models of one unit may share a port.
    """
    smallest: dict[str, tuple[Model, ...]] = {}
    for model in models.values():
        known = smallest.get(model.llama_url, ())
        other = next((it for it in known if it.unit != model.unit), None)
        if other is not None and _fit_together(server.vram, model.vram, other.vram):
            report(
                f"models.{model.id}.llama_url",
                f"{quoted(model.id)} and {quoted(other.id)} may be loaded together, so each needs its own port; "
                f"both use {model.llama_url}",
            )
        smallest[model.llama_url] = _two_smallest((*known, model))


def _two_smallest(models: tuple[Model, ...]) -> tuple[Model, ...]:
    """The smallest model, and the smallest of another unit."""
    ordered = sorted(models, key=lambda model: math.inf if model.vram is None else model.vram)
    second = next((model for model in ordered if model.unit != ordered[0].unit), None)
    return ordered[0], *(() if second is None else (second,))


def _fit_together(card: float | None, one: float | None, other: float | None) -> bool:
    """Whether two models may be loaded at once (GiB; None: a model needs the whole card)."""
    if one == 0 or other == 0:
        return True
    return card is not None and one is not None and other is not None and one + other <= card + ROUNDING_GIB


def _check_own_port(report: Report, server: ServerSettings, models: Mapping[str, Model]) -> None:
    for model in models.values():
        parts = urlsplit(model.llama_url)
        if parts.port == server.port and is_loopback(parts.hostname or ""):
            report(f"models.{model.id}.llama_url", f"{model.llama_url} is where the proxy itself listens (server.port)")


def _check_keys(report: Report, models: Mapping[str, Model]) -> None:
    for model in models.values():
        if model.backend_key and model.backend_key_file:
            report(f"models.{model.id}.backend_key_file", "set either backend_key or backend_key_file, not both")
