"""Owns what the set-up knows of the proxy: its config, as the package itself reads it, and whether it answers."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from installer.places import Places, SetupError

UNIT = "llm-switch.service"

# Runs in .venv, since the package and PyYAML are there and not here.
_READ_CONFIG = """
import json, os, sys
from systemd_llm_switch import config_file
path = config_file.find(None, os.environ)
try:
    read = config_file.load(path)
except config_file.ConfigError as error:
    told = {"problems": [str(problem) for problem in error.problems]}
else:
    models = {model.id: model.unit for model in read.models.values()}
    told = {"problems": [], "host": read.server.host, "port": read.server.port, "models": models}
json.dump({"path": str(path), **told}, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """What the set-up needs of the config in force."""

    path: Path
    problems: tuple[str, ...]
    url: str  # where this machine reaches the proxy
    models: Mapping[str, str]  # id -> unit

    @classmethod
    def read(cls, places: Places, environ: Mapping[str, str]) -> ProxyConfig:
        if not places.venv_python.exists():
            raise SetupError("nothing is set up here yet: run ./setup.sh")
        command = [str(places.venv_python), "-c", _READ_CONFIG]
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SetupError(f"the package in .venv does not run:\n{ran.stderr.strip()}")
        told = json.loads(ran.stdout)
        url = f"http://{_reachable(told.get('host', '127.0.0.1'))}:{told.get('port', 3002)}"
        return cls(Path(told["path"]), tuple(told["problems"]), url, told.get("models", {}))


def wait_until_healthy(url: str, within_s: float = 30) -> None:
    """Raises SetupError when /health does not answer in time."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise SetupError(f"{url}/health does not answer: {error}") from error
        time.sleep(0.05)


def post(url: str, body: Mapping[str, object], timeout_s: float = 180) -> tuple[dict[str, object], str]:
    """The reply and its Server-Timing header. Raises SetupError with the proxy's own message."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            return json.load(reply), reply.headers.get("Server-Timing", "")
    except urllib.error.HTTPError as error:
        raise SetupError(f"the proxy answered {error.code}: {_message(error.read())}") from error
    except OSError as error:
        raise SetupError(f"no answer from {url}: {error}") from error


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]


def _reachable(host: str) -> str:
    """An address to connect to, for one to listen on."""
    named = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{named}]" if ":" in named else named
