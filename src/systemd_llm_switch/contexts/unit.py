"""The part of a unit's command line that concerns contexts: where llama-server saves them, and what they belong to.

Reads the sizes and times of files, nothing else.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from systemd_llm_switch.split_files import part_names
from systemd_llm_switch.systemd.unit import UnitStatus

FLAG = "--slot-save-path"
SLOT_VARIABLE = "LLAMA_ARG_SLOT_SAVE_PATH"
_MODEL_FLAGS = ("-m", "--model")
_NO_CHAT = ("--embedding", "--embeddings", "--rerank", "--reranking")
_USUAL_PORT = 8080  # llama-server's own
# These do not name the model's file, so it cannot be checked later whether it is still the same.
_UNNAMED_MODEL_FLAGS = ("-hf", "-hfr", "--hf-repo", "-mu", "--model-url", "-dr", "--docker-repo")


@dataclass(frozen=True, slots=True)
class Command:
    """A unit's command: its words, and the variables of its environment."""

    arguments: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Sequence[str], environment: Sequence[str] = ()) -> Command:
        """As systemd has it: a list of arguments, and `NAME=value` for each variable."""
        pairs = (entry.partition("=") for entry in environment)
        return cls(tuple(arguments), tuple(_words(arguments)), {name: value for name, _, value in pairs})

    @classmethod
    def of_status(cls, status: UnitStatus) -> Command:
        return cls.of(status.arguments, status.environment)

    @property
    def folder(self) -> Path | None:
        """Where its llama-server saves contexts; None if it does not."""
        named = self.option(FLAG) or self.environment.get(SLOT_VARIABLE)
        return Path(named) if named and named.startswith("/") else None

    @property
    def has_cache_ram(self) -> bool:
        """Whether llama-server may still have a prompt in RAM after another one took its slot."""
        return (self.option("-cram", "--cache-ram") or self.environment.get("LLAMA_ARG_CACHE_RAM")) != "0"

    @property
    def has_conversations(self) -> bool:
        """Whether its model is one that chats."""
        return not any(word in _NO_CHAT for word in self.words)

    @property
    def problem(self) -> str | None:
        """What the user must add or change before contexts can be kept; None if nothing."""
        if not self.has_conversations:
            return "a model for embeddings has no conversations"
        if self.folder is None:
            return f"add `{FLAG} DIR` to the unit's llama-server, with a folder that the unit may write"
        if "--no-slots" in self.words:
            return "remove `--no-slots` from the unit's llama-server"
        if any(flag in self.words for flag in _UNNAMED_MODEL_FLAGS) and self.option(*_MODEL_FLAGS) is None:
            return "name the model's file with `--model` in the unit: a saved context belongs to one file"
        return None

    def binding(self) -> str:
        """What a saved context belongs to, as a hash: the words, and each file among them by path, size and time.

        A file that is not there counts, too.
        """
        digest = hashlib.blake2b(digest_size=8)
        for word in (*self.words, *sorted(f"{name}={value}" for name, value in self.environment.items())):
            facts = " ".join(map(_file_facts, part_names(word)))
            digest.update(f"{word}\0{facts}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def is_run_by(self, pid: int) -> bool:
        """Whether a process runs this very command: its unit may have been changed since."""
        try:
            command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return command_line == b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in self.arguments)

    @property
    def port(self) -> int | None:
        """The port that its words name, llama-server's own without one; None if it is not a number."""
        named = self.option("--port")
        if named is None:
            return _USUAL_PORT
        return int(named) if named.isascii() and named.isdecimal() and len(named) <= 5 else None

    def option(self, *flags: str) -> str | None:
        """The value of the last of these flags, which is the one that llama-server uses."""
        found = None
        for word, following in pairwise((*self.words, "")):
            name, sign, value = word.partition("=")
            if name in flags:
                found = value if sign else following
        return found


def _words(arguments: Sequence[str]) -> Iterator[str]:
    """The words. A shell's script is split into its own words."""
    for argument in arguments:
        if "llama-server" in argument and " " in argument and not os.path.exists(argument):  # noqa: PTH110  (a word)
            try:
                yield from shlex.split(argument)
            except ValueError:
                yield argument
        else:
            yield argument


def _file_facts(word: str) -> str:
    if not word.startswith("/"):
        return ""
    try:
        found = os.stat(word)  # noqa: PTH116  (a word, not a path of ours)
    except (OSError, ValueError):
        return "-"
    return f"{found.st_size} {found.st_mtime_ns}" if stat.S_ISREG(found.st_mode) else ""
