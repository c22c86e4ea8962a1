"""Models from the Hugging Face hub: the files of a repository, and their download, which resumes where it stopped.

`HF_ENDPOINT` names another hub, `HF_TOKEN` a token for models that are not public. What the hub sends is checked before
it is used: sizes, names, checksums.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from systemd_llm_switch.quoting import quoted
from systemd_llm_switch.setup.model_files import WantedModel, choose_names, parts_of
from systemd_llm_switch.setup.places import SetupError

_ENDPOINT = "https://huggingface.co"
_TIMEOUT_S = 60
_ATTEMPTS = 5  # in a row without any data
_PIECE = 1 << 20
_MOST_LIST_BYTES = 32 << 20
_MOST_FILE_BYTES = 1 << 43
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,250}\.gguf", re.IGNORECASE)
_SUM = re.compile(r"[0-9a-f]{64}")

Progress = Callable[[str, int, int], None]  # a file's name, its bytes so far, and all of them


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository. `sha256` is empty if the hub does not report it."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub, and the token for it."""

    endpoint: str
    token: str

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Hub:
        return cls((environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/"), environ.get("HF_TOKEN", ""))

    def files_of(self, wanted: WantedModel) -> list[HubFile]:
        """The model's file, or all its parts in order.

        Raises:
            SetupError: the hub does not answer, or has no such model.
        """
        if not _REPO.fullmatch(wanted.repo) or ".." in wanted.repo:
            raise SetupError(f"{quoted(wanted.repo)} is not the name of a repository; write ORG/REPO or ORG/REPO:QUANT")
        found = {file.path: file for file in self._list(wanted.repo)}
        chosen = choose_names(list(found), wanted.quant)
        if chosen is None:
            names = ", ".join(sorted(file.name for file in found.values())[:20]) or "none"
            raise SetupError(f"{wanted.download_name} has no such model; its GGUF files are {names}")
        folder = chosen.rpartition("/")[0]
        paths = [f"{folder}/{part.name}".lstrip("/") for part in parts_of(Path(chosen))]
        if missing := [path for path in paths if path not in found]:
            raise SetupError(f"{wanted.repo} lacks a part of the model: {missing[0]}")
        return [found[path] for path in paths]

    def download(self, repo: str, files: list[HubFile], folder: Path, progress: Progress) -> Path:
        """Downloads the files that are missing, and returns the first one. The data of an interrupted download stays,
        and the next call resumes there.

        Raises:
            SetupError, OSError
        """
        folder.mkdir(parents=True, exist_ok=True)
        missing = [file for file in files if not _is_there(folder / file.name, file)]
        needed = sum(file.size - _size(_part(folder, file)) for file in missing)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise SetupError(f"{folder} has {free / 1e9:.1f} GB free, and the download needs {needed / 1e9:.1f} GB")
        for file in missing:
            self._download(repo, file, folder, progress)
        return folder / files[0].name

    def _download(self, repo: str, file: HubFile, folder: Path, progress: Progress) -> None:
        part = _part(folder, file)
        with part.open("a+b") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SetupError(f"another download of {file.name} runs already; wait until it ends") from error
            self._fill(f"{self.endpoint}/{repo}/resolve/main/{quote(file.path)}", file, out, progress)
            if file.sha256 and _sum_of(out) != file.sha256:
                part.unlink()
                raise SetupError(f"{file.name} arrived damaged, and was deleted; run it again")
            os.fsync(out.fileno())
            part.replace(folder / file.name)

    def _fill(self, url: str, file: HubFile, out: BinaryIO, progress: Progress) -> None:
        """Downloads until the file is whole."""
        failed = 0
        while (have := out.seek(0, os.SEEK_END)) < file.size:
            try:
                with self._open(url, have) as reply:
                    if have and not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                        out.truncate(0)  # it sends the whole file
                        out.seek(0)
                    while piece := reply.read(_PIECE):
                        if out.tell() + len(piece) > file.size:
                            raise SetupError(f"{url} sends more than the {file.size} bytes that the hub named")
                        out.write(piece)
                        progress(file.name, out.tell(), file.size)
                error: Exception = SetupError(f"the connection to {self.endpoint} ended early")
            except urllib.error.HTTPError as refusal:
                raise SetupError(_refusal(url, refusal)) from refusal
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as broken:
                error = broken
            failed = 0 if out.seek(0, os.SEEK_END) > have else failed + 1
            if failed >= _ATTEMPTS:
                raise SetupError(f"the download of {file.name} broke off ({error}); run it again to go on") from error

    def _list(self, repo: str) -> list[HubFile]:
        url = f"{self.endpoint}/api/models/{quote(repo)}/tree/main?recursive=true"
        try:
            with self._open(url) as reply:
                raw = reply.read(_MOST_LIST_BYTES + 1)
            if len(raw) > _MOST_LIST_BYTES:
                raise ValueError("it is too long")
            return [file for it in json.loads(raw) if (file := _file_of(it)) is not None]
        except urllib.error.HTTPError as error:
            raise SetupError(_refusal(url, error)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            hint = "check the network, or name another hub with HF_ENDPOINT"
            raise SetupError(f"{self.endpoint} does not answer: {reason}; {hint}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise SetupError(f"what {url} answers is not a list of files: {error}") from error

    def _open(self, url: str, begin: int = 0) -> http.client.HTTPResponse:
        request = urllib.request.Request(url, headers={"User-Agent": "systemd-llm-switch"})
        if begin:
            request.add_header("Range", f"bytes={begin}-")
        if self.token:  # not for the server that the hub redirects to
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        reply: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
        return reply


def _file_of(entry: object) -> HubFile | None:
    """One entry of the list; None if it is not a model, or malformed."""
    if not isinstance(entry, dict):
        raise TypeError("an entry is not an object")
    path, size, lfs = entry.get("path"), entry.get("size"), entry.get("lfs")
    known = lfs.get("oid") if isinstance(lfs, dict) else None
    if not isinstance(path, str) or not isinstance(size, int) or not 0 < size <= _MOST_FILE_BYTES:
        return None
    if not _NAME.fullmatch(path.rpartition("/")[2]) or len(path) > 1000 or ".." in path.split("/"):
        return None
    return HubFile(path, size, known if isinstance(known, str) and _SUM.fullmatch(known) else "")


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return f"{url} asks for a token (status {error.code}): set HF_TOKEN, and accept the model's terms on its page"
    if error.code == 404:
        return f"the hub has no {url} (status 404)"
    return f"{url} returned status {error.code}"


def _part(folder: Path, file: HubFile) -> Path:
    """The file of an unfinished download. Its name contains the checksum, so another version never continues it."""
    return folder / f".{file.name}.{(file.sha256 or str(file.size))[:16]}.part"


def _is_there(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sum_of(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()
