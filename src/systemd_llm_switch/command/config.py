"""`llm-switch config`: which config file is in force, and why."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from systemd_llm_switch.command.exits import DONE, FAILED
from systemd_llm_switch.command.proxy_client import NoProxy, Refused, client_of
from systemd_llm_switch.config.file import find, load, places
from systemd_llm_switch.config.records import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="as for serve")


def run(arguments: argparse.Namespace) -> int:
    """The path is the first line of the output, the reason the second. Where the running proxy has another config in
    force, stderr says so."""
    path = find(arguments.config, os.environ)
    print(path)
    print(f"  {_reason(path, arguments.config, os.environ)}", flush=True)
    if not path.exists():
        print(f"{path} does not exist", file=sys.stderr)
        return FAILED
    if doubt := _doubt(path):
        print(f"! {doubt}", file=sys.stderr)
    return DONE


def _doubt(path: Path) -> str:
    """Why the file may not be what the proxy goes by; empty if it is, or no proxy runs."""
    try:
        config = load(path)
    except ConfigError:
        return "it has a mistake, so a proxy that runs keeps its last good config; `llm-switch check` names the mistake"
    try:
        known = client_of(config).get("/api/status")["config"]
        used, error = Path(known["path"]), known["error"]
    except (NoProxy, Refused, KeyError, TypeError):
        return ""
    if error:
        return f"the running proxy keeps the last good config of {used}: {error}"
    return "" if used == path.absolute() else f"the running proxy reads {used}; restart it to make it read this one"


def _reason(path: Path, argument: str | None, environ: Mapping[str, str]) -> str:
    if argument:
        return "named by --config"
    if environ.get("LLM_SWITCH_CONFIG"):
        return "named by $LLM_SWITCH_CONFIG"
    users, packaged = places(None, environ)
    if path == packaged:
        return f"the packaged one, since {users} does not exist"
    return f"your own; it comes before the packaged {packaged}"
