"""Which flags a llama-server knows: its `--help`, asked once and read."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from systemd_llm_switch.quoting import quoted
from systemd_llm_switch.setup.places import SetupError
from systemd_llm_switch.systemd.programs import ProgramError, run

_TIMEOUT_S = 30  # a build with CUDA looks for its devices first
_MOST_CHARACTERS = 1_000_000
_LONGEST_LINE = 200  # of a program's first words
_FLAG = re.compile(r"-{1,2}[A-Za-z][\w-]*")
_VARIABLE = re.compile(r"\(env: ([A-Z][A-Z0-9_]*)\)")
# What became of flags that newer builds do not have: https://github.com/ggml-org/llama.cpp/pull/20834
_REPLACED = {
    "--mmap": "--load-mode mmap",
    "--no-mmap": "--load-mode none",
    "--mlock": "--load-mode mlock",
    "--direct-io": "--load-mode dio",
    "-dio": "--load-mode dio",
    "--no-direct-io": "--load-mode mmap",
    "-ndio": "--load-mode mmap",
}


@dataclass(frozen=True, slots=True)
class ServerFlags:
    """The flags of one build: each spelling with all spellings of the same flag, those that take a value, and the
    environment variables that stand for a flag."""

    spellings: Mapping[str, frozenset[str]]
    with_value: frozenset[str]
    variables: Mapping[str, str] = field(default_factory=dict)  # name -> one spelling of its flag

    @classmethod
    def read(cls, text: str) -> ServerFlags:
        """What the text of `--help` lists: one flag a paragraph, with all its spellings in the first line."""
        spellings: dict[str, frozenset[str]] = {}
        with_value: set[str] = set()
        variables: dict[str, str] = {}
        last = ""
        for line in text[:_MOST_CHARACTERS].splitlines():
            found, rest = _leading_flags(line)
            last = found[-1] if found else last
            variables.update(dict.fromkeys(_VARIABLE.findall(line), last))
            for flag in found:
                spellings[flag] = spellings.get(flag, frozenset()) | frozenset(found)
            if re.match(r" \S", rest):  # a description is further to the right
                with_value.update(found)
        return cls(spellings, frozenset(with_value), variables)

    def knows(self, flag: str) -> bool:
        return flag in self.spellings

    def same(self, flag: str) -> frozenset[str]:
        """All spellings of a flag, itself among them."""
        return self.spellings.get(flag, frozenset()) | {flag}

    def long(self, flag: str) -> str:
        """The flag's long spelling; of `--jinja` and `--no-jinja` the first."""
        spelled = sorted(
            self.same(flag), key=lambda it: (not it.startswith("--"), it.startswith("--no-"), -len(it), it)
        )
        return spelled[0]

    def negation(self, flag: str) -> str:
        """The spelling that switches a flag off; empty for a flag without one."""
        return next((it for it in self.same(flag) if it.startswith("--no-") and len(self.same(flag)) > 1), "")

    def in_command(self, words: Sequence[str]) -> Iterator[str]:
        """The flags among the words of a command line, without the program. A flag's value is not one."""
        is_value = False
        for word in words:
            is_flag = not is_value and _FLAG.match(word) is not None
            if is_flag:
                yield word
            is_value = is_flag and word in self.with_value

    def unknown(self, words: Sequence[str]) -> list[str]:
        """Those of the command's flags that this build does not know."""
        return [flag for flag in self.in_command(words) if not self.knows(flag)]

    def replaced(self, flag: str) -> list[str]:
        """The words that newer builds have for a flag; empty if this build has none."""
        new = _REPLACED.get(flag, "").split()
        return new if new and self.knows(new[0]) else []

    def instead_of(self, flag: str) -> str:
        """What to write for a flag that this build does not know; empty if nothing is like it."""
        if new := self.replaced(flag):
            return " ".join(new)
        old = [it for it, replacement in _REPLACED.items() if replacement.partition(" ")[0] == flag and self.knows(it)]
        return " or ".join(old or get_close_matches(flag, self.spellings, n=1, cutoff=0.7))


@functools.cache
def ask(binary: Path) -> ServerFlags:
    """Runs `--help` once for each program, and reads a bounded part of what it writes.

    Raises:
        SetupError: it does not run, or its `--help` is not a llama-server's.
    """
    try:
        text = run(str(binary), "--help", timeout_s=_TIMEOUT_S, most_bytes=_MOST_CHARACTERS)
    except ProgramError as error:
        why = str(error).removeprefix(f"{binary} ")
        raise SetupError(f"{binary} did not answer --help ({why}); is it a llama-server?") from error
    flags = ServerFlags.read(text)
    if not (flags.knows("--model") and flags.knows("--port")):  # llama-cli, for example, has no --port
        raise SetupError(f"{binary} is not a llama-server that works here: its --help {_first_words(text)}")
    return flags


def _first_words(text: str) -> str:
    """Such as the library that it lacks."""
    line = text.strip().partition("\n")[0]
    return f"has no --model and --port, but says {quoted(line, _LONGEST_LINE)}" if line else "says nothing"


def _leading_flags(line: str) -> tuple[list[str], str]:
    """The flags that a line begins with, `-c,    --ctx-size N …`, and what follows them."""
    found, rest = [], line
    while match := _FLAG.match(rest):
        found.append(match[0])
        rest = rest[match.end() :]
        comma = re.match(r",\s*", rest)
        if comma is None:
            break
        rest = rest[comma.end() :]
    return found, rest
