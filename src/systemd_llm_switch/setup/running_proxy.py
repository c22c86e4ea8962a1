"""Owns what the set-up knows of the proxy: its config, as the package itself reads it, and whether it answers."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from systemd_llm_switch.setup.places import Places, SetupError

UNIT = "llm-switch.service"

# Runs in .venv, since the package and PyYAML are there and not here.
_READ_CONFIG = """
import json, os, sys
from systemd_llm_switch.config import file as config_file
path = config_file.find(None, os.environ)
try:
    read = config_file.load(path)
except config_file.ConfigError as error:
    told = {"problems": [str(problem) for problem in error.problems]}
else:
    models = {model.id: model.unit for model in read.models.values()}
    key = next(iter(read.server.api_keys), "")
    told = {"problems": [], "host": read.server.host, "port": read.server.port, "models": models, "key": key}
json.dump({"path": str(path), **told}, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """What the set-up needs of the config in force."""

    path: Path
    problems: tuple[str, ...]
    url: str  # where this machine reaches the proxy
    models: Mapping[str, str]  # id -> unit
    key: str = field(default="", repr=False)  # one that the proxy takes, if it asks for any

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
        return cls(Path(told["path"]), tuple(told["problems"]), url, told.get("models", {}), told.get("key", ""))


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """What a running proxy tells of itself."""

    config: str  # the file that it reads
    config_error: str  # why an edit of it is not in force; empty when it is
    last_errors: Mapping[str, str]  # model -> why it could not be loaded when it was last wanted

    @classmethod
    def ask(cls, config: ProxyConfig) -> ProxyStatus:
        """Raises SetupError when nothing answers, or something else than this proxy."""
        request = urllib.request.Request(f"{config.url}/api/status", headers=_key_header(config.key))
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                told = json.load(reply)
            errors = {name: model["last_error"] for name, model in told["models"].items() if model["last_error"]}
            return cls(told["config"]["path"], told["config"]["error"] or "", errors)
        except urllib.error.HTTPError as error:
            raise SetupError(f"{config.url} answers {error.code}: {_message(error.read())}") from error
        except OSError as error:
            raise SetupError(f"nothing answers at {config.url}: {getattr(error, 'reason', error)}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SetupError(f"what answers at {config.url} is not this proxy") from error


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


def _key_header(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]


def _reachable(host: str) -> str:
    """An address to connect to, for one to listen on."""
    named = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{named}]" if ":" in named else named
