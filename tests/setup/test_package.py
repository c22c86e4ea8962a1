"""The package as `pip install .` puts it into a clean environment, far from the clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.newcomer import Newcomer, get_json
from support.stack import ROOT, free_port
from systemd_llm_switch import __version__
from systemd_llm_switch.setup.user_manager import UserManager

pytestmark = [pytest.mark.systemd, pytest.mark.slow]  # it installs from an index, and runs the demo

PACKAGE = ROOT / "src/systemd_llm_switch"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh virtual environment, in a folder with a blank and an umlaut."""
    folder = tmp_path_factory.mktemp("package")
    files = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, files):  # a copy: a build writes into its folder
        copy = folder / "clone" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        source = ROOT / name
        if source.is_symlink():
            copy.symlink_to(source.readlink())
        elif source.is_file():
            copy.write_bytes(source.read_bytes())
    venv = folder / "my venv ü"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, str(folder / "clone")], check=True)
    return venv / "bin"


def files_of(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts}


def test_every_file_of_the_package_is_installed(installed: Path) -> None:
    there = next(installed.parent.glob("lib/python3*/site-packages/systemd_llm_switch"))
    assert files_of(PACKAGE) <= files_of(there)
    assert files_of(there / "setup/deploy") == {
        *(f"systemd/{name}" for name in files_of(ROOT / "deploy/systemd")),
        *(f"demo/{name}" for name in files_of(ROOT / "deploy/demo")),
        *(f"command/{name}" for name in files_of(ROOT / "deploy/command")),
        *(path.name for path in (ROOT / "deploy").glob("*.txt")),
    }


def test_the_command_knows_its_version(installed: Path) -> None:
    ran = subprocess.run([str(installed / "llm-switch"), "--version"], capture_output=True, text=True, check=False)
    assert ran.stdout == f"{__version__}\n"


@pytest.fixture
def visitor(tmp_path: Path) -> Iterator[Newcomer]:
    """Somebody without a user manager, whose PATH has the command."""
    answers = {"DEMO_PORT": str(free_port()), "DEMO_BACKEND_PORT": str(free_port())}
    person = Newcomer(tmp_path / "höme 1", tmp_path, None, answers)
    yield person
    manager = UserManager.of_home(person.home)
    if manager:
        manager.stop()


def command(installed: Path, person: Newcomer, *words: str) -> subprocess.CompletedProcess[str]:
    env = person.env | {"PATH": f"{installed}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(["llm-switch", *words], env=env, capture_output=True, text=True, timeout=900, check=False)


def test_the_demo_works_and_is_removed(installed: Path, visitor: Newcomer) -> None:
    shown = command(installed, visitor, "demo")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert re.search(r"demo-chat: .*\n +“\w.+”\n +switched in \d+\.\d\d s", shown.stdout), shown.stdout
    assert "Stop and remove everything: llm-switch uninstall\n" in shown.stdout
    assert "setup.sh" not in shown.stdout
    assert "    llm-switch chat demo-chat Name three fruits." in shown.stdout  # its folder is on the PATH
    models = get_json(f"http://127.0.0.1:{visitor.answers['DEMO_PORT']}/v1/models")
    assert [model["id"] for model in models["data"]] == ["demo-chat", "demo-writer", "demo-embed"]
    link = visitor.home / ".local/bin/llm-switch"
    assert link.readlink() == installed / "llm-switch"
    checked = command(installed, visitor, "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    removed = command(installed, visitor, "uninstall")
    assert removed.returncode == 0, removed.stderr
    folders = (".local", ".config", ".cache/systemd-llm-switch")
    assert [name for name in folders if (visitor.home / name).exists()] == []
