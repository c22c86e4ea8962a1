"""`llm-switch demo`: shows the proxy at work."""

from __future__ import annotations

import argparse

from systemd_llm_switch.setup import steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def run(arguments: argparse.Namespace) -> int:
    return steps.run("demo")
