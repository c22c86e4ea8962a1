"""`llm-switch serve`: its options, and the check of the config."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from systemd_llm_switch import logs
from systemd_llm_switch.command.exits import DONE, FAILED
from systemd_llm_switch.config.casts import as_host
from systemd_llm_switch.config.file import LiveConfig, find, load, places, warnings
from systemd_llm_switch.config.records import Config, ConfigError
from systemd_llm_switch.contexts.support import why_unsupported
from systemd_llm_switch.contexts.unit import Command
from systemd_llm_switch.quoting import printable
from systemd_llm_switch.systemd.manager import Systemd, SystemdError

log = logging.getLogger(__name__)

_CHECK_TIMEOUT_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="default: $LLM_SWITCH_CONFIG, the user's, the packaged one")
    parser.add_argument("--host", metavar="H", type=_host, help="address to listen on, instead of server.host")
    parser.add_argument("--port", metavar="P", type=_port, help="port to listen on, instead of server.port")
    parser.add_argument("--check", action="store_true", help="check the config and exit: 0 if it is valid, else 1")


def run(arguments: argparse.Namespace) -> int:
    """Runs the proxy until it is stopped, or checks its config. Returns FAILED if config or port cannot be used."""
    path = find(arguments.config, os.environ)
    if arguments.check:
        return _check(path)
    logs.set_up()
    try:
        live = LiveConfig(*places(arguments.config, os.environ))
    except ConfigError as error:
        for problem in error.problems:
            log.error("config_error path=%s %s", path, problem)
        return FAILED
    from systemd_llm_switch.command.running import run_proxy  # late: --check and --help do not need it

    return run_proxy(live, arguments.host, arguments.port)


def _host(text: str) -> str:
    try:
        return as_host(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid port (1–65535)")
    return int(text)


def _check(path: Path) -> int:
    name = printable(str(path))
    try:
        config, found = load(path), warnings(path)
    except ConfigError as error:
        print(f"{name}: {len(error.problems)} problem{'s' if len(error.problems) > 1 else ''}", file=sys.stderr)
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
        return FAILED
    print(f"{name}: ok; models: {', '.join(map(printable, config.models))}")
    for warning in found:
        print(f"warning: {warning}", file=sys.stderr)
    for note in _context_notes(config):
        print(note)
    return DONE


def _context_notes(config: Config) -> list[str]:
    """For each model, why its contexts do not survive a switch. Empty if systemd cannot be asked."""
    try:
        statuses = Systemd(timeout_s=_CHECK_TIMEOUT_S).show(model.unit for model in config.models.values())
    except SystemdError:
        return []
    notes = []
    for model in config.models.values():
        status = statuses[model.unit]
        why = None if status.is_missing else why_unsupported(config, model, Command.of_status(status))
        if why is not None:
            notes.append(f"contexts of {printable(model.id)} do not survive a switch: {why}")
    return notes
