"""`llm-switch unload`: frees the VRAM of one model, or of all."""

from __future__ import annotations

import argparse

from systemd_llm_switch.command.proxy_client import Json, ProxyClient, add_config_argument, run_with_proxy
from systemd_llm_switch.command.status import get_status
from systemd_llm_switch.command.tables import as_json
from systemd_llm_switch.command.waiting_line import waiting_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="its id, or an alias; without it, all models")
    parser.add_argument("--force", action="store_true", help="end running requests at once")
    parser.add_argument("--no-wait", action="store_true", help="return at once; the models go on stopping")
    parser.add_argument("--json", action="store_true", help="what /api/unload answers, for programs")
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    def do(client: ProxyClient) -> None:
        body: Json = {"force": arguments.force}
        if arguments.model is not None:
            body["model"] = arguments.model
        if arguments.no_wait:
            body["wait"] = False
        with waiting_line(lambda: what_still_runs(client)):
            answer = client.post("/api/unload", body)
        models = ", ".join(answer["models"])
        verb = "is being unloaded" if arguments.no_wait else "is unloaded"
        print(as_json(answer) if arguments.json else f"{models} {verb}." if models else "Nothing was loaded.")

    return run_with_proxy(arguments, do)


def what_still_runs(client: ProxyClient) -> str:
    """Why the VRAM is not free yet."""
    running = [
        f"{name} is {model['state']}, {model['in_flight']} running"
        for name, model in get_status(client)["models"].items()
        if model["state"] not in ("stopped", "failed")
    ]
    return "waiting until the VRAM is free" + (f": {'; '.join(running)}" if running else "")
