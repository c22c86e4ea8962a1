"""Whatever lies in the folder under names of ours, reading it raises nothing and yields only whole contexts."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contexts.test_store import save
from systemd_llm_switch.contexts.fingerprint import NOTHING, STRIDE, Fingerprint
from systemd_llm_switch.contexts.folder import Folder
from systemd_llm_switch.contexts.store import Store

KEY = "0123456789abcdef"
DEEP = "[" * 100_000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("version", "unit", "binding", "boot", "tokens", "read_s", "size", "marks", "file")


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path)


def check(path: Path) -> Store:
    """Reads the folder as a proxy does that has just started, and uses what it found as the status does."""
    store = Store(path)
    store.scan(oldest=0)
    store.forget_useless("u.service", None)
    for entry in store.entries:
        assert store.is_whole(entry)
        assert entry.reusable(Fingerprint((b"12345678",), STRIDE)) >= 0
        assert entry.reusable(NOTHING) == 0
    known = [[entry.tokens, entry.size, entry.read_s, entry.unit] for entry in store.entries]
    json.dumps([known, store.useless], allow_nan=False)
    store.drop(store.entries)
    return store


@settings(max_examples=40)
@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example(data=DEEP.encode())
@example(data=b'{"unit": "u.service", "reason": ' + DEEP.encode())
@pytest.mark.parametrize("suffix", ["json", "useless", "ctx", "part"])
def test_any_bytes_in_any_file(suffix: str, data: bytes) -> None:
    with folder() as path:
        save(Store(path))
        (path / f"llm-switch-{KEY}.{suffix}").write_bytes(data)
        check(path)


@settings(max_examples=60)
@given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
def test_any_value_in_the_facts_of_a_context(changes: dict[str, Any]) -> None:
    with folder() as path:
        entry = save(Store(path))
        (path / entry.facts_name).write_text(json.dumps(json.loads(entry.as_text()) | changes))
        check(path)


@settings(max_examples=60)
@given(cut=st.integers(0, 400), at=st.integers(0, 400), byte=st.integers(0, 255))
def test_facts_that_were_cut_or_hit(cut: int, at: int, byte: int) -> None:
    with folder() as path:
        entry = save(Store(path))
        data = bytearray(entry.as_text().encode()[:cut])
        if at < len(data):
            data[at] = byte
        (path / entry.facts_name).write_bytes(data)
        check(path)


@pytest.mark.parametrize("suffix", ["json", "useless", "ctx", "part"])
def test_what_is_no_file_stays_and_harms_nothing(suffix: str) -> None:
    with folder() as path:
        kept = save(Store(path))
        (path / f"llm-switch-{KEY}.{suffix}").mkdir()
        os.mkfifo(path / f"llm-switch-1{KEY[1:]}.{suffix}")
        store = Store(path)
        store.scan(oldest=0)
        store.forget_useless("u.service", None)
        assert store.entries == (kept,)
        assert (path / f"llm-switch-{KEY}.{suffix}").is_dir()


def test_a_reason_of_a_megabyte_is_not_shown() -> None:
    with folder() as path:
        text = json.dumps({"unit": "u.service", "reason": "x" * 1_000_000})
        (path / f"llm-switch-{KEY}.useless").write_text(text)
        store = Store(path)
        store.scan(oldest=0)
        assert len(store.useless[KEY]) < 1000


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("{}")
    (tmp_path / "mine").chmod(0o644)
    name = f"llm-switch-{KEY}.json"
    (tmp_path / name).symlink_to(tmp_path / "mine")
    for act in (Folder(tmp_path).read, Folder(tmp_path).make_private_file):
        with pytest.raises(OSError, match="symbolic links"):
            act(name)
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o644


def test_of_a_folder_with_very_many_files_only_some_are_looked_at(tmp_path: Path) -> None:
    for number in range(10_050):
        (tmp_path / f"llm-switch-{number:016x}.part").touch()
    assert len(Folder(tmp_path).names()) == 10_000
