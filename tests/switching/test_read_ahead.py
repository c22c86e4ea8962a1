"""While a model drains, the next one's file is read into the page cache, as far as memory allows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.stack import Stack, in_background, wait_for
from systemd_llm_switch.switching.read_ahead import model_files, read_files, unused_memory

MIB = 1 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of 48 MiB, not in the page cache."""
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(MIB) * 48)
    with path.open("rb") as file:
        os.fsync(file.fileno())  # what is not on the disk yet would stay
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert not is_cached(path)
    return path


def is_cached(path: Path) -> bool:
    """Whether all of a file is in memory: a read that must not wait succeeds everywhere (preadv2(2), RWF_NOWAIT)."""
    with path.open("rb", buffering=0) as file:
        try:
            for offset in range(0, path.stat().st_size, MIB // 4):
                os.preadv(file.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("/x/llama-server --host h -m /m/a.gguf --port 1", ["/m/a.gguf"]),
        ("/x/llama-server --model /m/a b.gguf --jinja", ["/m/a b.gguf"]),
        ("/x/llama-server --model=/m/a.gguf", ["/m/a.gguf"]),
        ("/x/llama-server --mmproj /m/p.gguf -m /m/a.gguf", ["/m/a.gguf"]),
        ("/x/llama-server -m /m/a-00001-of-00003.gguf", [f"/m/a-0000{n}-of-00003.gguf" for n in (1, 2, 3)]),
        ("/x/llama-server -hf org/repo:Q4 --offline", []),
        ("", []),
    ],
)
def test_the_files_are_those_of_the_command(command: str, names: list[str]) -> None:
    assert model_files(command) == [Path(name) for name in names]


def test_the_next_model_is_read_while_the_loaded_one_still_works(stack: Stack, model: Path) -> None:
    """The request that waits has its model's file in memory before its unit is started."""
    next_unit = stack.standin("next", "--model", str(model))
    proxy = stack.run({"busy": stack.standin("busy"), "next": next_unit})
    proxy.chat("busy")
    with in_background(
        lambda: proxy.chat("busy", standin={"until_released": True}),
        lambda: wait_for(lambda: stack.seen()["running"] == 1) and proxy.chat("next"),
    ) as answers:
        wait_for(lambda: is_cached(model), what="the file is in memory")
        assert stack.active_state(next_unit) == "inactive"
        stack.release()
    assert [answer.text for answer in answers] == ["hello from busy", "hello from next"]
    wait_for(lambda: f"read_ahead unit={next_unit} mib=48" in proxy.log)


def test_a_file_that_memory_has_no_room_for_is_left_alone(tmp_path: Path) -> None:
    """Nothing in use is pushed out for it, not even the pages that a running model has mapped."""
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.truncate(unused_memory() + MIB)
    assert read_files([path], lambda: True) == 0


def test_it_stops_once_nobody_wants_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.truncate(256 * MIB)
    answers = iter([True, True, False])
    assert read_files([path], lambda: next(answers)) == 128 * MIB


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    assert read_files([tmp_path / "model.gguf"], lambda: True) == 0
