"""What the keeper removes by itself: what is too old, too much, or belongs to another command. Needs no backend."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from contexts.test_fingerprint import LONG, chat
from contexts.test_keeper import config
from support.stack import wait_for
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.contexts.entry import Entry, FileMark
from systemd_llm_switch.contexts.fingerprint import fingerprint
from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.contexts.store import Store
from systemd_llm_switch.contexts.unit import Command

SIZE = 700
MODELS = [Model(name, f"{name}.service", "http://127.0.0.1:1") for name in ("m", "n")]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """One for each model."""
    folders = [tmp_path / model.id for model in MODELS]
    for folder in folders:
        folder.mkdir(mode=0o700)
    return folders


def command(folder: Path, *options: str) -> Command:
    return Command.of(["/bin/llama-server", "-m", "/m.gguf", "--slot-save-path", str(folder), *options])


def save(folder: Path, age_h: float, unit: str = "m.service", *options: str) -> str:
    """A context that was used so long ago; its name."""
    store = Store(folder)
    key = store.begin()
    (folder / store.unfinished_name(key)).write_bytes(b"context" * 100)
    binding, known = command(folder, *options).binding(), fingerprint(chat(LONG))

    def describe(mark: FileMark) -> Entry:
        return Entry(key, unit, binding, store.boot, 700, 9.5, known, mark, 0)

    entry = store.finish(key, SIZE, describe)
    used_at = time.time() - age_h * 3600
    os.utime(folder / entry.facts_name, (used_at, used_at))
    return entry.context_name


def contexts_in(*folders: Path) -> set[str]:
    return {file.name for folder in folders for file in folder.glob("*.ctx")}


def look(folders: list[Path], **settings: float) -> Contexts:
    """A proxy starts, and learns what its units run."""
    keeper = Contexts(config(*MODELS, **settings))
    keeper.learn({model.unit: command(folder) for model, folder in zip(MODELS, folders, strict=True)})
    return keeper


def test_what_nobody_used_for_too_long_is_removed(folders: list[Path]) -> None:
    save(folders[0], age_h=3)
    young = save(folders[0], age_h=1)
    look(folders, max_age_h=2)
    wait_for(lambda: contexts_in(*folders) == {young})


def test_the_limit_is_for_all_models_together(folders: list[Path]) -> None:
    names = [save(folders[at % 2], 4 - at, MODELS[at % 2].unit) for at in range(4)]
    keeper = look(folders, max_gb=2.5 * SIZE / 1e9)
    wait_for(lambda: contexts_in(*folders) == set(names[2:]))
    assert keeper.totals().bytes == 2 * SIZE


def test_a_smaller_limit_holds_at_once(folders: list[Path]) -> None:
    names = [save(folders[0], 2 - at) for at in range(2)]
    keeper = look(folders)
    wait_for(lambda: keeper.totals().bytes == 2 * SIZE)
    keeper.configure(config(*MODELS, max_gb=1.5 * SIZE / 1e9))
    wait_for(lambda: contexts_in(*folders) == {names[1]})


def test_what_another_command_saved_is_removed(folders: list[Path]) -> None:
    save(folders[0], 1, "m.service", "-c", "4096")
    own = save(folders[0], 2)
    look(folders)
    wait_for(lambda: contexts_in(*folders) == {own})
