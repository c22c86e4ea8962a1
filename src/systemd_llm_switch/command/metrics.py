"""`llm-switch metrics`: what Prometheus reads."""

from __future__ import annotations

import argparse

from systemd_llm_switch.command.proxy_client import ProxyClient, add_config_argument, run_with_proxy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    def do(client: ProxyClient) -> None:
        print(client.get_text("/metrics"), end="")

    return run_with_proxy(arguments, do)
