"""The contenders: the proxy of this repository, llama-server's own router, any server behind a URL, and the backend
alone, which is the limit. Each starts on the fast stand-in or on the real model."""

from __future__ import annotations

import contextlib
import enum
import http.client
import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.bed import SERVER_OPTIONS, Bed, Programs
from bench.processes import children, listener_pid, option_of
from support.stack import ROOT, Stack, free_port

ALONE = "backend alone"
OURS = "this proxy"
ROUTER = "llama-server's router"
RELAY = "a bare relay in Python"
# A model that is in the config of every proxy, and that cannot start.
BROKEN = "broken"
BROKEN_REASON = "this one is broken on purpose"
_START_TIMEOUT_S = 30.0


class ContenderError(Exception):
    """A contender did not start, or did not answer as it should."""


class Kind(enum.Enum):
    """What is behind a contender."""

    FAST = "fast"
    REAL = "real"

    @property
    def models(self) -> tuple[str, str]:
        """The ids under which every contender serves it."""
        return f"{self.value}-a", f"{self.value}-b"


@dataclass(frozen=True, slots=True)
class Contender:
    """A server at `address` (HOST:PORT). `pid` is the process that is measured, if it is known; `start_s` is the time
    from its start until it listened; `backend` returns the address of its loaded model."""

    name: str
    kind: Kind
    address: str
    pid: int | None = None
    start_s: float | None = None
    backend: Callable[[], str | None] = lambda: None
    stop: Callable[[], None] = lambda: None
    uses_systemd: bool = False
    has_broken: bool = False

    @property
    def model(self) -> str:
        return self.kind.models[0]

    def chat(self, **fields: Any) -> dict[str, Any]:
        """A request's body; the same for all."""
        return chat(self.model, **fields)

    def ask(self, body: Any) -> bytes:
        """One chat request; blocks until its whole reply is in.

        Raises:
            ContenderError: the reply is not a 200.
        """
        return ask(self.address, "/v1/chat/completions", body)

    def load(self) -> None:
        """Loads its model. The router sometimes answers its first client that it is still loading."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                self.ask(self.chat())
                return
            except ContenderError as error:
                if "503" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


Maker = Callable[[Kind], Contender | None]


def chat(model: str, **fields: Any) -> dict[str, Any]:
    """A short request whose prompt is cached from the second time on."""
    messages = [{"role": "user", "content": "Tell me a long story about a fox and a lazy dog."}]
    return {"model": model, "messages": messages, "max_tokens": 1, "temperature": 0, **fields}


def ask(address: str, path: str, body: Any = None, timeout_s: float = 120) -> bytes:
    """One request on a connection of its own. Raises ContenderError if the reply is not a 200."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        reply = connection.getresponse()
        data = reply.read()
        if reply.status != 200:
            raise ContenderError(f"{address}{path}: {reply.status} {data[:3000]!r}")
        return data


def spawn(command: Sequence[str], port: int, env: dict[str, str], log: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Starts a server; returns it, and the seconds until it listened."""
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    while process.poll() is None and time.perf_counter() - began < _START_TIMEOUT_S:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return process, time.perf_counter() - began
        time.sleep(0.001)
    end(process)
    raise ContenderError(f"{command[0]} did not start: {log.read_text()[-2000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL when that does not help. Idempotent."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


# --- the makers -----------------------------------------------------------------------------------------


def model_command(programs: Programs, kind: Kind, index: int, port: int | str) -> str:
    """The command that serves a model, whoever starts it. It names its model, as the shipped units do."""
    command = f"{programs.standin} --port {port}" if kind is Kind.FAST else programs.real.command(index, port)
    return f"{command} --alias {kind.models[index]}"


def write_units(bed: Bed, stack: Stack, kind: Kind) -> dict[str, str]:
    """A unit for each model, on the stack's port; by model."""
    return {
        model: stack.unit(model, model_command(bed.programs, kind, index, stack.port))
        for index, model in enumerate(kind.models)
    }


def make_proxy(bed: Bed, kind: Kind, name: str = OURS, source: Path = ROOT / "src") -> Contender:
    """The proxy, with `streaming: live`, which does not affect plain requests."""
    stack = bed.stack(name)
    broken = stack.unit(BROKEN, shlex.join(["/bin/sh", "-c", f"echo {BROKEN_REASON} >&2; exit 3"]))
    stack.write_config({**write_units(bed, stack, kind), BROKEN: broken}, streaming="live")
    began = time.perf_counter()
    proxy = stack.start_proxy(wait=False, env={"PYTHONPATH": str(source)})
    while time.perf_counter() - began < _START_TIMEOUT_S:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", proxy.port)):
            break
        time.sleep(0.001)
    start_s = time.perf_counter() - began
    stack.wait_until_up(proxy)
    return Contender(
        name, kind, f"127.0.0.1:{proxy.port}", proxy.process.pid, start_s,
        backend=lambda: f"127.0.0.1:{stack.port}", stop=stack.close, uses_systemd=True,
        has_broken=True,
    )  # fmt: skip


def make_router(bed: Bed, kind: Kind) -> Contender:
    """llama-server's router. It starts its children from its own path: for the stand-in, that file is replaced
    once the router runs."""
    stack = bed.stack(ROUTER)
    server = bed.programs.real.server
    if kind is Kind.FAST:
        for file in server.parent.iterdir():
            (stack.folder / file.name).symlink_to(file)
        (stack.folder / server.name).unlink()
        server = Path(shutil.copy2(server, stack.folder))
    preset = stack.folder / "preset.ini"
    broken = f"\n[{BROKEN}]\nmodel = /nonexistent/{BROKEN_REASON.replace(' ', '-')}.gguf\n"
    preset.write_text("version = 1\n" + "".join(_preset(bed, kind, index) for index in (0, 1)) + broken)
    port = free_port()
    options = ["--models-preset", str(preset), "--models-max", "1", "--host", "127.0.0.1", "--port", str(port)]
    process, start_s = spawn([str(server), *options], port, bed.env, stack.folder / "router.log")
    bed.closing.callback(end, process)
    if kind is Kind.FAST:
        Path(shutil.copy2(bed.programs.standin, stack.folder / "new")).replace(server)
    return Contender(
        ROUTER, kind, f"127.0.0.1:{port}", process.pid, start_s,
        backend=lambda: _child_address(process.pid), stop=lambda: end(process),
        has_broken=kind is Kind.REAL,  # the stand-in loads anything
    )  # fmt: skip


def _preset(bed: Bed, kind: Kind, index: int) -> str:
    names = {"-t": "threads", "-c": "ctx-size", "-np": "parallel"}
    options = dict(zip(SERVER_OPTIONS[:-1:2], SERVER_OPTIONS[1::2], strict=True))
    lines = [f"{names[name]} = {value}" for name, value in options.items()]
    return "\n".join(
        [f"\n[{kind.models[index]}]", f"model = {bed.programs.real.files[index]}", "jinja = true", *lines, ""]
    )


def _child_address(pid: int) -> str | None:
    ports = [port for child in children(pid) if (port := option_of(child, "--port"))]
    return f"127.0.0.1:{ports[-1]}" if ports else None


def make_foreign(kind: Kind, address: str) -> Contender | None:
    """The server at that address, if it serves models of this kind under the names that all contenders use."""
    served = {model["id"] for model in json.loads(ask(address, "/v1/models"))["data"]}
    if not served.issuperset(kind.models):
        return None
    return Contender(address, kind, address, port_pid(address))


def port_pid(address: str) -> int | None:
    """The process behind an address; None if it cannot be found."""
    return listener_pid(int(address.rpartition(":")[2]))


def start_relay(bed: Bed, backend: str) -> str:
    """The address of a relay (`relay.py`) to a backend. No contender: it knows no model."""
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("relay.py")), str(port), backend.rpartition(":")[2]]
    process, _ = spawn(command, port, bed.env, bed.stack(RELAY).folder / "relay.log")
    bed.closing.callback(end, process)
    return f"127.0.0.1:{port}"


class Lineup:
    """All contenders of a run; each starts when it is first needed, with its model loaded."""

    def __init__(self, bed: Bed, makers: dict[str, Maker]) -> None:
        self.bed = bed
        self.makers = makers
        self._started: dict[Kind, list[Contender]] = {}
        self._relays: dict[str, str] = {}

    def of(self, kind: Kind) -> list[Contender]:
        """The proxies of that kind, ours first."""
        if kind not in self._started:
            made = [maker(kind) for maker in self.makers.values()]
            self._started[kind] = [contender for contender in made if contender is not None]
        return self._started[kind]

    def with_alone(self, kind: Kind) -> list[Contender]:
        """The backend of our proxy by itself, and the proxies; every one has its first model loaded."""
        proxies = self.of(kind)
        for contender in proxies:
            contender.load()
        address = backend_of(proxies[0], proxies)
        return [Contender(ALONE, kind, address, port_pid(address)), *proxies]

    def relay_to(self, backend: str) -> str:
        """The address of a relay to that backend, started when it is first needed."""
        if backend not in self._relays:
            self._relays[backend] = start_relay(self.bed, backend)
        return self._relays[backend]


def backend_of(contender: Contender, proxies: Sequence[Contender]) -> str:
    """Where a contender's backend listens. If that is unknown, the address of the first contender's backend."""
    address = contender.backend() or proxies[0].backend()
    assert address is not None
    return address


def turned(items: Sequence[Any], by: int) -> list[Any]:
    """Another order for each round, so that no contender is always first."""
    by %= len(items)
    return [*items[by:], *items[:by]]
