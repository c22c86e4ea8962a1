"""The models in a preset file of llama.cpp's router (`--models-preset FILE.ini`).

The format: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md, "Model presets"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from systemd_llm_switch.config.limits import MOST_MODELS
from systemd_llm_switch.models.foreign import (
    CannotTake,
    Foreign,
    Found,
    NotTaken,
    from_flags,
    read_foreign,
)
from systemd_llm_switch.quoting import printable, quoted
from systemd_llm_switch.setup.places import SetupError
from systemd_llm_switch.setup.server_flags import ServerFlags

_GLOBAL, _BEFORE_ANY = "*", "default"
_SECTION = re.compile(r"\[[ \t]*([^\]\r\n]{1,300})\]")
_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]{0,100})[ \t]*=")
_REPO = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_COMMENT = re.compile(r"[;#]")
_MOST_LINES = 20_000
_TRUE = ("on", "enabled", "true", "1")
_FALSE = ("off", "disabled", "false", "0")
_PRESET_ONLY = {
    "load-on-startup": "write its name into `server.preload`",
    "stop-timeout": "systemd ends it after TimeoutStopSec=10",
    "dedup-cache-models": "",
}

_Section = dict[str, str]


def read(path: Path, known: ServerFlags) -> Found:
    """Everything in the file, section by section: what can be taken over, and what cannot.

    Raises:
        SetupError: the file as a whole cannot be read.
    """
    sections = _sections(read_foreign(path), printable(str(path)))
    usual = sections.pop(_GLOBAL, {})
    if not sections.get(_BEFORE_ANY, {"": ""}):
        del sections[_BEFORE_ANY]  # nothing precedes the first section
    if not sections:
        raise SetupError(f"{printable(str(path))} has no section, so it is not a file of presets")
    if len(sections) > MOST_MODELS:
        raise SetupError(f"{printable(str(path))} has more than {MOST_MODELS} sections")
    return Found(tuple(_model_or_reason(name, usual, own, known) for name, own in sections.items()))


def _sections(text: str, name: str) -> dict[str, _Section]:
    """As llama.cpp reads it: a later key replaces an earlier one, and a section that comes again begins anew."""
    lines = text.splitlines()
    if len(lines) > _MOST_LINES:
        raise SetupError(f"{name} has more than {_MOST_LINES} lines")
    current: _Section = {}
    sections = {_BEFORE_ANY: current}
    for number, line in enumerate(lines, 1):
        bare = line.strip(" \t")
        if not bare or _COMMENT.match(bare):
            continue
        if found := _SECTION.match(bare):
            current = sections[found[1].strip(" \t")] = {}
        elif found := _KEY.match(bare):
            if found[1] != "version":
                current[found[1]] = _COMMENT.split(bare[found.end() :], maxsplit=1)[0].strip(" \t")
        else:
            raise SetupError(f"{name} is not a file of presets: line {number} is neither [SECTION] nor KEY = VALUE")
    return sections


def _model_or_reason(name: str, usual: _Section, own: _Section, known: ServerFlags) -> Foreign | NotTaken:
    try:
        return _model(name, usual, own, known)
    except CannotTake as error:
        return NotTaken(name, str(error))


def _model(name: str, usual: _Section, own: _Section, known: ServerFlags) -> Foreign:
    """The section's own settings go before the global ones, however they are spelled."""
    settings: dict[str, list[str]] = {}
    lost: list[str] = []
    for key, value in (*usual.items(), *own.items()):
        if key in _PRESET_ONLY:
            lost += [f"{key}: {_PRESET_ONLY[key]}"] if _PRESET_ONLY[key] and value.lower() not in _FALSE else []
            continue
        flag = _flag(key, known)
        settings[known.long(flag)] = _option(flag, value, known)
    if not {"--model", "--hf-repo"} & settings.keys() and _REPO.fullmatch(name):
        settings["--hf-repo"] = ["--hf-repo", name]
    model = from_flags(name, [word for words in settings.values() for word in words], known)
    return replace(model, lost=(*model.lost, *dict.fromkeys(lost)))


def _flag(key: str, known: ServerFlags) -> str:
    """The flag that a key means: without its dashes, or by its environment variable.

    Raises:
        CannotTake
    """
    spelled: Iterator[str] = (it for it in (f"--{key}", f"-{key}", known.variables.get(key, "")) if known.knows(it))
    flag = next(spelled, "")
    if flag:
        return flag
    if known.replaced(f"--{key}"):
        return f"--{key}"
    instead = known.instead_of(f"--{key}")
    hint = f"; write {instead.lstrip('-')}" if instead else ""
    raise CannotTake(f"this llama-server does not know {quoted(key, 60)}{hint}")


def _option(flag: str, value: str, known: ServerFlags) -> list[str]:
    """The words of one setting."""
    if flag in known.with_value:
        return [flag, value]
    is_off = value.lower() in _FALSE
    if not is_off and value.lower() not in _TRUE:
        raise CannotTake(f"{flag} is {quoted(value, 60)}, which is neither true nor false")
    negation = known.negation(flag)
    if negation and _is_negated(flag, negation):
        is_off = not is_off
    if is_off:
        return [negation] if negation else []
    return [known.long(flag)]


def _is_negated(flag: str, negation: str) -> bool:
    """`--no-mmap`, or its short spelling such as `-nkvo`."""
    return flag == negation or (not flag.startswith("--") and flag.startswith("-n"))
