"""`llm-switch forget`: deletes saved contexts, which hold the tokens of conversations."""

from __future__ import annotations

import argparse

from systemd_llm_switch.command.proxy_client import ProxyClient, add_config_argument, run_with_proxy
from systemd_llm_switch.command.tables import as_json, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="its id, or an alias; without it, all models")
    parser.add_argument("--json", action="store_true", help="what /api/contexts/forget answers, for programs")
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    def do(client: ProxyClient) -> None:
        answer = client.post("/api/contexts/forget", {"model": arguments.model} if arguments.model else {})
        models = ", ".join(answer["models"])
        words = f"Forgot the contexts of {models} ({size(answer['bytes'])})." if models else "There were no contexts."
        print(as_json(answer) if arguments.json else words)

    return run_with_proxy(arguments, do)
