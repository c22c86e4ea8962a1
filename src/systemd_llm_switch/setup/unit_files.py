"""Unit files: what a tracked file asks for, and its text with this machine's paths. Writes nothing."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from systemd_llm_switch.setup.model_files import WantedModel
from systemd_llm_switch.setup.places import SetupError

# The default paths in the tracked files; systemd expands %h to the home folder.
LLAMA_SERVER = "%h/llama.cpp/build/bin/llama-server"
PROXY_PYTHON = "%h/systemd-llm-switch/.venv/bin/python"
_MODEL = re.compile(r"%h/\.cache/llama\.cpp/(\S+\.gguf)")
_NO_LIMIT = "MemoryHigh=infinity\n"
_GIB = 1 << 30
_SHARED_TMP = (Path("/tmp"), Path("/var/tmp"))


@dataclass(frozen=True, slots=True)
class Machine:
    """What differs from one machine to the next."""

    home: Path
    python: Path
    llama_server: Path
    models_dir: Path
    left_out: tuple[str, ...] = ()  # settings that this machine's user manager does not support
    config: Path | None = None  # set only if the proxy would not find it by itself
    ram_bytes: int | None = None

    @property
    def memory_high_gib(self) -> int | None:
        """The RAM that the models may have together: all but an eighth, at least 2 and at most 8 GiB, for the rest.
        None where that would leave them less than half."""
        if self.ram_bytes is None:
            return None
        rest = min(8 * _GIB, max(2 * _GIB, self.ram_bytes // 8))
        return (self.ram_bytes - rest) // _GIB if rest * 2 <= self.ram_bytes - _GIB else None


@dataclass(frozen=True, slots=True)
class UnitSource:
    """A tracked unit file."""

    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> UnitSource:
        return cls(path, path.read_text())

    @classmethod
    def read_all(cls, folder: Path) -> list[UnitSource]:
        found = (path for path in sorted(folder.iterdir()) if path.suffix in (".service", ".slice"))
        return [cls.read(path) for path in found]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def wanted_model(self) -> WantedModel | None:
        return wanted_model(self.text)

    def model_path(self, models_dir: Path) -> Path | None:
        """The model's default path."""
        named = _MODEL.search(self.text)
        return models_dir / named[1] if named else None

    def render(self, machine: Machine, model: Path | None) -> str:
        """The text to install; `model` is the file that was found, if any."""
        path = model or self.model_path(machine.models_dir)
        seen_by_unit = [machine.home, machine.python, machine.llama_server, *([path] if path else [])]
        text = self.text.replace(LLAMA_SERVER, quote(machine.llama_server, is_program=True))
        text = text.replace(PROXY_PYTHON, quote(machine.python, is_program=True))
        if path:
            text = _MODEL.sub(lambda _: quote(path), text)
        if machine.memory_high_gib:
            text = text.replace(_NO_LIMIT, f"MemoryHigh={machine.memory_high_gib}G\n")
        if machine.config and self.name == "llm-switch.service":
            setting = quote(f"LLM_SWITCH_CONFIG={machine.config}", is_variable=True)
            text = text.replace("[Service]\n", f"[Service]\nEnvironment={setting}\n")
            seen_by_unit.append(machine.config)
        return fit_to_machine(text, seen_by_unit, machine.left_out)


def ram_bytes() -> int:
    """Of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fit_to_machine(text: str, seen_by_unit: Sequence[Path], left_out: tuple[str, ...]) -> str:
    """The text without the hardening that this machine cannot do, or that would hide a path from the unit."""
    text = without(text, left_out)
    if any(path.is_relative_to(folder) for path in seen_by_unit for folder in _SHARED_TMP):
        text = without(text, ("PrivateTmp=yes",))  # it would hide the very files that the unit runs or reads
    return text


def wanted_model(text: str) -> WantedModel | None:
    """The `[X-LLM-Switch]` section of a unit file; systemd ignores sections whose name begins with X-."""
    section = text.partition("[X-LLM-Switch]")[2]
    settings = dict(re.findall(r"^(\w+)=(.*)$", section, re.MULTILINE))
    return (
        WantedModel(settings["Repo"], settings.get("Quant", ""), settings.get("Size", ""))
        if "Repo" in settings
        else None
    )


def model_in(text: str, home: Path) -> Path | None:
    """The file that a unit passes to llama-server with --model or -m, if its text names one."""
    words = exec_start(text)
    for option, value in pairwise(words):
        if option in ("--model", "-m"):
            return Path(expand(value, home).replace("$$", "$"))
    return None


def expand(word: str, home: Path) -> str:
    """A word of a unit with systemd's `%h` and `%%` replaced, each once: `%%h` is a percent sign and an h."""
    return re.sub("%[h%]", lambda found: str(home) if found[0] == "%h" else "%", word)


def exec_start(text: str) -> list[str]:
    """The words of the last ExecStart=, unquoted; specifiers stay as they are. Empty if the quotes do not match."""
    joined = re.sub(r"\\\n\s*", " ", text)
    commands = re.findall(r"^ExecStart=(.*)$", joined, re.MULTILINE)
    try:
        return shlex.split(commands[-1]) if commands else []
    except ValueError:
        return []


def without(text: str, settings: tuple[str, ...]) -> str:
    """The text with these lines turned into comments, so that a reader sees what is missing."""
    lines = [f"# not on this machine: {line}" if line in settings else line for line in text.split("\n")]
    return "\n".join(lines)


def quote(word: Path | str, *, is_program: bool = False, is_variable: bool = False) -> str:
    """One word of a unit file (systemd.syntax(7), systemd.service(5) "Command lines").

    A dollar is doubled except where systemd expands no variables: in the program's path and in Environment=.
    """
    text = str(word)
    if not text.isprintable() and any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        what = "is not valid UTF-8" if _is_undecodable(text) else "has a line break or another control character"
        raise SetupError(f"the path {text!r} {what}, so it cannot go into a unit; rename or move it")
    if is_program and re.search("[\"'\\\\]", text):
        raise SetupError(f"systemd runs no program whose path has a quote or a backslash: {text}; move it elsewhere")
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if not (is_program or is_variable):
        text = text.replace("$", "$$")
    return f'"{text}"' if re.search(r"[^A-Za-z0-9_./=+:@,%$-]", text) else text


def _is_undecodable(text: str) -> bool:
    """Python shows a path's bytes that are not UTF-8 as lone surrogates."""
    return any(unicodedata.category(letter) == "Cs" for letter in text)
