"""`llm-switch models`: the configured models. Without a proxy, what systemd reports of their units."""

from __future__ import annotations

import argparse

from systemd_llm_switch.command.proxy_client import ProxyClient, add_config_argument, run_with_proxy
from systemd_llm_switch.command.tables import as_json, number, size, table
from systemd_llm_switch.command.units_alone import show_units
from systemd_llm_switch.config.records import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        action="store_true",
        help="what /v1/models answers, for programs; without a proxy, what systemd reports",
    )
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    def do(client: ProxyClient) -> None:
        answer = client.get("/v1/models")
        if arguments.json:
            print(as_json(answer))
            return
        rows = []
        for model in answer["data"]:
            meta = model.get("meta") or {}
            disk = meta.get("size")
            rows.append(
                (
                    model["id"],
                    model["status"]["value"],
                    number(meta.get("n_ctx")),
                    size(disk) if disk else "-",
                    ", ".join(model.get("aliases", [])) or "-",
                )
            )
        print(table(("MODEL", "STATUS", "CONTEXT", "SIZE", "ALIASES"), rows))

    def show_alone(config: Config, error: str) -> None:
        show_units(config, error if arguments.json else None)

    return run_with_proxy(arguments, do, show_alone)
