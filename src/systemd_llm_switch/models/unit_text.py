"""The text of an added model's unit: its own command, and the settings of the shipped units."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from systemd_llm_switch.models.facts import ModelFacts, Purpose
from systemd_llm_switch.models.flags import CONTEXTS, Choice
from systemd_llm_switch.setup.places import Places
from systemd_llm_switch.setup.unit_files import fit_to_machine, quote

# The shipped units whose settings an added model gets: one that keeps contexts, and one that does not.
_LIKE = {Purpose.CHAT: "qwen3-coder-flash.service"}
_LIKE_OTHERS = "bge-m3.service"
_COMMAND = re.compile(r"^ExecStart=(?:.*\\\n)*.*\n", re.MULTILINE)
_UNFIT = re.compile(r"[^\w .,:;'()+/-]")  # for a comment or a description: no %, no backslash

_HEAD = """\
# Written by `llm-switch add`; `llm-switch remove {name}` removes it. Change a setting with
# `systemctl --user edit {unit}`, which leaves this file alone.
[Unit]
Description={description}
# A person or a script that starts a broken model again and again is stopped after 5 times.
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
# exec: `systemctl start` fails at once when the binary is missing.
Type=exec
Slice=llm.slice
"""


def unit_text(
    name: str,
    unit: str,
    facts: ModelFacts,
    purpose: Purpose,
    server: Path,
    address: tuple[str, int],
    choices: Sequence[Choice],
    places: Places,
    left_out: Sequence[str],
    environment: Sequence[str] = (),
) -> str:
    """The whole file.

    Raises:
        SetupError: a path cannot go into a unit.
    """
    host, port = address
    lines = [
        quote(server, is_program=True),
        f"--host {host} --port {port}",
        f"--alias {quote(name)}",
        f"--model {quote(facts.path)}",
        *(" ".join(map(_quoted, choice.words)) for choice in choices),
    ]
    description = _plain(f"{name} ({facts.name or facts.architecture})")
    text = _HEAD.format(name=_plain(name), unit=unit.removesuffix(".service"), description=description)
    text += "".join(_comment(choice) for choice in choices)
    text += "".join(f"Environment={quote(setting, is_variable=True)}\n" for setting in environment)
    text += "ExecStart=" + " \\\n    ".join(lines) + "\n" + _shared_settings(purpose, places)
    paths = [Path(word) for choice in choices for word in choice.words if word.startswith("/")]
    return fit_to_machine(text, [places.home, server, facts.path, *paths], tuple(left_out))


def _shared_settings(purpose: Purpose, places: Places) -> str:
    """The part of a shipped unit after its command: how it stops, what it may write, and its sandbox."""
    text = (places.unit_sources / _LIKE.get(purpose, _LIKE_OTHERS)).read_text()
    command = _COMMAND.search(text)
    assert command is not None
    return text[command.end() :].partition("[X-LLM-Switch]")[0].rstrip() + "\n"


def _comment(choice: Choice) -> str:
    words = f"{choice.words[0]}: {choice.why}"
    return textwrap.fill(_plain(words), 112, initial_indent="# ", subsequent_indent="#   ") + "\n"


def _quoted(word: str) -> str:
    return word if word == CONTEXTS else quote(word)


def _plain(text: str) -> str:
    return _UNFIT.sub("_", text)
