"""`llm-switch requests`: the last requests, and with --follow each new one when it ends."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from systemd_llm_switch.command.proxy_client import Json, ProxyClient, add_config_argument, run_with_proxy
from systemd_llm_switch.command.tables import as_json, clock, number, table

_HEAD = ("AT", "MODEL", "STATUS", "QUEUE", "SWITCH", "BACKEND", "PROMPT", "CACHED", "REPLY", "TOKENS/S", "ERROR")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on with each request that ends")
    parser.add_argument("-n", "--limit", metavar="N", type=int, default=20, help="how many of the last (default: 20)")
    parser.add_argument("--json", action="store_true", help="for programs; with -f one object a line")
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    def do(client: ProxyClient) -> None:
        last = client.get(f"/api/requests?limit={arguments.limit}")
        if arguments.json and not arguments.follow:
            print(as_json(last))
        elif not arguments.json:
            print(table(_HEAD, [_row(entry) for entry in last[::-1]]), flush=True)
        if arguments.follow:
            _follow(client, arguments.json)

    return run_with_proxy(arguments, do)


def _follow(client: ProxyClient, is_json: bool) -> None:
    for name, data in client.events("GET", "/api/events"):
        if name == "request":
            print(data if is_json else "  ".join(_row(json.loads(data))), flush=True)


def _row(entry: Json) -> Sequence[str]:
    times = (f"{entry[name] / 1000:.2f} s" for name in ("queue_ms", "switch_ms", "backend_ms"))
    counts = (number(entry[name]) for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "tokens_per_s"))
    return (clock(entry["at"]), entry["model"], str(entry["status"]), *times, *counts, entry["error"] or "-")
