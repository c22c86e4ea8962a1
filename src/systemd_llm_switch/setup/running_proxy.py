"""The running proxy, as the set-up sees it: its config, as the package itself reads it, and whether it answers."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from systemd_llm_switch import advice
from systemd_llm_switch.addresses import http_url
from systemd_llm_switch.setup.places import Places, SetupError

UNIT = "llm-switch.service"
_MOST_READ = 64 * 1024
_MOST_STATUS = 16 * 1024 * 1024

# Runs with the proxy's Python: the set-up's own Python does not have the package's dependencies.
_READ_CONFIG = """
import json, os, sys
from systemd_llm_switch.config import file as config_file
path = config_file.find(None, os.environ)
try:
    read = config_file.load(path)
except config_file.ConfigError as error:
    known = {"problems": [str(problem) for problem in error.problems]}
else:
    models = {model.id: model.unit for model in read.models.values()}
    urls = {model.id: model.llama_url for model in read.models.values()}
    known = {"problems": [], "host": read.server.host, "port": read.server.port, "models": models, "urls": urls}
    known |= {"key": next(iter(read.server.api_keys), ""), "warnings": config_file.warnings(path)}
    known["keep"] = [model.id for model in read.models.values() if model.contexts and read.server.contexts.max_gb]
json.dump({"path": str(path), **known}, sys.stdout)
"""


class OtherProgram(SetupError):
    """Another program answers where the proxy should. `fix` says how to find it, and what to do."""

    def __init__(self, url: str) -> None:
        super().__init__(f"what answers at {url} is not this proxy, but another program")
        see = advice.who_listens(url.rpartition(":")[2])
        self.fix = f"{see}   # shows which; stop it, or set another server.port"


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """What the set-up needs of the config in force."""

    path: Path
    problems: tuple[str, ...]
    url: str  # where this machine reaches the proxy
    models: Mapping[str, str]  # id -> unit
    urls: Mapping[str, str] = field(default_factory=dict)  # id -> where its llama-server is asked
    key: str = field(default="", repr=False)  # one that the proxy takes, if it asks for any
    warnings: tuple[str, ...] = ()  # what is unwise about it; each says what to do
    keep: tuple[str, ...] = ()  # the ids of the models whose contexts it wants kept

    @classmethod
    def read(cls, places: Places, environ: Mapping[str, str]) -> ProxyConfig:
        if not places.python.exists():
            raise SetupError(f"nothing is set up here yet: run {places.how_to()}")
        command = [str(places.python), "-P", "-c", _READ_CONFIG]
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SetupError(f"the package does not run with {places.python}:\n{ran.stderr.strip()}")
        known = json.loads(ran.stdout)
        url = http_url(known.get("host", "127.0.0.1"), known.get("port", 3002))
        return cls(
            Path(known["path"]),
            tuple(known["problems"]),
            url,
            known.get("models", {}),
            known.get("urls", {}),
            known.get("key", ""),
            tuple(known.get("warnings", ())),
            tuple(known.get("keep", ())),
        )


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """What a running proxy reports."""

    config: str  # the file that it reads
    config_error: str  # why an edit of it is not in force; empty if it is
    last_errors: Mapping[str, str]  # model -> why its last load failed
    is_on_hold: bool = False
    hold_until: float | None = None  # seconds since the epoch; None for a hold without an end

    @classmethod
    def ask(cls, config: ProxyConfig) -> ProxyStatus:
        """
        Raises:
            OtherProgram, SetupError: another program answers, or nothing does.
        """
        request = urllib.request.Request(f"{config.url}/api/status", headers=_key_header(config.key))
        try:
            with _open(request, timeout_s=5) as reply:
                known = json.loads(reply.read(_MOST_STATUS))
            errors = {name: model["last_error"] for name, model in known["models"].items() if model["last_error"]}
            where, hold = known["config"], (bool(known.get("on_hold")), known.get("hold_until"))
            return cls(where["path"], where["error"] or "", errors, *hold)
        except urllib.error.HTTPError as error:
            message = _message(error.read(_MOST_READ))
            if message is None:
                raise OtherProgram(config.url) from error
            raise SetupError(f"{config.url} answers {error.code}: {message}") from error
        except OSError as error:
            raise SetupError(f"nothing answers at {config.url}: {getattr(error, 'reason', error)}") from error
        except (ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException) as error:
            raise OtherProgram(config.url) from error


def wait_until_healthy(url: str, within_s: float = 30) -> None:
    """Raises SetupError when /health does not answer in time."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            with _open(urllib.request.Request(f"{url}/health"), timeout_s=2):
                return
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                raise SetupError(f"{url}/health does not answer: {error}") from error
        time.sleep(0.05)


def post(url: str, body: Mapping[str, object], timeout_s: float = 180) -> tuple[dict[str, object], str]:
    """The reply and its Server-Timing header. Raises SetupError with the proxy's own message."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with _open(request, timeout_s) as reply:
            return json.load(reply), reply.headers.get("Server-Timing", "")
    except urllib.error.HTTPError as error:
        message = _message(error.read(_MOST_READ)) or "the answer is not this proxy's"
        raise SetupError(f"{url} answered {error.code}: {message}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise SetupError(f"no answer from {url}: {error}") from error


def _key_header(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _open(request: urllib.request.Request, timeout_s: float) -> Any:
    """Opens a request without the environment's HTTP proxy: the address is on this machine."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout_s)


def _message(body: bytes) -> str | None:
    """The error's message, if our proxy sent it."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None
