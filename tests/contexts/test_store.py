"""The files of one folder: only ours, only whole ones."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from contexts.test_fingerprint import LONG, chat
from systemd_llm_switch.contexts.entry import Entry, FileMark, parse_entry
from systemd_llm_switch.contexts.fingerprint import fingerprint
from systemd_llm_switch.contexts.folder import Folder, FolderProblem
from systemd_llm_switch.contexts.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "slots"
    path.mkdir(mode=0o700)
    return path


def save(store: Store, used_at: float = 1000.0, data: bytes = b"context" * 100, size: int | None = None) -> Entry:
    """What a save does; the backend's part is a plain write."""
    key = store.begin()
    (store.folder.path / store.unfinished_name(key)).write_bytes(data)

    def describe(mark: FileMark) -> Entry:
        return Entry(key, "u.service", "bind", store.boot, 700, 9.5, fingerprint(chat(LONG)), mark, used_at)

    entry = store.finish(key, len(data) if size is None else size, describe)
    os.utime(store.folder.path / entry.facts_name, (used_at, used_at))
    return entry


def names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def test_a_new_proxy_finds_what_an_earlier_one_saved(path: Path) -> None:
    entry = save(Store(path))
    store = Store(path)
    store.scan(oldest=0)
    assert store.entries == (entry,)


def test_files_are_private_whatever_the_umask_was(path: Path) -> None:
    save(Store(path))
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


def test_a_cut_file_is_never_taken_in(path: Path) -> None:
    store = Store(path)
    with pytest.raises(ValueError, match="is the disk full"):
        save(store, size=9999)
    assert store.entries == ()


def test_a_save_of_nothing_is_never_taken_in(path: Path) -> None:
    with pytest.raises(ValueError, match="is the disk full"):
        save(Store(path), data=b"", size=0)


def test_an_abandoned_save_leaves_no_file(path: Path) -> None:
    store = Store(path)
    key = store.begin()
    (path / store.unfinished_name(key)).write_bytes(b"half")
    store.abandon(key)
    assert names(path) == set()


def test_what_a_kill_left_is_removed(path: Path) -> None:
    kept = save(Store(path))
    for name in (
        "llm-switch-0123456789abcdef.part",
        "llm-switch-1123456789abcdef.ctx",
        "llm-switch-2123456789abcdef.json",
    ):
        (path / name).write_bytes(b"left")
    Store(path).scan(oldest=0)
    assert names(path) == {kept.context_name, kept.facts_name}


def test_a_save_under_way_is_not_removed(path: Path) -> None:
    store = Store(path)
    name = store.unfinished_name(store.begin())
    (path / name).write_bytes(b"half")
    store.scan(oldest=0)
    assert names(path) == {name}


@pytest.mark.parametrize("change", ["cut", "longer", "replaced"])
def test_a_file_that_changed_is_refused_and_removed(path: Path, change: str) -> None:
    store = Store(path)
    file = path / save(store).context_name
    data = file.read_bytes()
    if change == "replaced":
        (path / "new").write_bytes(data)
        (path / "new").rename(file)
    else:
        file.write_bytes(data[:10] if change == "cut" else data + b"more")
    assert not store.is_whole(store.entries[0])
    store.scan(oldest=0)
    assert (store.entries, names(path)) == ((), set())


def test_what_another_start_of_the_machine_left_is_removed(path: Path) -> None:
    store = Store(path)
    store.boot = "another"
    save(store)
    Store(path).scan(oldest=0)
    assert names(path) == set()


def test_what_is_too_old_is_removed(path: Path) -> None:
    store = Store(path)
    old, young = save(store, used_at=1000), save(store, used_at=3000)
    store.scan(oldest=2000)
    assert store.entries == (young,)
    assert old.context_name not in names(path)


def test_a_use_makes_it_young_again_for_the_next_proxy_too(path: Path) -> None:
    store = Store(path)
    one, other = save(store, used_at=1000), save(store, used_at=2000)
    store.note_used(one, 3000)
    fresh = Store(path)
    fresh.scan(oldest=0)
    assert [it.key for it in store.entries] == [it.key for it in fresh.entries] == [other.key, one.key]


def test_files_of_others_stay_as_they_are(path: Path) -> None:
    foreign = ["notes.txt", "llm-switch-.ctx", "llm-switch-0123456789abcdef.ctx.bak", "slot.bin"]
    for name in foreign:
        (path / name).write_text("mine")
    Store(path).scan(oldest=0)
    assert {name: (path / name).read_text() for name in foreign} == dict.fromkeys(foreign, "mine")


@pytest.mark.parametrize("suffix", ["ctx", "json", "part", "useless"])
def test_a_link_with_a_name_of_ours_is_neither_followed_nor_removed(path: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / "precious"
    target.write_text("{}")
    link = path / f"llm-switch-0123456789abcdef.{suffix}"
    link.symlink_to(target)
    store = Store(path)
    store.scan(oldest=0)
    assert link.is_symlink()
    assert target.read_text() == "{}"
    assert store.entries == ()


def test_a_context_that_became_a_link_is_not_used(path: Path, tmp_path: Path) -> None:
    store = Store(path)
    file = path / save(store).context_name
    moved = file.rename(tmp_path / "moved")
    file.symlink_to(moved)
    assert not store.is_whole(store.entries[0])


def test_a_second_name_of_a_file_makes_it_foreign(path: Path, tmp_path: Path) -> None:
    store = Store(path)
    file = path / save(store).context_name
    os.link(file, tmp_path / "second")
    assert not store.is_whole(store.entries[0])


def test_dropping_says_how_many_bytes_are_free_again(path: Path) -> None:
    store = Store(path)
    entry = save(store)
    assert store.drop([entry]) == 700
    assert names(path) == set()


def test_a_useless_unit_is_remembered_until_it_changes(path: Path) -> None:
    Store(path).note_useless("u.service", "0123456789abcdef", "why")
    store = Store(path)
    store.scan(oldest=0)
    assert store.useless == {"0123456789abcdef": "why"}
    store.forget_useless("u.service", "1123456789abcdef")
    assert (store.useless, names(path)) == ({}, set())


def test_an_empty_folder_becomes_private(path: Path) -> None:
    path.chmod(0o755)
    Folder(path).make_private()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_folder_with_files_of_others_keeps_its_mode(path: Path) -> None:
    path.chmod(0o755)
    (path / "notes.txt").touch()
    Folder(path).make_private()
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_a_folder_that_others_may_write_is_refused(path: Path) -> None:
    path.chmod(0o777)
    with pytest.raises(FolderProblem, match="chmod 700"):
        Folder(path).check()


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_something_that_is_not_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderProblem):
        Folder(tmp_path / name).check()


def test_room_leaves_a_tenth_of_the_disk_free(path: Path) -> None:
    disk = os.statvfs(path)
    expected = disk.f_bavail * disk.f_frsize - disk.f_blocks * disk.f_frsize // 10
    assert abs(Folder(path).free_bytes() - expected) < 500_000_000


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens", "1e999"), ("tokens", "-1"), ("tokens", "1" + "0" * 400), ("tokens", "1.5"), ("tokens", "true"),
     ("read_s", "NaN"), ("read_s", "1e999"), ("read_s", "-1"), ("read_s", "1" + "0" * 400), ("size", "1" + "0" * 400)],
)  # fmt: skip
def test_numbers_that_are_not_ours_are_no_context(path: Path, name: str, value: str) -> None:
    """They would end up in sums and in the status: JSON has no NaN, and a quotient of such numbers is an error."""
    entry = save(Store(path))
    facts = json.loads(entry.as_text())
    known = json.dumps(facts[name])
    text = entry.as_text().replace(f'"{name}": {known}', f'"{name}": {value}')
    assert text != entry.as_text()
    with pytest.raises(ValueError, match="not "):
        parse_entry(entry.key, text, 0.0)
