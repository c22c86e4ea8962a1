"""`llm-switch setup`: sets everything up for one user."""

from __future__ import annotations

import argparse

from systemd_llm_switch.setup import steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = steps.ANSWERS
    parser.add_argument("-y", "--yes", action="store_true", help="ask nothing, take the defaults")


def run(arguments: argparse.Namespace) -> int:
    return steps.run("setup", asks_nothing=arguments.yes)
