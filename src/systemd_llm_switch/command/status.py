"""`llm-switch status`: what is loaded, who waits, what went wrong."""

from __future__ import annotations

import argparse
import json
import sys

from systemd_llm_switch.command.exits import DONE, FAILED, NO_PROXY
from systemd_llm_switch.command.proxy_client import (
    Json,
    NoProxy,
    ProxyClient,
    Refused,
    add_config_argument,
    client_of,
    complain,
    config_problem,
    configured,
)
from systemd_llm_switch.command.tables import as_json, clock, duration, error_lines, number, since, size, table
from systemd_llm_switch.command.units_alone import show_units
from systemd_llm_switch.config.records import ConfigError

_LOADED = ("ready", "draining")
# What the status says of contexts that are not kept for a good reason.
_NO_PROBLEM = ("switched off", "a model for embeddings", "its unit was not looked at yet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        action="store_true",
        help="what /api/status answers, for programs; without a proxy, what systemd reports",
    )
    form.add_argument("--waybar", action="store_true", help="one line of JSON for Waybar and similar bars")
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Returns NO_PROXY if no proxy answers, after it has shown the units' states."""
    try:
        config = configured(arguments)
    except ConfigError as error:
        return complain(config_problem(arguments, error), FAILED)
    try:
        status = client_of(config).get("/api/status")
    except Refused as error:
        return _bar("refused", str(error)) if arguments.waybar else complain(str(error), FAILED)
    except NoProxy as error:
        if arguments.waybar:
            return _bar("down", str(error))
        print(error, file=sys.stderr)
        show_units(config, str(error) if arguments.json else None)
        return NO_PROXY
    if arguments.waybar:
        return _bar(*_bar_state(status))
    print(as_json(status) if arguments.json else _describe(status))
    return DONE


def _describe(status: Json) -> str:
    models = status["models"].items()
    head = ("MODEL", "STATE", "SINCE", "RUNNING", "WAITING", "LAST LOAD", "CONTEXTS")
    lines = [table(head, [_row(name, model) for name, model in models]), ""]
    if status["on_hold"]:
        until = status["hold_until"]
        lines.append(f"On hold until {clock(until) if until else 'llm-switch release'}: the VRAM is kept free.")
    lines += _describe_queue(status["queue"])
    lines += [error_lines(f"{name}: {model['last_error']}") for name, model in models if model["last_error"]]
    lines += [f"{name}: no contexts are kept: {why}" for name, model in models if (why := _context_problem(model))]
    if status["config"]["error"]:
        lines.append(f"The config file is broken, the last good one stays in force: {status['config']['error']}")
    return "\n".join(lines)


def _context_problem(model: Json) -> str:
    """Why a model's contexts are not kept, where that can be changed and was not asked for."""
    why = model["contexts"]["why"] or ""
    return "" if why.startswith(_NO_PROBLEM) else str(why)


def _describe_queue(queue: list[Json]) -> list[str]:
    """Each waiting request, and why it waits."""
    if not queue:
        return ["Nobody waits."]
    rows = [(entry["model"], since(entry["since"]), entry["reason"]) for entry in queue]
    return [table(("WAITING FOR", "SINCE", "WHY"), rows), ""]


def _row(name: str, model: Json) -> tuple[str, ...]:
    last_load, contexts = model["last_load_s"], model["contexts"]
    kept = f"{contexts['kept']} ({contexts['tokens']} tokens, {size(contexts['bytes'])})" if contexts["kept"] else "-"
    return (
        name,
        model["state"],
        since(model["loaded_since"]),
        number(model["in_flight"]),
        number(model["waiting"]),
        "-" if last_load is None else duration(last_load),
        kept,
    )


# --- Waybar: https://github.com/Alexays/Waybar/wiki/Module:-Custom ----------------------------------


def _bar_state(status: Json) -> tuple[str, str]:
    """The class, and the tooltip."""
    if status["on_hold"]:
        until = status["hold_until"]
        return "hold", f"On hold until {clock(until) if until else 'llm-switch release'}"
    busy = {name: model for name, model in status["models"].items() if model["state"] not in ("stopped", "failed")}
    words = [f"{name}: {model['state']}, {model['in_flight']} running, {model['waiting']} waiting"
             for name, model in busy.items()]  # fmt: skip
    state = "idle"
    if any(model["state"] in ("starting", "stopping") for model in busy.values()):
        state = "switching"
    elif any(model["in_flight"] for model in busy.values()):
        state = "busy"
    elif busy:
        state = "loaded"
    return state, "\n".join(words) or "no model is loaded"


def _bar(state: str, tooltip: str) -> int:
    """Prints the module. Always DONE: a bar hides a module whose command fails."""
    first = tooltip.split(":")[0] if state in ("busy", "loaded", "switching") else state
    print(json.dumps({"text": first, "alt": state, "class": state, "tooltip": tooltip}, ensure_ascii=False))
    return DONE


def get_status(client: ProxyClient) -> Json:
    """What /api/status answers."""
    status: Json = client.get("/api/status")
    return status
