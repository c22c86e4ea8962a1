"""`llm-switch add` and `remove`: real units, the real llama-server, real models."""

from __future__ import annotations

from pathlib import Path

from models.conftest import ONE_THREAD, Person


def test_a_model_is_added_and_answers(person: Person, model_file: Path) -> None:
    before = person.config.read_text()
    ran = person.run("add", "small", str(model_file), "--ctx", "2048", *ONE_THREAD)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "tokens per second" in ran.stdout
    assert person.proxy.state("small") == "ready"
    assert person.config.read_text() == before.replace("touched\n", 'touched\n  small: "small.service"\n')


def test_remove_undoes_it(person: Person, model_file: Path) -> None:
    before = person.files()
    assert person.run("add", "small", str(model_file), "--no-try").returncode == 0
    assert person.models() == ["mine", "small"]
    ran = person.run("remove", "small")
    assert ran.returncode == 0, ran.stderr
    assert person.files() == before
    assert person.models() == ["mine"]
