"""`llm-switch check`: shows what is missing or failed."""

from __future__ import annotations

import argparse

from systemd_llm_switch.setup import steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def run(arguments: argparse.Namespace) -> int:
    return steps.run("check")
