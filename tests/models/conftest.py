"""A person with a proxy that runs, a real llama-server, and models to add."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.newcomer import ANSWERS, tree_sums
from support.ports import free_port
from support.stack import ROOT, Proxy, Stack
from systemd_llm_switch.setup.user_manager import UserManager

ONE_THREAD = ("--", "--threads", "1")


@dataclass
class Person:
    """Their home, their config with one model of their own, and their proxy."""

    stack: Stack
    home: Path
    config: Path
    env: dict[str, str]
    proxy: Proxy

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`llm-switch` with these words."""
        command = [sys.executable, "-m", "systemd_llm_switch", *words]
        return subprocess.run(
            command, env=self.env | env, cwd=self.home, capture_output=True, text=True, timeout=240, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def interrupt(self, line: str, *words: str, number: int = signal.SIGINT) -> tuple[int, str]:
        """The same, with a signal once a line with this text was printed. Returns the exit code and all output."""
        process = subprocess.Popen(
            [sys.executable, "-m", "systemd_llm_switch", *words],
            env=self.env, cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1,
        )  # fmt: skip
        assert process.stdout is not None
        said = ""
        for text in process.stdout:
            said += text
            if line in text:
                process.send_signal(number)
                break
        said += process.stdout.read()
        return process.wait(60), said

    def files(self) -> dict[str, str]:
        """Every file that `add` may change, by its checksum; the links by what they lead to."""
        folders = (self.home / ".config", self.home / ".local/share")
        links = {str(it): str(it.readlink()) for folder in folders for it in folder.rglob("*") if it.is_symlink()}
        sums = {f"{folder}/{name}": it for folder in folders for name, it in tree_sums(folder).items()}
        return sums | links

    def models(self) -> list[str]:
        models: list[dict[str, str]] = self.proxy.get("/v1/models").json["data"]
        return [model["id"] for model in models]


CONFIG = """\
# My models. This comment stays.
server:
  port: {port}   # mine
  llama_url: http://127.0.0.1:{backend}

models:
  # the first one
  mine: {unit}   # not to be touched

# the end
"""


@pytest.fixture
def person(manager: UserManager, llama_server: Path, stack: Stack) -> Iterator[Person]:
    """With a proxy that reads their config."""
    home = Path(manager.env["HOME"])
    port = free_port()
    config = home / ".config/systemd-llm-switch/config.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(CONFIG.format(port=port, backend=stack.port, unit=stack.standin("mine")))
    gone = {*ANSWERS, "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "LLM_SWITCH_API_KEY"}
    env = {name: value for name, value in manager.env.items() if name not in gone}
    env |= {"PYTHONPATH": str(ROOT / "src"), "LLAMA_SERVER_PATH": str(llama_server)}
    stack.config_path = config
    proxy = stack.start_proxy("--port", str(port), wait=False)
    proxy.port = port
    stack.wait_until_up(proxy)
    yield Person(stack, home, config, env, proxy)
    stack.close()
    for unit in (home / ".local/share/systemd-llm-switch/units").glob("*.service"):
        stack.systemctl("kill", "--signal=SIGKILL", unit.name, check=False)
        stack.systemctl("stop", unit.name, check=False)
        stack.systemctl("reset-failed", unit.name, check=False)
        (home / ".config/systemd/user" / unit.name).unlink(missing_ok=True)
    shutil.rmtree(home / ".local/share/systemd-llm-switch", ignore_errors=True)
    shutil.rmtree(config.parent)
    stack.systemctl("daemon-reload")  # the next person's unit has the same name
