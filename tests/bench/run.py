"""Measures what the proxy costs, beside the backend alone, llama-server's own router, and other servers by URL.

    python tests/bench/run.py [--quick] [--only latency,switch] [--url HOST:PORT …] [--source NAME=DIR …]
                              [--json FILE] [--plot FILE]

It starts everything on a private systemd user manager (as root; see deploy/user_manager.py), prints Markdown, and
leaves nothing behind. A server behind a --url must listen on this machine, or the ratios would mean nothing. It must
serve models named fast-a and fast-b (the stand-in), real-a and real-b (the real one), or one pair of them; --prepare
writes the files for that into a folder and prints the commands. --source also measures the proxy of another source
tree, for instance an earlier version.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs as a script, with nothing installed
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "deploy"))

from bench import bed as beds
from bench.contenders import (
    OURS,
    ROUTER,
    ContenderError,
    Kind,
    Lineup,
    Maker,
    make_foreign,
    make_proxy,
    make_router,
    model_command,
)
from bench.effort import FULL, QUICK, Effort
from bench.figures import Figures
from bench.load import LoadError
from bench.measure_context import measure_context
from bench.measure_faults import measure_faults
from bench.measure_footprint import measure_footprint
from bench.measure_hot import measure_latency, measure_parallel, measure_throughput
from bench.measure_stream import measure_disconnect, measure_stream
from bench.measure_switch import measure_read_ahead, measure_switch
from bench.measure_warm import measure_warm
from bench.measure_watched import measure_watched
from bench.plot import as_svg
from bench.report import Machine, as_json, as_markdown
from systemd_llm_switch.setup.user_manager import UserManagerError

Measure = Callable[[Lineup, Effort, Figures], None]

MEASURES: dict[str, Measure] = {
    "latency": measure_latency,
    "throughput": measure_throughput,
    "parallel": measure_parallel,
    "switch": measure_switch,
    "read-ahead": measure_read_ahead,
    "stream": measure_stream,
    "disconnect": measure_disconnect,
    "context": measure_context,
    "warm": measure_warm,
    "footprint": measure_footprint,
    "faults": measure_faults,
    "watched": measure_watched,
}


def main() -> int:
    """Runs the measurements. The exit code is 1 if a program that they need is missing, or one of them failed."""
    arguments = _parse_arguments()
    if arguments.prepare:
        return _prepare(arguments.prepare)
    machine, figures, failures = Machine.here(), Figures(), 0
    try:
        with beds.lay() as bed:
            lineup = Lineup(bed, _makers(bed, arguments))
            for name in arguments.only:
                failures += not _measure(name, lineup, QUICK if arguments.quick else FULL, figures)
    except (beds.BedError, UserManagerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(as_markdown(figures, machine))
    if arguments.json:
        arguments.json.write_text(as_json(figures, machine))
    if arguments.plot:
        arguments.plot.write_text(as_svg(figures))
    return min(failures, 1)


def _measure(name: str, lineup: Lineup, effort: Effort, figures: Figures) -> bool:
    """Runs one measurement. If it fails, the others still run."""
    began = time.monotonic()
    try:
        MEASURES[name](lineup, effort, figures)
    except (LoadError, ContenderError) as error:
        print(f"error: {name}: {error}", file=sys.stderr, flush=True)
        return False
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return True


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two short rounds: does it work?")
    parser.add_argument("--only", type=_names, default=list(MEASURES), metavar="NAME,…", help=",".join(MEASURES))
    parser.add_argument("--url", type=_local, action="append", default=[], metavar="HOST:PORT")
    parser.add_argument("--source", type=_source, action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="print the models' commands for a --url's config")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(MEASURES):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(MEASURES)}")
    return names


def _local(text: str) -> str:
    address = text.removeprefix("http://").split("/")[0].replace("localhost", "127.0.0.1")
    if not address.startswith("127.") or ":" not in address:
        raise argparse.ArgumentTypeError("only a server at 127.0.0.1:PORT can be compared")
    return address


def _source(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not (Path(folder) / "systemd_llm_switch").is_dir():
        raise argparse.ArgumentTypeError(f"{folder!r} holds no systemd_llm_switch")
    return name, Path(folder).resolve()


def _makers(bed: beds.Bed, arguments: argparse.Namespace) -> dict[str, Maker]:
    makers: dict[str, Maker] = {OURS: functools.partial(make_proxy, bed)}
    for name, source in arguments.source:
        makers[name] = functools.partial(make_proxy, bed, name=name, source=source)
    makers[ROUTER] = functools.partial(make_router, bed)
    for address in arguments.url:
        makers[address] = functools.partial(make_foreign, address=address)
    return makers


def _prepare(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    programs = beds.Programs(folder.resolve())
    for kind in Kind:
        for index, model in enumerate(kind.models):
            print(f"{model}: {model_command(programs, kind, index, 'PORT')}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
