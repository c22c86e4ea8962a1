"""The man page and the completions of `llm-switch`, made from its parsers: python -m systemd_llm_switch.command.manual.

The results are kept in deploy/command/, from where the set-up installs them. A test compares them with what is made
here.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from systemd_llm_switch.command.verbs import DESCRIPTION, VERBS

SHELLS = {"bash": "llm-switch.bash", "zsh": "_llm-switch", "fish": "llm-switch.fish"}
MAN_PAGE = "llm-switch.1"


def parser_of_all_verbs() -> argparse.ArgumentParser:
    """One parser with every verb, each with its options."""
    parser = argparse.ArgumentParser(prog="llm-switch", description=DESCRIPTION)
    verbs = parser.add_subparsers(metavar="VERB")
    for name, verb in VERBS.items():
        added = verbs.add_parser(name, help=verb.does, description=f"{verb.does[:1].upper()}{verb.does[1:]}.")
        import_module(f"systemd_llm_switch.command.{verb.module}").add_arguments(added)
    return parser


def man_page() -> str:
    """The manual in troff (man(7))."""
    lines = [
        '.TH LLM-SWITCH 1 "" "systemd-llm-switch" "User Commands"',
        ".SH NAME",
        "llm\\-switch \\- large language models on one GPU, as systemd user units",
        ".SH SYNOPSIS",
        ".B llm\\-switch",
        "[\\fIVERB\\fR] [\\fIoptions\\fR]",
        ".SH DESCRIPTION",
        _escaped(DESCRIPTION),
        "Without a verb it serves.",
        ".SH VERBS",
    ]
    for name, verb in VERBS.items():
        parser = argparse.ArgumentParser(add_help=False)
        import_module(f"systemd_llm_switch.command.{verb.module}").add_arguments(parser)
        lines += [".TP", f".B {_escaped(_usage(name, parser))}", f"{_escaped(verb.does[:1].upper() + verb.does[1:])}."]
        lines += [_described(action) for action in parser._actions if action.option_strings and action.help]
    lines += [".SH EXIT STATUS", *_EXITS, ".SH SEE ALSO", ".BR systemctl (1),", ".BR journalctl (1)"]
    return "\n".join(lines) + "\n"


_EXITS = (
    *(".TP", ".B 0", "done"),
    *(".TP", ".B 1", "refused or failed; standard error says why"),
    *(".TP", ".B 2", "wrong usage"),
    *(".TP", ".B 3", "no proxy answers"),
)


def _usage(name: str, parser: argparse.ArgumentParser) -> str:
    """The verb and its positional arguments."""
    words = [name]
    for action in parser._actions:
        if not action.option_strings:
            metavar = str(action.metavar)
            words.append(f"[{metavar}]" if action.nargs in ("?", "*") else metavar)
    return " ".join(words)


def _described(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) + (f" {action.metavar}" if action.metavar else "")
    return f".br\n{_escaped(names)}: {_escaped(str(action.help))}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def completions(shell: str) -> str:
    """The completions for a shell (shtab makes them)."""
    import shtab

    text: str = shtab.complete(parser_of_all_verbs(), shell)
    return text


def main(folder: Path) -> None:
    """Writes all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MAN_PAGE).write_text(man_page(), encoding="utf-8")
    for shell, name in SHELLS.items():
        (folder / name).write_text(completions(shell), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
