"""Where model files are: the given folder, llama.cpp's old flat cache and the Hugging Face cache.

Knows llama.cpp's naming: builds up to 2025 stored `llama-server -hf ORG/REPO:QUANT` as `ORG_REPO_FILE.gguf` in one
folder; later ones use `models--ORG--REPO/snapshots/REVISION/FILE.gguf`. Large models are split into parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from systemd_llm_switch.split_files import part_names, part_number, whole_name

# GGUF files beside a model that are not models; llama.cpp ignores the same ones.
_NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
# What `-hf REPO` takes if no quantisation is named.
_DEFAULT_QUANTS = ("Q4_K_M", "Q8_0")


@dataclass(frozen=True, slots=True)
class WantedModel:
    """A model as `llama-server -hf` names it."""

    repo: str
    quant: str = ""
    size: str = ""  # of the download, for people

    @property
    def download_name(self) -> str:
        return f"{self.repo}:{self.quant}" if self.quant else self.repo

    @property
    def base(self) -> str:
        """`Qwen3-Coder-Next` of `unsloth/Qwen3-Coder-Next-GGUF`: how the repository's files begin."""
        return re.sub(r"-GGUF$", "", self.repo.partition("/")[2], flags=re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Folders:
    """Where to look, in this order."""

    given: Path
    flat_cache: Path
    hub_caches: tuple[Path, ...]

    @classmethod
    def of(cls, given: Path, home: Path, environ: Mapping[str, str]) -> Folders:
        """As llama.cpp reads the environment (hf-cache.cpp; before it fs_get_cache_directory)."""
        cache_home = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
        hub_folders = (
            *(environ.get(name, "") for name in ("LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")),
            f"{environ['HF_HOME']}/hub" if environ.get("HF_HOME") else "",
            str(cache_home / "huggingface/hub"),
            str(home / ".cache/huggingface/hub"),
        )
        hubs = dict.fromkeys((given, *(Path(folder).absolute() for folder in hub_folders if folder)))
        return cls(given, Path(environ.get("LLAMA_CACHE") or cache_home / "llama.cpp").absolute(), tuple(hubs))


def find(wanted: WantedModel, folders: Folders) -> Path | None:
    """The model's file (the first part of a split one), complete, or None."""
    return next((path for path in _candidates(wanted, folders) if not missing_parts(path)), None)


def find_incomplete(wanted: WantedModel, folders: Folders) -> Path | None:
    """A split model with missing parts."""
    return next((path for path in _candidates(wanted, folders) if missing_parts(path)), None)


def missing_parts(first: Path) -> list[Path]:
    """The missing parts of a model; empty if it is complete. A dangling link counts as missing."""
    return [part for part in parts_of(first) if not part.is_file()]


def parts_of(path: Path) -> list[Path]:
    """All parts of the model that a file belongs to: the file alone, if it is not named as a part."""
    return list(map(path.with_name, part_names(path.name)))


def choose_names(names: list[str], quant: str) -> str | None:
    """The one of a repository's files that `-hf REPO:QUANT` means, or the first part; None if there is none."""
    models = [str(path) for path in _models_in(map(Path, names))]
    quants = (quant,) if quant else (*_DEFAULT_QUANTS, "")
    return next((name for wanted in quants for name in models if _has_quant(name, wanted)), None)


def _candidates(wanted: WantedModel, folders: Folders) -> Iterator[Path]:
    for folder in dict.fromkeys((folders.given, folders.flat_cache)):
        yield from _in_plain_folder(wanted, folder)
    for hub in folders.hub_caches:
        yield from _in_hub(wanted, hub)


def _in_plain_folder(wanted: WantedModel, folder: Path) -> Iterator[Path]:
    """`ORG_REPO_FILE.gguf`, or FILE.gguf as a browser stores it, also one or two folders deep (ORG/REPO/FILE)."""
    flat_start = wanted.repo.replace("/", "_") + "_"
    for path in _models_in(path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}*.gguf")):
        if path.name.startswith(flat_start):
            if _has_quant(path.name.removeprefix(flat_start), wanted.quant):
                yield path
        elif whole_name(path.name).lower() == _plain_name(wanted).lower():
            yield path


def _in_hub(wanted: WantedModel, hub: Path) -> Iterator[Path]:
    """The revision that `refs/main` names comes first, since llama.cpp itself takes only that."""
    repo = hub / ("models--" + wanted.repo.replace("/", "--"))
    current = repo / "refs/main"
    named = current.read_text().strip() if current.is_file() else ""
    snapshots = sorted((repo / "snapshots").glob("*"), key=lambda path: (path.name != named, path.name))
    quants = (wanted.quant,) if wanted.quant else (*_DEFAULT_QUANTS, "")
    for snapshot in snapshots:
        files = list(_models_in(snapshot.rglob("*.gguf")))
        for quant in quants:
            yield from (path for path in files if _has_quant(str(path.relative_to(snapshot)), quant))


def _models_in(paths: Iterator[Path]) -> Iterator[Path]:
    """First parts and whole files, in a fixed order."""
    for path in sorted(paths):
        is_model = not any(word in path.name for word in _NO_MODELS)
        if is_model and part_number(path.name) in (None, 1):
            yield path


def _plain_name(wanted: WantedModel) -> str:
    return f"{wanted.base}-{wanted.quant}.gguf" if wanted.quant else f"{wanted.base}.gguf"


def _has_quant(name: str, quant: str) -> bool:
    """llama.cpp's own rule: the tag, followed by a dot or a dash, in any case."""
    return not quant or re.search(re.escape(quant) + "[.-]", name, re.IGNORECASE) is not None
