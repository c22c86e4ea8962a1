"""A person who sets the project up: a fresh HOME, a copy of the repository, a user manager of their own."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.stack import ROOT
from systemd_llm_switch.setup.python_env import STAMP
from systemd_llm_switch.setup.user_manager import FOREIGN_VARIABLES, UserManager

COPIED = ("deploy", "src", "tests/test_smoke.py", "requirements.txt", "setup.sh")
# What the machine that runs the tests has set must not answer the set-up's questions.
ANSWERS = ("LLAMA_SERVER_PATH", "MODELS_DIR", "LLM_SWITCH_CONFIG", "LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE")


def copy_repository(target: Path) -> Path:
    """The files that a clone holds, as far as the set-up needs them; and bytecode, which the proxy's sandbox would not
    let it write: each start would compile the package."""
    for name in COPIED:
        source = ROOT / name
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.exists():
            shutil.copy2(source, target / name)
    return target


def lend_venv(repository: Path, *, is_whole: bool = True) -> None:
    """A `.venv` as an earlier set-up made it, from the packages of this environment; with pip alone if not `is_whole`.
    For tests that are not about making one, which takes nine seconds of CPU time."""
    venv, requirements = repository / ".venv", repository / "requirements.txt"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    target = next(venv.glob("lib/python3*/site-packages"))
    wanted = re.findall(r"^([\w.-]+)==", requirements.read_text(), re.MULTILINE) if is_whole else []
    for name in ("pip", *wanted):
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts:
                copy = target / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(str(file.locate())), copy)
    if is_whole:
        (venv / STAMP).write_text(hashlib.sha256(requirements.read_bytes()).hexdigest())


def tree_sums(folder: Path) -> dict[str, str]:
    """Every file's checksum, without what the set-up may make."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".venv" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass
class Newcomer:
    """One person on one machine. `manager` is None for a machine where no user manager runs."""

    home: Path
    repository: Path
    manager: UserManager | None
    answers: dict[str, str] = field(default_factory=dict)
    _settled: dict[str, object] = field(default_factory=dict, repr=False)

    @property
    def env(self) -> dict[str, str]:
        gone = FOREIGN_VARIABLES | set(ANSWERS) | {"XDG_RUNTIME_DIR"}
        kept = {name: value for name, value in os.environ.items() if name not in gone}
        caches = {"PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache/pip"))}
        own = {
            "HOME": str(self.home),
            **({"XDG_RUNTIME_DIR": str(self.manager.runtime_dir)} if self.manager else {}),
        }
        return kept | caches | own | self.answers

    @property
    def rendered(self) -> Path:
        return self.home / ".local/share/systemd-llm-switch/units"

    @property
    def linked(self) -> Path:
        return self.home / ".config/systemd/user"

    @property
    def config(self) -> Path:
        return self.home / ".config/systemd-llm-switch/config.yaml"

    def settle(self) -> None:
        """Sets everything up, unless all is still as the last call left it."""
        if self._settled and self._found() == self._settled:
            return
        ran = self.setup("--yes")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        self._settled = self._found()

    def _found(self) -> dict[str, object]:
        """All that the set-up makes or reads, and what the running proxy knows. Empty if none answers."""
        folders = (self.home / ".config", self.home / ".local", *(self.repository / name for name in ("deploy", "src")))
        paths = (path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts)
        files: dict[str, object] = {
            str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes()
            for path in paths
            if path.is_symlink() or path.is_file()
        }
        port = re.search(r"^  port: (\d+)", self.config.read_text(), re.MULTILINE) if self.config.exists() else None
        try:
            status = get_json(f"http://127.0.0.1:{port[1] if port else 3002}/api/status")
        except OSError:
            return {}
        unit = self.systemctl("show", "-p", "ActiveState,NeedDaemonReload", "llm-switch.service")
        models = {name: (it["state"], it["last_error"]) for name, it in status["models"].items()}
        return {**files, "unit": unit, "models": models, "hold": status["on_hold"], "error": status["config"]["error"]}

    def setup(self, *options: str, timeout_s: float = 300, **answers: object) -> subprocess.CompletedProcess[str]:
        """Runs ./setup.sh without a terminal."""
        env = self.env | {name: str(value) for name, value in answers.items()}
        return subprocess.run(
            [str(self.repository / "setup.sh"), *options],
            env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def setup_on_terminal(self, *typed: str, timeout_s: float = 120) -> str:
        """Runs ./setup.sh on a pseudo-terminal, types a line at each prompt, returns all that was shown."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(str(self.repository / "setup.sh"), ["setup.sh"], self.env)
        shown, left, deadline = b"", list(typed), time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                chunk = os.read(terminal, 4096)
            except OSError:  # EIO: the other side is closed
                break
            shown += chunk
            if left and shown.rstrip().endswith(b"]:"):
                os.write(terminal, left.pop(0).encode() + b"\n")
        os.close(terminal)
        os.waitpid(pid, 0)
        return shown.decode()

    def systemctl(self, *arguments: str) -> str:
        """The output of `systemctl --user`, whatever its exit code."""
        command = ["systemctl", "--user", "--no-pager", *arguments]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=False).stdout.strip()


def get_json(url: str, body: object = None) -> Any:
    """GET, or POST with a body."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=120) as reply:
        return json.load(reply)
