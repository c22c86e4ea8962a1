"""`llm-switch load`: loads a model, and waits until it is ready."""

from __future__ import annotations

import argparse

from systemd_llm_switch.command.proxy_client import (
    Json,
    ProxyClient,
    add_config_argument,
    model_id,
    run_with_proxy,
)
from systemd_llm_switch.command.status import get_status
from systemd_llm_switch.command.tables import as_json, duration
from systemd_llm_switch.command.waiting_line import waiting_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="its id, or an alias")
    parser.add_argument("--no-wait", action="store_true", help="return as soon as the load is asked for")
    parser.add_argument("--json", action="store_true", help="what /api/load answers, for programs")
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    def do(client: ProxyClient) -> None:
        body = {"model": arguments.model} | ({"wait": False} if arguments.no_wait else {})
        with waiting_line(lambda: describe_load(client, arguments.model)):
            answer = client.post("/api/load", body)
        if arguments.json:
            print(as_json(answer))
        elif arguments.no_wait:
            print(f"{answer['model']} is being loaded.")
        else:
            took = answer["last_load_s"]
            print(f"{answer['model']} is ready" + (f" (it loads in {duration(took)})." if took else "."))

    return run_with_proxy(arguments, do)


def describe_load(client: ProxyClient, name: str) -> str:
    """What a request for a model waits for, or that the model is being loaded."""
    return describe(get_status(client), model_id(client, name))


def describe(status: Json, model: str) -> str:
    """The same, of a status that is known."""
    reasons = (entry["reason"] for entry in status["queue"] if entry["model"] == model and entry["why"] != "loading")
    for reason in reasons:
        return f"{model}: {reason}"
    usual = status["models"][model]["last_load_s"]
    return f"loading {model}" + (f", last time {duration(usual)}" if usual else "")
