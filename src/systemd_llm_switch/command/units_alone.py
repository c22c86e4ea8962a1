"""What is known of the models without the proxy: what systemd reports of their units."""

from __future__ import annotations

import sys

from systemd_llm_switch.command.tables import as_json, table
from systemd_llm_switch.config.records import Config


def show_units(config: Config, json_error: str | None) -> None:
    """Shows what systemd reports, because the proxy cannot be asked: as JSON with this error, or as a table."""
    from systemd_llm_switch.systemd.manager import Systemd, SystemdError

    try:
        states = Systemd().show(model.unit for model in config.models.values())
    except SystemdError as error:
        print(error, file=sys.stderr)
        states = {}
    rows = [(it.id, it.unit, states[it.unit].describe() if states else "unknown") for it in config.models.values()]
    if json_error is not None:
        models = {name: {"unit": unit, "systemd": state} for name, unit, state in rows}
        print(as_json({"error": json_error, "models": models}))
        return
    print("What systemd reports of the models' units:")
    print(table(("MODEL", "UNIT", "STATE"), rows))
