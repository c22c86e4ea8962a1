"""`llm-switch config`: which config file is in force, and why."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from systemd_llm_switch.command.exits import DONE, FAILED
from systemd_llm_switch.config.file import find, places


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="as for serve")


def run(arguments: argparse.Namespace) -> int:
    """The path is the first line of the output, the reason the second."""
    path = find(arguments.config, os.environ)
    print(path)
    print(f"  {_reason(path, arguments.config, os.environ)}")
    if path.exists():
        return DONE
    print(f"{path} does not exist", file=sys.stderr)
    return FAILED


def _reason(path: Path, argument: str | None, environ: Mapping[str, str]) -> str:
    if argument:
        return "named by --config"
    if environ.get("LLM_SWITCH_CONFIG"):
        return "named by $LLM_SWITCH_CONFIG"
    users, packaged = places(None, environ)
    if path == packaged:
        return f"the packaged one, since {users} does not exist"
    return f"your own; it comes before the packaged {packaged}"
