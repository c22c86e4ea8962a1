"""The command `llm-switch`: its verbs, its exit codes, and that a verb imports only what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.stack import ROOT
from systemd_llm_switch import __version__
from systemd_llm_switch.command.verbs import VERBS

ENV = os.environ | {"PYTHONPATH": str(ROOT / "src")}


def run(*words: str, code: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code else ["-m", "systemd_llm_switch", *words]
    return subprocess.run(
        [sys.executable, *program], env=ENV | (env or {}), capture_output=True, text=True, timeout=60, check=False
    )


def loaded_by(module: str) -> set[str]:
    """The packages of ours that importing a module loads."""
    code = (
        f"import sys, {module}; print(*{{m.split('.')[1] for m in sys.modules if m.startswith('systemd_llm_switch.')}})"
    )
    return set(run(code=code).stdout.split())


def test_the_entry_loads_no_verb() -> None:
    assert loaded_by("systemd_llm_switch.main") == {"main", "command"}


def test_serving_does_not_load_the_set_up() -> None:
    assert "setup" not in loaded_by("systemd_llm_switch.command.running")


def test_the_check_of_a_config_does_not_load_the_proxy() -> None:
    assert not {"api", "forward", "http_server"} & loaded_by("systemd_llm_switch.command.serve")


def test_serving_does_not_load_a_library_that_most_requests_do_not_need() -> None:
    """Each of them takes some MiB."""
    ran = run(code="import sys, systemd_llm_switch.command.serve; print(*sys.modules)")
    assert ran.stderr == ""
    assert not {"charset_normalizer", "prometheus_client", "json_repair"} & set(ran.stdout.split())


@pytest.mark.parametrize("words", [["status"], ["load", "a"], ["remove", "a"], ["add", "a", "/b.gguf", "--no-try"]])
@pytest.mark.parametrize("text", ["server: {prot: 1}\nmodels: {a: a.service}\n", "models: [\n"])
def test_a_config_that_cannot_be_used_is_named_once(words: list[str], text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    ran = run(*words, "--config", str(path))
    assert ran.returncode == 1
    assert ran.stderr.count(str(path)) == 1


def test_a_hold_that_is_too_long_is_refused_in_the_words_that_were_typed() -> None:
    ran = run("hold", "99999h")
    assert ran.returncode == 2
    assert "'99999h' is longer than 366 days" in ran.stderr


def test_chat_without_a_model_asks_for_nothing_else() -> None:
    assert run("chat").stderr.endswith("the following arguments are required: MODEL\n")


@pytest.mark.parametrize("verb", ["setup", "check", "demo", "uninstall"])
def test_the_set_up_does_not_load_the_proxy(verb: str) -> None:
    proxy = {
        "api",
        "backend",
        "config",
        "dialects",
        "forward",
        "http_server",
        "openai",
        "repair",
        "scheduler",
        "switching",
    }
    assert not proxy & loaded_by(f"systemd_llm_switch.command.{verb}")


def test_the_set_up_needs_the_standard_library_only() -> None:
    code = "import systemd_llm_switch.setup.steps"
    ran = subprocess.run([sys.executable, "-S", "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert ran.stderr == ""


def test_the_help_lists_every_verb_and_what_it_does() -> None:
    shown = run("--help").stdout
    for name, verb in VERBS.items():
        assert f"  {name.ljust(max(map(len, VERBS)))}  {verb.does}\n" in shown


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_has_its_help(name: str) -> None:
    ran = run(name, "--help")
    assert ran.returncode == 0
    assert ran.stdout.startswith(f"usage: python -m systemd_llm_switch {name} ")


def test_an_unknown_verb_is_wrong_usage() -> None:
    ran = run("stup")
    assert ran.returncode == 2
    assert "'stup' is not a verb; did you mean 'setup'? (serve, " in ran.stderr


@pytest.mark.parametrize(
    "words",
    [["--prot", "1"], ["serve", "--port", "0"], ["--host", "a..b"], ["setup", "--demo"], ["check", "now"]],
)
def test_wrong_options_are_wrong_usage(words: list[str]) -> None:
    ran = run(*words)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr


def test_the_version_is_in_one_place() -> None:
    assert run("--version").stdout == f"{__version__}\n"
    assert __version__ not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("verb", [[], ["serve"]])
def test_a_config_is_checked_with_and_without_the_verb(verb: list[str], tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("models: {a: a.service}\n")
    bad.write_text("models: {a: a.service}\nsurver: {}\n")
    assert run(*verb, "--config", str(good), "--check").returncode == 0
    ran = run(*verb, "--config", str(bad), "--check")
    assert ran.returncode == 1
    assert "surver" in ran.stderr


def test_config_says_which_file_is_in_force_and_why(tmp_path: Path) -> None:
    own, other = tmp_path / "systemd-llm-switch/config.yaml", tmp_path / "other.yaml"
    env = {"XDG_CONFIG_HOME": str(tmp_path), "LLM_SWITCH_CONFIG": ""}
    packaged = run("config", env=env).stdout
    own.parent.mkdir()
    own.touch()
    other.touch()
    assert packaged == f"{ROOT}/src/systemd_llm_switch/config.yaml\n  the packaged one, since {own} does not exist\n"
    assert run("config", env=env).stdout.startswith(f"{own}\n  your own; ")
    assert run("config", env=env | {"LLM_SWITCH_CONFIG": str(other)}).stdout == (
        f"{other}\n  named by $LLM_SWITCH_CONFIG\n"
    )
    assert run("config", "--config", str(other), env=env).stdout == f"{other}\n  named by --config\n"


def test_config_says_that_a_broken_file_is_not_in_force(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("models:\n\ta: a.service\n")
    ran = run("config", "--config", str(tmp_path / "config.yaml"))
    assert "it has a mistake" in ran.stderr


def test_config_that_names_a_missing_file_fails(tmp_path: Path) -> None:
    ran = run("config", "--config", str(tmp_path / "none.yaml"))
    assert ran.returncode == 1
    assert "none.yaml does not exist" in ran.stderr
