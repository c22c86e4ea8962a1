"""A model as another program's config describes it, in our words: its file or repository, its flags, its names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from systemd_llm_switch.config.document import UnreadableFile, read_text
from systemd_llm_switch.models.flags import Wishes
from systemd_llm_switch.quoting import printable, quoted
from systemd_llm_switch.setup.places import SetupError
from systemd_llm_switch.setup.server_flags import ServerFlags

_FLAG = re.compile(r"--?[A-Za-z]")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
SECRET_VALUE = "\0secret"
"""In the place of a value that must not get into a unit."""
_MOST_WORDS = 1000
_FILE, _REPO = frozenset(("-m", "--model")), frozenset(("-hf", "-hfr", "--hf-repo"))
_ALIAS = frozenset(("-a", "--alias"))
_EMBEDDING, _RERANKING = frozenset(("--embedding", "--embeddings")), frozenset(("--rerank", "--reranking"))
# What `add` writes itself.
_OURS = frozenset(("--host", "--port", "--metrics"))
_LEFT_OUT = {
    "--slot-save-path": "contexts go where the proxy looks for them",
    "--api-key": "its own key; only this machine reaches the model, and `server.api_keys` guards the proxy",
    "--api-key-file": "its own key; only this machine reaches the model, and `server.api_keys` guards the proxy",
    "--api-prefix": "the proxy asks without a prefix",
    "--hf-token": "HF_TOKEN is read from the environment",
    "--log-file": "the journal has the log",
    "--tags": "models have no tags here",
    "--ssl-key-file": "the proxy speaks plain HTTP to the model",
    "--ssl-cert-file": "the proxy speaks plain HTTP to the model",
}
_IMPOSSIBLE = {
    "--model-url": "download the file and name it with --model",
    "--docker-repo": "download the file and name it with --model",
    "--hf-file": "name the quantisation with -hf REPO:QUANT",
    "--models-dir": "it starts a router",
    "--models-preset": "it starts a router; add --from-presets reads that file",
}
_PATHS = frozenset(
    (
        "--mmproj", "--lora", "--control-vector", "--chat-template-file", "--grammar-file", "--json-schema-file",
        "--model-draft", "--spec-draft-model", "--model-vocoder", "--path", "--media-path",
    )
)  # fmt: skip


class CannotTake(SetupError):
    """This model cannot be taken over. The message says why."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """One model. Exactly one of `file` and `repo` is set. `lost` names what has no counterpart."""

    name: str
    file: Path | None
    repo: str
    wishes: Wishes
    aliases: tuple[str, ...] = ()
    entry: Mapping[str, object] = field(default_factory=dict)  # further keys of its entry in the config
    environment: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NotTaken:
    """A model that cannot be taken over, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a file holds. `lost` names what belongs to no model and has no counterpart, or another place."""

    models: tuple[Foreign | NotTaken, ...]
    lost: tuple[str, ...] = ()


def read_foreign(path: Path) -> str:
    """The text of the other program's file, which may hold anything; its size is bounded.

    Raises:
        SetupError
    """
    try:
        return read_text(path)
    except UnreadableFile as error:
        raise SetupError(str(error)) from error


def from_flags(name: str, words: Sequence[str], known: ServerFlags) -> Foreign:
    """A model from its llama-server's flags.

    Raises:
        CannotTake
    """
    if len(words) > _MOST_WORDS:
        raise CannotTake(f"its command has more than {_MOST_WORDS} words")
    file, repo = "", ""
    kept: list[str] = []
    aliases: list[str] = []
    lost: list[str] = []
    is_embedding = is_reranking = False
    for flag, values in _pairs(words, known):
        spelled, value = known.same(flag), " ".join(values)
        if SECRET_VALUE in value and not _first(_LEFT_OUT, spelled):
            raise CannotTake(f"its {flag} looks like a secret, and every user may read a unit")
        if spelled & _FILE:
            file = value
        elif spelled & _REPO:
            repo = value
        elif spelled & _ALIAS:
            aliases += [alias.strip() for alias in value.split(",") if alias.strip()]
        elif reason := _first(_IMPOSSIBLE, spelled):
            raise CannotTake(f"it has {flag}: {reason}")
        elif reason := _first(_LEFT_OUT, spelled):
            lost.append(f"{flag}: {reason}")
        elif not spelled & _OURS:
            is_embedding = is_embedding or bool(spelled & _EMBEDDING)
            is_reranking = is_reranking or bool(spelled & _RERANKING)
            kept += [*_current(flag, known), *(_absolute(values) if spelled & _PATHS else values)]
    if not file and not repo:
        raise CannotTake("it names no model (--model FILE or -hf REPO)")
    wishes = Wishes(flags=tuple(kept), is_whole_command=True, is_embedding=is_embedding, is_reranking=is_reranking)
    return Foreign(
        name, Path.cwd() / file if file else None, "" if file else repo, wishes, tuple(aliases), lost=tuple(lost)
    )


def usable_environment(settings: Sequence[object]) -> tuple[list[str], list[str]]:
    """The `NAME=value` that a unit may have, and what is left out."""
    taken: list[str] = []
    lost: list[str] = []
    for setting in settings:
        variable = str(setting).partition("=")[0]
        if not isinstance(setting, str) or "=" not in setting or not _VARIABLE.fullmatch(variable):
            lost.append(f"env {quoted(str(setting), 40)}: not NAME=value")
        elif SECRET.search(variable) or SECRET_VALUE in setting:
            lost.append(f"env {variable}: it looks like a secret; put it into a drop-in that only you can read")
        else:
            taken.append(setting)
    return taken, lost


def without_counterpart(keys: Sequence[str]) -> list[str]:
    """One line for all these keys; none for no key."""
    return [f"without counterpart: {', '.join(printable(key, 60) for key in keys)}"] if keys else []


def _pairs(words: Sequence[str], known: ServerFlags) -> Iterator[tuple[str, list[str]]]:
    """Each flag with its values. llama-server takes `--ctx_size` for `--ctx-size`."""
    at = 0
    while at < len(words):
        flag = words[at]
        if not _FLAG.match(flag):
            raise CannotTake(f"its command has {quoted(flag, 60)} where a flag belongs")
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
        end = at + 1
        if flag in known.with_value:
            end = min(at + 2, len(words))
        elif not known.knows(flag):  # whether it takes a value is not known
            while end < len(words) and not _FLAG.match(words[end]):
                end += 1
        yield flag, list(words[at + 1 : end])
        at = end


def _current(flag: str, known: ServerFlags) -> list[str]:
    """The flag, or what newer builds have in its place."""
    return [flag] if known.knows(flag) else known.replaced(flag) or [flag]


def _first(table: Mapping[str, str], spelled: frozenset[str]) -> str:
    return next((table[it] for it in sorted(spelled) if it in table), "")


def _absolute(values: Sequence[str]) -> list[str]:
    """A unit starts in another folder."""
    return [os.path.normpath(Path.cwd() / value) for value in values]
