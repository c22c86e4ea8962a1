"""The file of `add -hf REPO[:QUANT]`: the one that is there already, or a download with its progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from systemd_llm_switch.command.tables import duration, size
from systemd_llm_switch.models.hub import Hub
from systemd_llm_switch.setup import console, llama_server
from systemd_llm_switch.setup.ledger import Ledger
from systemd_llm_switch.setup.model_files import Folders, WantedModel, find
from systemd_llm_switch.setup.places import Places

_STEP_S = 0.5
_STEP_PERCENT = 10  # where nobody watches a line change


def fetch(name: str, places: Places, environ: Mapping[str, str], *, is_dry: bool) -> Path | None:
    """None where a dry run would have to download.

    Raises:
        SetupError, OSError
    """
    repo, _, quant = name.partition(":")
    wanted = WantedModel(repo, quant)
    models = llama_server.absolute(Ledger.load(places).models_dir or str(places.home / ".cache/llama.cpp"), places)
    there = find(wanted, Folders.of(models, places.home, environ))
    if there:
        console.done(f"{name} is there already: {places.short(there)}")
        return there
    hub = Hub.of(environ)
    files = hub.files_of(wanted)
    folder = models / repo
    total = size(sum(file.size for file in files))
    console.note(f"{', '.join(file.name for file in files)}: {total} from {hub.endpoint} into {places.short(folder)}")
    if is_dry:
        console.note("its flags are chosen from the file, after the download")
        return None
    progress = _Progress()
    try:
        path = hub.download(repo, files, folder, progress.show)
    finally:
        progress.end()
    console.done(f"downloaded {places.short(path)}")
    return path


class _Progress:
    """One line that changes on a terminal; else a line for each tenth."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._file = ""
        self._began = self._shown = 0.0
        self._first = self._tenths = 0

    def show(self, file: str, have: int, whole: int) -> None:
        now = time.monotonic()
        if file != self._file:
            self._file, self._began, self._first, self._tenths = file, now, have, -1
        if self._is_terminal:
            if now - self._shown >= _STEP_S:
                self._shown = now
                sys.stderr.write(f"\r\033[K{self._line(now, have, whole)}")
        elif have * 100 // whole // _STEP_PERCENT > self._tenths:
            self._tenths = have * 100 // whole // _STEP_PERCENT
            sys.stderr.write(f"{self._line(now, have, whole)}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._is_terminal:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def _line(self, now: float, have: int, whole: int) -> str:
        """`FILE: 3.1 GB of 36.0 GB, 45 MB a second, 12 min left`."""
        per_s = (have - self._first) / max(now - self._began, 0.001)
        left = f", {size(per_s)} a second, {duration((whole - have) / per_s)} left" if per_s > 1 else ""
        return f"{self._file}: {size(have)} of {size(whole)}{left}"
