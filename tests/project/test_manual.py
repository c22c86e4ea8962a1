"""The man page and the completions say what the parsers say."""

from __future__ import annotations

import subprocess

import pytest

from support.stack import ROOT
from systemd_llm_switch.command.manual import MAN_PAGE, SHELLS, completions, man_page
from systemd_llm_switch.command.verbs import VERBS

FOLDER = ROOT / "deploy" / "command"


def test_the_man_page_is_up_to_date() -> None:
    """After a change of a verb: PYTHONPATH=src python -m systemd_llm_switch.command.manual deploy/command."""
    assert (FOLDER / MAN_PAGE).read_text() == man_page()


@pytest.mark.parametrize(("shell", "name"), SHELLS.items())
def test_the_completions_are_up_to_date(shell: str, name: str) -> None:
    """The same command makes them."""
    assert (FOLDER / name).read_text() == completions(shell)


def test_the_man_page_has_every_verb() -> None:
    text = man_page()
    assert [verb for verb in VERBS if f".B {verb}" not in text] == []


def complete(words: str, current: str = "") -> list[str]:
    """What bash offers behind these words for the one that was begun."""
    script = f"""
    source {FOLDER / SHELLS["bash"]}
    COMP_WORDS=({words} '{current}') COMP_CWORD={len(words.split())} COMP_LINE='{words} {current}'
    COMP_POINT=${{#COMP_LINE}}
    $(complete -p llm-switch | sed 's/.*-F \\([^ ]*\\).*/\\1/') llm-switch '{current}' ''
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_the_verbs() -> None:
    assert set(VERBS) <= set(complete("llm-switch"))


def test_bash_completes_the_options_of_a_verb() -> None:
    assert {"--force", "--pause"} <= set(complete("llm-switch hold", "-"))
