"""Which verbs there are, and which one a command line asks for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from systemd_llm_switch import __version__
from systemd_llm_switch.command.exits import USAGE

DESCRIPTION = "An OpenAI-compatible proxy that switches llama-server units of systemd --user."


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: its line in the help, and the module of this package that does it."""

    does: str
    module: str


VERBS: Mapping[str, Verb] = {
    "serve": Verb("run the proxy; also what happens without a verb", "serve"),
    "status": Verb("show what is loaded, who waits, what went wrong", "status"),
    "ps": Verb("the same as status", "status"),
    "models": Verb("list the configured models", "models"),
    "load": Verb("load a model", "load"),
    "unload": Verb("unload a model, or all of them", "unload"),
    "hold": Verb("keep the VRAM free, for a time or until release", "hold"),
    "release": Verb("end a hold", "release"),
    "logs": Verb("show the log of a model, or of the proxy", "logs"),
    "requests": Verb("show the last requests", "requests"),
    "metrics": Verb("show the metrics, as Prometheus reads them", "metrics"),
    "chat": Verb("ask a model", "chat"),
    "add": Verb("add a model of your own: its unit, its entry in the config, its first answer", "add"),
    "remove": Verb("remove a model that add added", "remove"),
    "forget": Verb("delete saved contexts", "forget"),
    "setup": Verb("set everything up for you, or bring it up to date", "setup"),
    "check": Verb("show what is missing or failed, and what fixes it", "check"),
    "config": Verb("show which config file is in force, and why", "config"),
    "demo": Verb("show it at work; needs no GPU, llama.cpp or model", "demo"),
    "uninstall": Verb("stop everything and remove what the set-up made", "uninstall"),
}


def run(words: Sequence[str]) -> int:
    """Does what the words ask for. Returns the exit code; raises SystemExit for wrong usage, help and version."""
    if words and not words[0].startswith("-"):
        return _run_verb(words[0], words[1:])
    module = import_module("systemd_llm_switch.command.serve")
    parser = argparse.ArgumentParser(
        prog=_program(),
        usage="%(prog)s [VERB] [options]",
        description=DESCRIPTION,
        epilog=_list_verbs(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    return _parse_and_run(parser, module, words)


def _run_verb(name: str, words: Sequence[str]) -> int:
    verb = VERBS.get(name)
    if verb is None:
        print(f"{_program()}: {_unknown(name)}", file=sys.stderr)
        return USAGE
    module = import_module(f"systemd_llm_switch.command.{verb.module}")
    parser = argparse.ArgumentParser(
        prog=f"{_program()} {name}", description=f"{verb.does[:1].upper()}{verb.does[1:]}."
    )
    return _parse_and_run(parser, module, words)


def _parse_and_run(parser: argparse.ArgumentParser, module: object, words: Sequence[str]) -> int:
    add_arguments: Callable[[argparse.ArgumentParser], None] = module.add_arguments  # type: ignore[attr-defined]
    do: Callable[[argparse.Namespace], int] = module.run  # type: ignore[attr-defined]
    add_arguments(parser)
    if not getattr(module, "TAKES_REST", False):
        return do(parser.parse_args(words))
    at = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:at])
    arguments.rest = words[at + 1 :]
    return do(arguments)


def _unknown(name: str) -> str:
    near = get_close_matches(name, VERBS, 1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"{name[:40]!r} is not a verb{meant} ({', '.join(VERBS)})"


def _list_verbs() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name.ljust(width)}  {verb.does}" for name, verb in VERBS.items()]
    return "\n".join(("verbs (VERB --help shows a verb's options; the options above are those of serve):", *lines))


def _program() -> str:
    """How the command was called, for its help."""
    return "python -m systemd_llm_switch" if Path(sys.argv[0]).name == "__main__.py" else "llm-switch"
