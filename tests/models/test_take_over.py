"""`llm-switch add --from-llama-swap` and `--from-presets`: real units, the real llama-server, a real model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from models.conftest import Person
from support.stack import wait_for

SWAP = """\
globalTTL: 600
hooks: {{on_startup: {{preload: [small]}}}}
macros:
  server: /no/such/llama-server --port ${{PORT}}
models:
  small:
    cmd: |
      ${{server}}
      # the small one
      --model "{file}" --ctx-size 512 --threads 1
    aliases: [tiny, mine]
    env: ["OMP_NUM_THREADS=1"]
  mine:
    cmd: ${{server}} -m {file}
  gone:
    cmd: ${{server}} -m /no/such/file.gguf
  container:
    cmd: docker run image
"""
PRESETS = """\
version = 1
[*]
threads = 1
[{name}]
model = {file}
c = 512
jinja = true
"""


@pytest.fixture
def swap(person: Person, model_file: Path) -> Path:
    path = person.home / "llama swap.yaml"
    path.write_text(SWAP.format(file=model_file))
    return path


def _unit(person: Person, name: str) -> str:
    return (person.home / ".config/systemd/user" / name).read_text()


def test_a_model_of_llama_swap_answers(person: Person, swap: Path) -> None:
    """The others of the file are named, and nothing of them is left."""
    ran = person.run("add", "--from-llama-swap", str(swap))
    assert ran.returncode == 1
    assert "tokens per second" in ran.stdout
    assert person.models() == ["mine", "small"]
    entry = yaml.safe_load(person.config.read_text())["models"]["small"]
    assert entry == {"unit": "small.service", "aliases": ["tiny"], "ttl": 600}
    assert "Environment=OMP_NUM_THREADS=1" in _unit(person, "small.service")
    for reason in ("mine is not taken over: there is a model", "/no/such/file.gguf does not exist", "(docker)"):
        assert reason in ran.stdout
    assert "alias mine: another model has that name" in ran.stdout
    assert "hooks: write `server.preload`" in ran.stdout
    assert "1 added: small" in ran.stdout
    assert person.proxy.chat("tiny").status == 200


def test_a_preset_is_added_and_removed(person: Person, model_file: Path) -> None:
    before = person.files()
    path = person.home / "models.ini"
    path.write_text(PRESETS.format(name="org/small:Q8_0", file=model_file))
    ran = person.run("add", "--from-presets", str(path), "--no-try")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    text = _unit(person, "org-small:Q8_0.service")
    assert "--threads 1 -c 512 --jinja" in text
    assert "--fit" not in text
    assert person.run("remove", "org/small:Q8_0").returncode == 0
    assert person.files() == before


def test_a_dry_run_changes_nothing(person: Person, swap: Path) -> None:
    before = person.files()
    ran = person.run("add", "--from-llama-swap", str(swap), "--dry-run")
    assert "ExecStart=" in ran.stdout
    assert 'aliases: ["tiny"]' in ran.stdout
    assert "1 would be added: small" in ran.stdout
    assert person.files() == before


def test_two_names_with_one_unit_are_noticed_in_a_dry_run(person: Person, model_file: Path) -> None:
    path = person.home / "models.ini"
    sections = [PRESETS.format(name=name, file=model_file) for name in ("a/b", "a b", "a-b")]
    path.write_text("\n".join(sections))
    ran = person.run("add", "--from-presets", str(path), "--dry-run")
    assert "a-b is not taken over: another model of the file has the unit a-b.service already" in ran.stdout
    assert "1 would be added: a/b" in ran.stdout


def test_an_interrupt_leaves_the_models_that_were_added(person: Person, model_file: Path) -> None:
    """And nothing of the one that was being added, unless the signal came when that was done."""
    path = person.home / "models.ini"
    path.write_text("\n".join(PRESETS.format(name=name, file=model_file) for name in ("one", "two", "three")))
    code, said = person.interrupt("two.service", "add", "--from-presets", str(path), "--no-try")
    assert code == 1, said
    added = re.search(r"\d added: (.+)", said)
    assert added, said
    assert added[1] in ("one", "one, two")
    assert person.models() == ["mine", *added[1].split(", ")]
    linked = person.home / ".config/systemd/user"
    assert [(linked / f"{name}.service").is_symlink() for name in ("two", "three")] == ["two" in added[1], False]


def test_an_interrupt_when_a_model_is_complete_counts_it(person: Person, model_file: Path) -> None:
    """The line about its settings that have no counterpart is longer than a pipe takes, so the command waits in it."""
    settings = "\n".join(f"    setting-{number:040}: 1" for number in range(3000))
    path = person.home / "swap.yaml"
    command = f"    cmd: llama-server --port ${{PORT}} -m {model_file} --ctx-size 512"
    path.write_text(f"models:\n  one:\n{command}\n{settings}\n  two:\n{command}\n")
    words = (sys.executable, "-m", "systemd_llm_switch", "add", "--from-llama-swap", str(path), "--no-try")
    with subprocess.Popen(
        words, env=person.env, cwd=person.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        said = b""
        while b"without counterpart" not in said:
            said += os.read(process.stdout.fileno(), 4096)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: b"State:\tS" in Path(f"/proc/{process.pid}/status").read_bytes())
        said += process.stdout.read()
    assert b"1 added: one\n" in said
    assert b"interrupted; the rest was not added" in said
    assert person.models() == ["mine", "one"]


@pytest.mark.parametrize("text", ["models: [", "a: &a [x]\nmodels: *b\n", "x: 1\n"])
def test_a_broken_file_adds_nothing(person: Person, text: str) -> None:
    before = person.files()
    path = person.home / "broken.yaml"
    path.write_text(text)
    ran = person.run("add", "--from-llama-swap", str(path), "--no-try")
    assert ran.returncode == 1
    assert str(path) in ran.stderr
    assert "Traceback" not in ran.stderr
    assert person.files() == before


@pytest.mark.parametrize(
    "words",
    [("name", "--from-presets", "x"), ("--from-presets", "x", "--ctx", "5"), ("--from-presets", "x", "--", "-c"), ()],
)
def test_wrong_usage(person: Person, words: tuple[str, ...]) -> None:
    assert person.run("add", *words).returncode == 2
