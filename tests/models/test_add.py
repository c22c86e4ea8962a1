"""`llm-switch add` and `remove`: real units, the real llama-server, real models."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from models.conftest import ONE_THREAD, Person
from models.made import split
from systemd_llm_switch.setup.install import remove_obsolete
from systemd_llm_switch.setup.ledger import Ledger
from systemd_llm_switch.setup.llama_server import wheel
from systemd_llm_switch.setup.places import Places


def test_a_model_is_added_and_answers(person: Person, model_file: Path) -> None:
    before = person.config.read_text()
    ran = person.run("add", "small", str(model_file), "--ctx", "2048", *ONE_THREAD)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "tokens per second" in ran.stdout
    assert person.proxy.state("small") == "ready"
    assert person.config.read_text() == before.replace("touched\n", 'touched\n  small: "small.service"\n')


def test_remove_undoes_it(person: Person, model_file: Path) -> None:
    """Its folders too."""
    before, folders = person.files(), sorted(person.home.glob(".local/**"))
    assert person.run("add", "small", str(model_file), "--no-try").returncode == 0
    assert person.models() == ["mine", "small"]
    ran = person.run("remove", "small")
    assert ran.returncode == 0, ran.stderr
    assert person.files() == before
    assert sorted(person.home.glob(".local/**")) == folders
    assert person.models() == ["mine"]


def edit_full(person: Person, unit: str, change: str) -> None:
    """`systemctl --user edit --full`, which wants a terminal."""
    ours, theirs = pty.openpty()
    edit = ["systemctl", "--user", "edit", "--full", unit]
    env = person.env | {"SYSTEMD_EDITOR": f"sed -i {change}"}
    try:
        subprocess.run(edit, env=env, check=True, stdin=theirs, stdout=theirs, stderr=theirs, timeout=30)
    finally:
        os.close(theirs)
        os.close(ours)


def test_a_unit_edited_with_systemctl_edit_full_is_removed_with_its_model(person: Person, model_file: Path) -> None:
    """`edit --full` puts a file in the place of the link; the name is free afterwards, and the edit is kept aside."""
    assert person.run("add", "small", str(model_file), "--no-try").returncode == 0
    edit_full(person, "small.service", "s/--jinja/--no-jinja/")
    link = person.home / ".config/systemd/user/small.service"
    assert not link.is_symlink()
    ran = person.run("remove", "small")
    assert ran.returncode == 0, ran.stderr
    assert not link.exists()
    assert "your edit is now ~/.local/share/systemd-llm-switch/units/small.service" in ran.stderr + ran.stdout
    assert "--no-jinja" in (person.home / ".local/share/systemd-llm-switch/units/small.service").read_text()
    again = person.run("add", "small", str(model_file), "--no-try")
    assert "already" in again.stderr


@pytest.mark.parametrize("wrong", ["/no/such/llama-server", "/bin/true"])
def test_a_wrong_llama_server_is_named(person: Person, model_file: Path, wrong: str) -> None:
    before = person.files()
    ran = person.run("add", "small", str(model_file), "--no-try", LLAMA_SERVER_PATH=wrong)
    assert ran.returncode == 1
    assert wrong in ran.stderr
    assert person.files() == before


def test_another_chat_model_answers(person: Person, gemma_file: Path) -> None:
    ran = person.run("add", "gemma", str(gemma_file), "--ctx", "1024", *ONE_THREAD)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "tokens per second" in ran.stdout


def test_an_embedder_on_the_cpu_runs_beside_the_others(person: Person, model_file: Path) -> None:
    """It gives a vector, and the model that was loaded stays."""
    assert person.proxy.chat("mine").status == 200
    ran = person.run("add", "vectors", str(model_file), "--embedding", "--cpu", "--ctx", "512", *ONE_THREAD)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "a vector of 576 numbers" in ran.stdout
    assert person.proxy.state("mine") == person.proxy.state("vectors") == "ready"


def test_a_split_model_is_added_by_its_first_part(person: Person, model_file: Path, tmp_path: Path) -> None:
    """In a folder with a blank, a dollar, a percent sign and an umlaut."""
    folder = tmp_path / "größe $5 100%"
    folder.mkdir()
    parts = split(model_file, folder, 2)
    ran = person.run("add", "parts", str(parts[0]), "--ctx", "512", *ONE_THREAD)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_dry_run_shows_and_changes_nothing(person: Person, model_file: Path) -> None:
    before = person.files()
    ran = person.run("add", "small", str(model_file), "--dry-run")
    assert ran.returncode == 0, ran.stderr
    assert "ExecStart=" in ran.stdout
    assert 'small: "small.service"' in ran.stdout
    assert person.files() == before


def test_after_the_demo_its_llama_server_is_used(person: Person, model_file: Path) -> None:
    """The demo asks no question, so nothing says where one is."""
    ready_made = wheel(Places.of(person.env))
    ready_made.parent.mkdir(parents=True)
    ready_made.symlink_to(person.env["LLAMA_SERVER_PATH"])
    ran = person.run("add", "small", str(model_file), "--dry-run", LLAMA_SERVER_PATH="", PATH="/usr/bin:/bin")
    assert ran.returncode == 0, ran.stderr
    assert f"ExecStart={ready_made} " in ran.stdout


def test_without_a_proxy_it_says_so_before_anything_is_done(person: Person, model_file: Path) -> None:
    person.proxy.stop()
    before = person.files()
    ran = person.run("add", "small", str(model_file))
    assert ran.returncode == 3
    assert "no proxy answers" in ran.stderr
    assert person.files() == before


def test_the_check_of_a_moved_file_says_to_add_the_model_anew(person: Person, model_file: Path, tmp_path: Path) -> None:
    """The set-up, which finds the files of its own models, does not change an added unit."""
    here = tmp_path / "here.gguf"
    here.symlink_to(model_file)
    assert person.run("add", "small", str(here), "--no-try").returncode == 0
    here.unlink()
    ran = person.run("check")
    assert "! small: no model file" in ran.stdout
    assert "put it back, or: llm-switch remove small, and add it anew where it is now" in ran.stdout


def test_a_model_that_add_did_not_add_is_not_removed(person: Person) -> None:
    ran = person.run("remove", "mine")
    assert ran.returncode == 1
    assert "not ours to remove" in ran.stderr


def test_a_model_that_is_not_there_is_not_removed(person: Person) -> None:
    ran = person.run("remove", "nobody")
    assert ran.returncode == 1
    assert "the models are mine" in ran.stderr


def test_a_set_up_leaves_an_added_unit_alone(person: Person, model_file: Path) -> None:
    """What a set-up removes is what is no longer shipped."""
    assert person.run("add", "small", str(model_file), "--no-try").returncode == 0
    places = Places.of(person.env)
    ledger = Ledger.load(places)
    assert remove_obsolete([], places, ledger) == []
    assert (places.linked / "small.service").exists()
