"""What a unit's command says of contexts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.stack import wait_for
from systemd_llm_switch.contexts.unit import Command

Make = Callable[..., Command]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A command that runs a binary with a model; both are files."""
    (tmp_path / "llama-server").write_text("binary")
    (tmp_path / "m.gguf").write_text("weights")

    def command(*options: str, environment: tuple[str, ...] = ()) -> Command:
        arguments = [f"{tmp_path}/llama-server", "-m", f"{tmp_path}/m.gguf", *options]
        return Command.of(arguments, environment)

    return command


def test_the_folder_is_read_from_the_flag(make: Make) -> None:
    assert make("--slot-save-path", "/some/where/").folder == Path("/some/where")


def test_the_folder_is_read_from_the_environment(make: Make) -> None:
    assert make(environment=("LLAMA_ARG_SLOT_SAVE_PATH=/some/where",)).folder == Path("/some/where")


def test_the_last_flag_counts(make: Make) -> None:
    assert make("--slot-save-path", "/a", "--slot-save-path", "/b").folder == Path("/b")


def test_the_folder_is_found_in_a_shells_script() -> None:
    command = Command.of(["/bin/sh", "-c", "exec llama-server -m '/m m.gguf' --slot-save-path '/a b/c'"])
    assert command.folder == Path("/a b/c")


def test_without_the_flag_the_problem_names_it(make: Make) -> None:
    assert "--slot-save-path" in str(make().problem)


def test_a_hidden_slots_endpoint_is_named(make: Make) -> None:
    assert "--no-slots" in str(make("--slot-save-path", "/a", "--no-slots").problem)


def test_a_model_without_a_file_is_named() -> None:
    command = Command.of(["/bin/llama-server", "-hf", "org/model", "--slot-save-path", "/a"])
    assert "--model" in str(command.problem)


def test_a_good_unit_has_no_problem(make: Make) -> None:
    assert make("--slot-save-path", "/a").problem is None


def test_the_same_command_has_the_same_binding(make: Make) -> None:
    assert make("-c", "4096").binding() == make("-c", "4096").binding()


@pytest.mark.parametrize("file", ["llama-server", "m.gguf"])
def test_another_size_of_a_file_is_another_binding(make: Make, tmp_path: Path, file: str) -> None:
    before = make().binding()
    (tmp_path / file).write_text("longer than it was")
    assert make().binding() != before


@pytest.mark.parametrize("file", ["llama-server", "m.gguf"])
def test_another_time_of_a_file_is_another_binding(make: Make, tmp_path: Path, file: str) -> None:
    before = make().binding()
    os.utime(tmp_path / file, (1, 1))
    assert make().binding() != before


def test_another_argument_is_another_binding(make: Make) -> None:
    assert make("-c", "4096").binding() != make("-c", "8192").binding()


def test_another_environment_is_another_binding(make: Make) -> None:
    assert make().binding() != make(environment=("LLAMA_ARG_CTX_SIZE=1",)).binding()


def test_each_part_of_a_split_model_counts(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_text("weights")
    command = Command.of(["/bin/llama-server", "-m", f"{tmp_path}/m-00001-of-00002.gguf"])
    before = command.binding()
    (tmp_path / "m-00002-of-00002.gguf").write_text("other weights")
    assert command.binding() != before


def test_a_process_is_compared_by_its_whole_command() -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        try:
            same = Command.of(["/bin/sleep", "60"])
            wait_for(lambda: same.is_run_by(process.pid))  # the kernel tells a moment after the start
            assert not Command.of(["/bin/sleep", "61"]).is_run_by(process.pid)
        finally:
            process.kill()
    assert not Command.of(["/bin/sleep", "60"]).is_run_by(process.pid)


def test_a_model_for_embeddings_has_no_conversations(make: Make) -> None:
    assert "embeddings" in str(make("--embedding").problem)


def test_a_unit_without_a_command_has_the_problem_of_one_without_the_flag() -> None:
    """One that is missing, say."""
    assert "--slot-save-path" in str(Command.of([]).problem)


def test_a_flag_without_a_value_names_no_folder(make: Make) -> None:
    assert make("--slot-save-path").folder is None
