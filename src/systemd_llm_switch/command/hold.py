"""`llm-switch hold`: keeps the VRAM free for something else."""

from __future__ import annotations

import argparse
import re

from systemd_llm_switch.command.proxy_client import Json, ProxyClient, add_config_argument, complain, run_with_proxy
from systemd_llm_switch.command.tables import as_json, duration
from systemd_llm_switch.command.unload import what_still_runs
from systemd_llm_switch.command.waiting_line import waiting_line
from systemd_llm_switch.switching.hold_file import MOST_MINUTES

_TIME = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(m|min|h|d)?")
_MINUTES = {"m": 1, "min": 1, "h": 60, "d": 24 * 60, None: 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "minutes",
        metavar="TIME",
        nargs="?",
        type=_minutes,
        help="90 or 90m (minutes), or 2h; without it, until release",
    )
    parser.add_argument("--force", action="store_true", help="end running requests at once")
    parser.add_argument("--pause", action="store_true", help="pause running answers; release lets them go on")
    parser.add_argument("--no-wait", action="store_true", help="return at once; the models go on stopping")
    parser.add_argument("--json", action="store_true", help="what /api/hold answers, for programs")
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    def do(client: ProxyClient) -> None:
        body: Json = {} if arguments.minutes is None else {"minutes": arguments.minutes}
        chosen = {"force": arguments.force, "pause": arguments.pause}
        body |= {name: True for name, is_chosen in chosen.items() if is_chosen}
        if arguments.no_wait:
            body["wait"] = False
        with waiting_line(lambda: what_still_runs(client)):
            answer = client.post("/api/hold", body)
        if arguments.json:
            print(as_json(answer))
            return
        limit = "until `llm-switch release`" if arguments.minutes is None else f"for {duration(arguments.minutes * 60)}"
        print(f"On hold {limit}: the VRAM {'is being freed' if arguments.no_wait else 'is free'}.")
        if "warning" in answer:
            complain(answer["warning"], 0)

    return run_with_proxy(arguments, do)


def _minutes(text: str) -> float:
    found = _TIME.fullmatch(text)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a time; write 90, 90m, 2h or 2d")
    minutes = float(found[1]) * _MINUTES[found[2]]
    if minutes > MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than 366 days; leave it out to hold until `release`")
    return minutes
