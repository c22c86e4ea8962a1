"""A stack for a test: units in a private user manager, a config file, and the proxy in its own process."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import py_compile
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from support import prefork
from support.ports import free_port as free_port  # the tests take it from here

ROOT = Path(__file__).resolve().parents[2]
STANDIN = Path(__file__).with_name("standin.py")

_READ_AT_START = {"PYTHONPATH", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"}  # by Python and by glibc
_PROXY_UNIT = ROOT / "deploy/systemd/llm-switch.service"
PATIENCE_S = 60  # so long that only a claim that never comes true reaches it, on a busy machine, too


def wait_for(claim: Callable[[], Any], timeout_s: float = PATIENCE_S, what: str = "") -> Any:
    """The first true value of `claim`; AssertionError when it stays false."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = claim()
        if value:
            return value
        assert time.monotonic() < deadline, f"never came true within {timeout_s} s: {what or claim}"
        time.sleep(0.02)


@dataclass
class Answer:
    """What the proxy answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, which must have OpenAI's shape."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) >= {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str)
        return error

    @property
    def text(self) -> str:
        text: str = self.json["choices"][0]["message"]["content"]
        return text

    @property
    def events(self) -> list[Any]:
        """The data events of a stream, `[DONE]` as text."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    def timing(self, name: str) -> float:
        """Milliseconds from Server-Timing."""
        parts = dict(part.strip().split(";dur=") for part in self.headers["server-timing"].split(","))
        return float(parts[name])


def chat(model: str, content: str = "Say hi.", **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}


@dataclass
class Proxy:
    """A running proxy."""

    port: int
    process: subprocess.Popen[bytes] | prefork.Forked
    log_path: Path
    connections: threading.local = field(default_factory=threading.local)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 60,
    ) -> Answer:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.request(method, path, data, headers or {})
            reply = connection.getresponse()
            headers_seen = {name.lower(): value for name, value in reply.getheaders()}
            return Answer(reply.status, headers_seen, reply.read())

    def get(self, path: str, **more: Any) -> Answer:
        return self.request("GET", path, **more)

    def post(self, path: str, body: Any, **more: Any) -> Answer:
        return self.request("POST", path, body, **more)

    def chat(self, model: str, content: str = "Say hi.", **fields: Any) -> Answer:
        return self.post("/v1/chat/completions", chat(model, content, **fields))

    def status(self) -> Any:
        return self.get("/api/status").json

    def state(self, model: str) -> str:
        state: str = self.status()["models"][model]["state"]
        return state

    def stop(self, timeout_s: float = 40) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Stack:
    """Units and proxies of one test; all of it is gone after `close`."""

    def __init__(self, env: dict[str, str], folder: Path, prefix: str) -> None:
        self.env = env
        self.folder = folder
        # The journal is shared with other runs and workers: their units need other names.
        self.prefix = f"{prefix}-{os.getpid()}"
        self.port = free_port()
        self.config_path = folder / "config.yaml"
        self.units: list[str] = []
        self.proxies: list[Proxy] = []
        self._unit_folder = Path(env["HOME"]) / ".config" / "systemd" / "user"
        self._unit_folder.mkdir(parents=True, exist_ok=True)

    # --- units ---

    def unit(self, name: str, command: str, *, service: str = "", reload: bool = True) -> str:
        """Writes a unit and returns its name, which no other test uses."""
        unit = f"{self.prefix}-{name}.service"
        text = f"[Service]\nType=exec\nExecStart={command}\nTimeoutStopSec=5\n{service}\n"
        (self._unit_folder / unit).write_text(text)
        if unit not in self.units:
            self.units.append(unit)  # a new one is found without a reload
        elif reload:
            self.systemctl("daemon-reload")
        return unit

    def standin(self, name: str, *options: str, port: int | None = None, service: str = "") -> str:
        """A unit that runs the stand-in backend."""
        # Compiled, and without `site`, since it needs Python alone: that halves what its start costs.
        python = [sys.executable, "-I", "-S", _compiled(STANDIN)]
        words = [*python, "--port", str(port or self.port), "--name", name, *options]
        return self.unit(name, shlex.join(words), service=service)

    def delete_unit(self, unit: str) -> None:
        (self._unit_folder / unit).unlink()
        self.systemctl("daemon-reload")

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["systemctl", "--user", "--no-pager", *arguments],
            env=self.env, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"systemctl {arguments}: {done.stderr}"
        return done.stdout

    def active_state(self, unit: str) -> str:
        return self.systemctl("show", "-p", "ActiveState", "--value", unit).strip()

    def main_pid(self, unit: str) -> int:
        return int(self.systemctl("show", "-p", "MainPID", "--value", unit))

    def freeze_main(self, unit: str) -> int:
        """`freeze`, for the unit's process. Returns its pid."""
        pid = self.main_pid(unit)
        freeze(pid)
        return pid

    def kill_main(self, unit: str) -> None:
        """SIGKILL for the unit's process. It has ended when this returns: on a busy machine a signal takes a while."""
        process = os.pidfd_open(self.main_pid(unit))
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            assert select.select([process], [], [], PATIENCE_S)[0], f"{unit} survived SIGKILL"
        finally:
            os.close(process)

    def seen(self, port: int | None = None) -> Any:
        """What the stand-in saw."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/standin")
            return json.loads(connection.getresponse().read())

    def answers(self, port: int | None = None) -> bool:
        """Whether a stand-in listens."""
        try:
            return bool(self.seen(port))
        except OSError:
            return False

    def release(self, port: int | None = None) -> None:
        """Lets the stand-in answer what waits for this, now and later."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port or self.port}/standin/release", timeout=10):
            pass

    # --- the proxy ---

    def write_config(self, models: dict[str, Any], **server: Any) -> None:
        config = {"server": {"llama_url": f"http://127.0.0.1:{self.port}", **server}, "models": models}
        replacement = self.config_path.with_suffix(".new")
        replacement.write_text(yaml.safe_dump(config, sort_keys=False))
        replacement.replace(self.config_path)

    def start_proxy(self, *arguments: str, wait: bool = True, env: dict[str, str] | None = None) -> Proxy:
        port = free_port()
        log_path = self.folder / f"proxy-{len(self.proxies)}.log"
        words = ["--config", str(self.config_path), "--port", str(port), *arguments]
        # A hold of one test is nothing to the next.
        own = {"PYTHONPATH": str(ROOT / "src"), "XDG_STATE_HOME": str(self.folder / "state")}
        with log_path.open("wb") as log:
            process = _start(words, self.env | own, env or {}, log)
        proxy = Proxy(port, process, log_path)
        self.proxies.append(proxy)
        if wait:
            self.wait_until_up(proxy)
        return proxy

    def wait_until_up(self, proxy: Proxy) -> None:
        def is_up() -> bool:
            assert proxy.process.poll() is None, proxy.log
            with contextlib.suppress(OSError):
                return proxy.get("/health").status == 200
            return False

        wait_for(is_up, what="the proxy answers")

    def run(self, models: dict[str, Any], **server: Any) -> Proxy:
        """A proxy with this config."""
        self.write_config(models, **server)
        return self.start_proxy()

    def close(self) -> None:
        for proxy in self.proxies:
            if proxy.process.poll() is None:
                proxy.kill()
        if self.units:
            self.systemctl("kill", "--signal=SIGKILL", *self.units, check=False)
            self.systemctl("stop", *self.units, check=False)
            self.systemctl("reset-failed", *self.units, check=False)
        for unit in self.units:
            (self._unit_folder / unit).unlink(missing_ok=True)


def environment_of_the_unit() -> dict[str, str]:
    """What systemd sets for the proxy as it is installed."""
    lines = _PROXY_UNIT.read_text().splitlines()
    return dict(line.split("=", 2)[1:] for line in lines if line.startswith("Environment="))


@functools.cache
def _compiled(script: Path) -> str:
    """Python would compile a script at each start."""
    return str(py_compile.compile(str(script), doraise=True))


def _start(
    words: list[str], env: dict[str, str], own: dict[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes] | prefork.Forked:
    """A proxy's process. It is a new one if the test sets what only the start of a process reads."""
    if not own.keys() & _READ_AT_START:
        return prefork.start(words, env | own, log)
    command = [sys.executable, "-m", "systemd_llm_switch", *words]
    return subprocess.Popen(command, env=env | own, stderr=log, stdout=log)


@contextlib.contextmanager
def in_background(*calls: Callable[[], Any]) -> Iterator[list[Any]]:
    """Runs calls in threads meanwhile; the list holds their results (or exceptions) after the block."""
    results: list[Any] = [None] * len(calls)

    def run(index: int, call: Callable[[], Any]) -> None:
        try:
            results[index] = call()
        except BaseException as error:  # handed to the test, which looks at it
            results[index] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        for thread in threads:
            thread.join(90)
            assert not thread.is_alive(), "a request never ended"


def run_all(*calls: Callable[[], Any]) -> list[Any]:
    """Runs calls side by side and returns their results."""
    with in_background(*calls) as results:
        pass
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def address_space(pid: int) -> int:
    """Bytes of address space of a process, which RLIMIT_AS limits."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def freeze(pid: int) -> None:
    """SIGSTOP. All threads of the process have stopped when this returns."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: set(_thread_states(pid)) == {"T"})


def _thread_states(pid: int) -> list[str]:
    """The letter of each thread's state, as in proc_pid_stat(5)."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return [stat.rpartition(")")[2].split()[0] for stat in stats]


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def descriptors_of(pid: int) -> dict[str, int]:
    """How many open files of each kind a process has."""
    kinds: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            kinds[re.sub("[0-9]+", "", link.readlink().name)] += 1
    return dict(kinds)
