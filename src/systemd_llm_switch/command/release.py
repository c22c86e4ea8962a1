"""`llm-switch release`: ends a hold."""

from __future__ import annotations

import argparse

from systemd_llm_switch.command.proxy_client import ProxyClient, add_config_argument, complain, run_with_proxy
from systemd_llm_switch.command.status import get_status
from systemd_llm_switch.command.tables import as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="what /api/release answers, for programs")
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    def do(client: ProxyClient) -> None:
        was_on_hold = get_status(client)["on_hold"]
        answer = client.post("/api/release", {})
        words = "Requests are served again." if was_on_hold else "There was no hold; requests are served."
        print(as_json(answer) if arguments.json else words)
        if "warning" in answer:
            complain(answer["warning"], 0)

    return run_with_proxy(arguments, do)
