"""`llm-switch logs`: the journal of a model's unit, or the proxy's own log. Needs no right to read the journal."""

from __future__ import annotations

import argparse
import json
import sys
import time

from systemd_llm_switch.command.exits import FAILED, NO_PROXY
from systemd_llm_switch.command.proxy_client import (
    Json,
    NoProxy,
    ProxyClient,
    add_config_argument,
    complain,
    configured,
    model_query,
    run_with_proxy,
)
from systemd_llm_switch.errors import ModelNotFound

_PROXY_UNIT = "llm-switch.service"
_NOTHING = (
    "The journal shows no lines of {}: it has not run yet, or you may not read the journal. Then switch persistent "
    "storage on (sudo mkdir -p /var/log/journal && sudo systemctl restart systemd-journald), or join the group "
    "systemd-journal."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="its id, or an alias; without it, the proxy itself")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with each line that comes")
    parser.add_argument("-n", "--lines", metavar="N", type=int, default=100, help="how many lines (default: 100)")
    parser.add_argument("--json", action="store_true", help="one object a line, for programs")
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Returns NO_PROXY if no proxy answers, after it has shown what the journal has."""

    def do(client: ProxyClient) -> None:
        query = f"lines={arguments.lines}" + (f"&{model_query(arguments.model)}" if arguments.model else "")
        if arguments.follow:
            for _, data in client.events("GET", f"/api/logs?{query}&follow=1"):
                _show(json.loads(data), arguments.json)
            return
        lines = client.get(f"/api/logs?{query}")["lines"]
        for line in lines:
            _show(line, arguments.json)
        if not lines and arguments.model:
            print(_NOTHING.format(arguments.model), file=sys.stderr)

    def do_or_read_journal(client: ProxyClient) -> int | None:
        try:
            do(client)
        except NoProxy as error:
            print(f"{error}\nWhat the journal has:", file=sys.stderr)
            return _read_journal(arguments)
        return None

    return run_with_proxy(arguments, do_or_read_journal)


def _show(line: Json, is_json: bool) -> None:
    if is_json:
        print(json.dumps(line, ensure_ascii=False), flush=True)
    else:
        print(f"{time.strftime('%b %d %H:%M:%S', time.localtime(line['at']))}  {line['message']}", flush=True)


def _read_journal(arguments: argparse.Namespace) -> int:
    from systemd_llm_switch.systemd.journal_reader import JournalError, last_lines

    try:
        unit = configured(arguments).find_model(arguments.model).unit if arguments.model else _PROXY_UNIT
        for line in last_lines([unit], arguments.lines):
            _show(
                {"at": line.at, "unit": line.unit, "priority": line.priority, "message": line.message}, arguments.json
            )
    except ModelNotFound as error:
        return complain(error.message, FAILED)
    except JournalError as error:
        print(error, file=sys.stderr)
    return NO_PROXY
