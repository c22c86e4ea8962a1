"""Chaos on real units: random requests, hostile clients, shells, edits and kills; at the end every request is accounted
for, by its client and by the journal.

    python tests/product/test_chaos.py [--seconds 120] [--seed N]

The plan of actions comes from the seed alone, which is printed and replays; what it meets depends on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "deploy")]  # runs as a script, too

from support.health_watch import percentiles  # noqa: E402
from support.hostile_clients import CLIENTS  # noqa: E402
from support.stack import (  # noqa: E402
    Proxy,
    Stack,
    chat,
    descriptors_of,
    environment_of_the_unit,
    free_port,
    rss_mib,
    run_all,
    wait_for,
)
from systemd_llm_switch.setup.user_manager import UserManager  # noqa: E402

CI_SECONDS = 25
CI_SEED = 1

# Two models of the whole card and one that leaves room share a port; a small one and one on the CPU have their own.
MODELS = ("big", "large", "medium", "small", "cpu")
KEEPS_CONTEXTS = ("big", "medium")
REQUEST_TIMEOUT_S, HEALTH_TIMEOUT_S, DRAIN_TIMEOUT_S = 6, 6, 3
HANGS_AFTER_S = 90  # longer than any chain of bounds above; what lasts longer hangs

# Documented codes that a request may get without a fault of the proxy's: something was done to its model.
FAIR = {
    "queue_full": 429,
    "backend_crashed": 502,
    "backend_error": 502,
    "model_start_failed": 503,
    "model_unloaded": 503,
    "on_hold": 503,
    "shutting_down": 503,
    "model_start_timeout": 504,
    "backend_timeout": 504,
}
ACCOUNTED = {"ok", "dropped", "no proxy", "the backend's own error", "model_not_found, as configured", *FAIR}
# The pool keeps the threads of its busiest moment: two of its steps more than a fresh one after the same burst.
BURST, THREADS_STEP = 80, 48
MOST_GROWTH = 1.2
MAX_LINE_BYTES = 2000
# The journal line follows the answer. Where the proxy was killed between the two, there is none.
KILLED_S = 2.0
LONG = " word" * 500  # a prompt whose context is worth a file


# --- the plan: from the seed alone ----------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Something to do `at` seconds after the start. `actor` does its steps one after the other."""

    at: float
    actor: str
    action: str
    model: str = ""
    numbers: tuple[float, ...] = ()


def make_plan(seed: int, seconds: float) -> list[Step]:
    """All steps in order. The proxy is killed and restarted in the first half only, so that what leaks shows."""
    rng = random.Random(seed)
    steps: list[Step] = []
    for mean_s, draw in ((0.12, _request), (0.3, _hostile), (0.9, _shell), (2.5, _api), (6.0, _edit)):
        at = rng.expovariate(1 / mean_s)
        while at < seconds:
            steps.append(draw(rng, at))
            at += rng.expovariate(1 / mean_s)
    at = rng.uniform(4, 9)
    while at < seconds / 2:
        steps.append(Step(at, "proxy", rng.choice(("sigkill", "sigkill", "sigterm"))))
        at += rng.uniform(6, 14)
    return sorted(steps, key=lambda step: step.at)


def _request(rng: random.Random, at: float) -> Step:
    kinds = {"quick": 30, "slow": 20, "stream": 15, "live": 10, "embed": 5, "drop": 12, "drop_stream": 6,
             "crash": 3, "cut": 2, "error": 3, "hang": 1}  # fmt: skip
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    return Step(at, "client", kind, rng.choice(MODELS), (rng.expovariate(1 / 0.5), rng.uniform(0, 1.5)))


def _hostile(rng: random.Random, at: float) -> Step:
    kind = rng.choices(list(CLIENTS), [weight for _, weight in CLIENTS.values()])[0]
    return Step(at, "hostile", kind, rng.choice(MODELS), (rng.randrange(1_000_000),))


def _shell(rng: random.Random, at: float) -> Step:
    actions = {"stop": 4, "start": 6, "restart": 4, "sigkill": 4, "sigterm": 2, "freeze": 1, "reset-failed": 2,
               "daemon-reload": 2, "delete": 2, "rewrite": 8}  # fmt: skip
    action = rng.choices(list(actions), list(actions.values()))[0]
    fails = rng.random() < 0.15
    return Step(at, "shell", action, rng.choice(MODELS), (rng.expovariate(1 / 0.4), fails, rng.uniform(0.2, 1.5)))


def _api(rng: random.Random, at: float) -> Step:
    action = rng.choice(("load", "load", "unload", "unload", "force", "unload_all", "force_all", "hold"))
    return Step(at, "api", action, rng.choice(MODELS), (rng.uniform(0.1, 1.5),))


def _edit(rng: random.Random, at: float) -> Step:
    action = rng.choice(("broken", "without", "ttl", "touch", "whole_card"))
    return Step(at, "editor", action, rng.choice(MODELS), (rng.uniform(0.2, 1.5),))


# --- what is run ----------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """How one request ended: "ok", "dropped", a documented code, "no proxy", or what is wrong."""

    step: Step
    number: int
    began: float
    ended: float = 0.0
    result: str = "hangs"


@dataclass
class World:
    """The stack under chaos, and the record of it."""

    stack: Stack
    ports: dict[str, int] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    down: list[tuple[float, float]] = field(default_factory=list)  # when there was no proxy, on purpose
    absent: list[tuple[str, float, float]] = field(default_factory=list)  # when a model was not in the config

    restarting: threading.Lock = field(default_factory=threading.Lock)
    counting: threading.Lock = field(default_factory=threading.Lock)
    refused: int = 0  # answers of a refusal that hostile clients got

    def __post_init__(self) -> None:
        self.contexts = self.stack.folder / "contexts"
        self.contexts.mkdir(mode=0o700)
        shared = free_port()
        self.ports = dict.fromkeys(MODELS[:3], shared) | {name: free_port() for name in MODELS[3:]}
        self.units = {name: self.write_unit(name, 0.1) for name in MODELS}
        self.write_config()
        self.proxy_port = free_port()
        self.start_proxy()

    # --- units and config ---

    def write_unit(self, name: str, load_s: float, *options: str) -> str:
        if name in KEEPS_CONTEXTS:
            options += ("--slot-save-path", str(self.contexts))
        return self.stack.standin(
            name, "--load-s", f"{load_s:.2f}", *options, port=self.ports[name],
            service="Restart=on-failure\nRestartSec=1",
        )  # fmt: skip

    def write_config(self, without: str = "", **of_small: Any) -> None:
        models: dict[str, Any] = {name: {"unit": self.units[name]} for name in MODELS}
        models["medium"]["vram"] = 6
        models["small"] |= {"vram": 3, "ttl": 2, "streaming": "live", **of_small}
        models["cpu"]["vram"] = 0
        for name in MODELS:
            models[name]["llama_url"] = f"http://127.0.0.1:{self.ports[name]}"
        models.pop(without, None)
        self.stack.write_config(
            models, vram=10, queue_limit=24, request_timeout=REQUEST_TIMEOUT_S, health_timeout=HEALTH_TIMEOUT_S,
            drain_timeout=DRAIN_TIMEOUT_S, max_wait=1, min_resident=1,
        )  # fmt: skip

    # --- the proxy ---

    @property
    def proxy(self) -> Proxy:
        return self.stack.proxies[-1]

    def start_proxy(self) -> None:
        # As in the proxy's unit: otherwise what glibc keeps for each thread looks like growth.
        env = environment_of_the_unit()
        proxy = self.stack.start_proxy("--port", str(self.proxy_port), wait=False, env=env)
        proxy.port = self.proxy_port
        self.stack.wait_until_up(proxy)

    def post(self, path: str, body: Any) -> None:
        """An operator's call; its answer is good, or a fair error."""
        began = time.monotonic()
        try:
            answer = self.proxy.post(path, body, timeout_s=HANGS_AFTER_S)
        except TimeoutError:
            self.faults.append(f"{path} {body} hangs")
        except (OSError, HTTPException) as error:
            if not self.was_down(began, time.monotonic()):
                self.faults.append(f"{path} {body}: {error!r}")
        else:
            code = "ok" if answer.status == 200 else str(answer.error["code"])
            is_absent = code == "model_not_found" and self.was_absent(body.get("model", ""), began)
            if not (code == "ok" or FAIR.get(code) == answer.status or is_absent):
                self.faults.append(f"{path} {body}: {answer.status} {answer.body!r}")
            self.done[f"{path} {code}"] += 1

    def summary(self) -> str:
        """What happened how often."""
        results = Counter(outcome.result for outcome in self.outcomes)
        return f"{len(self.outcomes)} requests {dict(results.most_common())}, {dict(sorted(self.done.items()))}"

    def was_down(self, began: float, ended: float) -> bool:
        return any(began <= until and ended >= since for since, until in self.down)

    def was_absent(self, model: str, began: float) -> bool:
        """Whether the config was without the model while a request that began then ran."""
        return any(name == model and began <= until for name, _, until in self.absent)

    # --- the actors ---

    def shell(self, step: Step) -> None:
        unit, (load_s, fails, pause_s) = self.units[step.model], step.numbers
        run = self.stack.systemctl
        if step.action in ("sigkill", "sigterm"):
            run("kill", f"--signal={step.action.upper()}", unit, check=False)
        elif step.action == "freeze":
            run("kill", "--signal=SIGSTOP", unit, check=False)
            time.sleep(pause_s)
            run("kill", "--signal=SIGCONT", unit, check=False)
        elif step.action == "daemon-reload":
            run("daemon-reload")
        elif step.action == "delete":
            self.stack.delete_unit(unit)
            time.sleep(pause_s)
            self.write_unit(step.model, load_s)
        elif step.action == "rewrite":
            self.write_unit(step.model, load_s, *(("--exit", "3") if fails else ()))
        else:
            run(step.action, unit, check=False)

    def api(self, step: Step) -> None:
        if step.action == "hold":
            self.post("/api/hold", {"minutes": 1, "force": step.numbers[0] > 0.8})
            time.sleep(step.numbers[0])
            self.post("/api/release", {})
            if self.proxy.process.poll() is not None or self.was_down(time.monotonic() - 5, time.monotonic()):
                self.post("/api/release", {})  # the proxy may have missed the first one
        elif step.action == "load":
            self.post("/api/load", {"model": step.model})
        else:
            body: dict[str, Any] = {} if step.action.endswith("_all") else {"model": step.model}
            self.post("/api/unload", body | ({"force": True} if step.action.startswith("force") else {}))

    def editor(self, step: Step) -> None:
        if step.action == "broken":
            with self.restarting:  # with a broken config no proxy starts, as it should
                self.stack.config_path.write_text("models: {big: [nonsense")
                time.sleep(step.numbers[0])
                self.write_config()
            return
        if step.action == "without":
            since = time.monotonic()
            self.absent.append((step.model, since, float("inf")))
            self.write_config(without=step.model)
            time.sleep(step.numbers[0])
            self.write_config()
            self.ask_for_config()
            self.absent[-1] = (step.model, since, time.monotonic())
            return
        if step.action == "touch":
            self.stack.config_path.touch()
            return
        changed: dict[str, Any] = {"ttl": 1} if step.action == "ttl" else {"vram": 10}
        self.write_config(**changed)
        time.sleep(step.numbers[0])
        self.write_config()

    def ask_for_config(self) -> None:
        with contextlib.suppress(OSError, HTTPException):
            self.proxy.get("/api/status")

    def proxy_keeper(self, step: Step) -> None:
        if self.proxy.process.poll() is not None:
            self.faults.append(f"the proxy ended by itself: {self.proxy.log[-3000:]}")
        since = time.monotonic()
        self.down.append((since, float("inf")))
        if step.action == "sigkill":
            self.proxy.kill()
        elif self.proxy.stop() != 0:
            self.faults.append("SIGTERM did not end the proxy in order")
        with self.restarting:
            self.start_proxy()
        self.down[-1] = (since, time.monotonic())

    # --- the clients ---

    def hostile(self, step: Step) -> None:
        """One hostile client. What it got is right, or there was no proxy."""
        client, _ = CLIENTS[step.action]
        began = time.monotonic()
        try:
            outcome = client(self.proxy_port, random.Random(step.numbers[0]), step.model)
        except TimeoutError:
            self.faults.append(f"{step} hangs")
        except (OSError, HTTPException) as error:
            if not self.was_down(began, time.monotonic()):
                self.faults.append(f"{step}: {error!r}")
        except AssertionError as error:
            self.faults.append(f"{step} got a wrong answer: {error}")
        else:
            is_sure = not self.was_down(began, time.monotonic() + KILLED_S)
            with self.counting:
                self.done[f"hostile {step.action}"] += 1
                self.refused += outcome.refused if is_sure else 0

    def client(self, outcome: Outcome) -> None:
        try:
            outcome.result = self.ask(outcome.step, outcome.number)
        except TimeoutError:
            outcome.result = "hangs"
        except (OSError, HTTPException) as error:
            down = self.was_down(outcome.began, time.monotonic())
            outcome.result = "no proxy" if down else f"connection broke: {error!r}"
        except Exception as error:
            outcome.result = f"no sense in the answer: {error!r}"
        outcome.ended = time.monotonic()
        if outcome.result == "model_not_found" and self.was_absent(outcome.step.model, outcome.began):
            outcome.result = "model_not_found, as configured"

    def ask(self, step: Step, number: int) -> str:
        delay_s, patience_s = step.numbers
        orders_of: dict[str, dict[str, Any]] = {
            "quick": {}, "stream": {"delay_s": delay_s}, "live": {"delta_s": delay_s / 4}, "embed": {},
            "slow": {"delay_s": delay_s}, "drop": {"delay_s": 2}, "drop_stream": {"delay_s": 2},
            "crash": {"delay_s": delay_s / 4, "crash": 7}, "cut": {"cut": True}, "error": {"status": 500},
            "hang": {"hang": True},
        }  # fmt: skip
        orders = orders_of[step.action]
        words = f"request {number}"
        orders["message"] = {"role": "assistant", "content": words}
        orders["deltas"] = [{"role": "assistant", "content": words}]
        fields = {"stream": True} if step.action in ("stream", "live", "drop_stream") else {}
        path = "/v1/embeddings" if step.action == "embed" else "/v1/chat/completions"
        prompt = words + LONG if number % 3 else words
        body = json.dumps(chat(step.model, prompt, input=["x"] * 3, standin=orders, **fields)).encode()
        with socket.create_connection(("127.0.0.1", self.proxy_port), timeout=HANGS_AFTER_S) as sock:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body)
            if step.action.startswith("drop"):
                sock.settimeout(patience_s)
                with contextlib.suppress(TimeoutError):
                    sock.recv(1)
                return "dropped"
            reply = HTTPResponse(sock, method="POST")
            reply.begin()
            data = reply.read()
        return _judge(step, words, reply.status, reply.getheader("content-type") or "", data)


def _judge(step: Step, words: str, status: int, content_type: str, data: bytes) -> str:
    """What an answer is: "ok", a code, or what is wrong with it."""
    if content_type.startswith("text/event-stream"):
        return _judge_stream(step, words, data)
    told = json.loads(data)
    if status != 200:
        return _judge_error(step, told["error"], status)
    if step.action == "embed":
        is_right = told["model"] == step.model and len(told["data"]) == 3
    else:
        is_right = told["model"] == step.model and told["choices"][0]["message"]["content"] == words
    is_due = step.action in ("quick", "slow", "embed")
    return "ok" if is_right and is_due else f"a wrong answer: {data[:500]!r}"


def _judge_stream(step: Step, words: str, data: bytes) -> str:
    events = [line[6:] for line in data.decode().split("\n") if line.startswith("data: ")]
    assert events, f"an empty stream: {data!r}"
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    if "error" in chunks[-1]:
        return _judge_error(step, chunks[-1]["error"], None)
    assert events[-1] == "[DONE]", f"a stream without an end: {data[-500:]!r}"
    models = {chunk["model"] for chunk in chunks}
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    is_right = models == {step.model} and text == words and step.action in ("stream", "live")
    return "ok" if is_right else f"a wrong stream: {models} {text!r}"


def _judge_error(step: Step, error: dict[str, Any], status: int | None) -> str:
    code = error["code"]
    assert set(error) >= {"message", "type", "param", "code"}, error
    assert "Traceback" not in error["message"], error
    if step.action == "error" and code == 77:
        return "the backend's own error"
    if code == "model_not_found" and status in (404, None):
        return str(code)
    is_fair = code in FAIR and status in (FAIR[code], None)
    return str(code) if is_fair else f"an unfair error: {status} {error}"


# --- one run --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """What a proxy at rest holds."""

    threads: int
    children: int
    descriptors: dict[str, int]  # of each kind
    mib: float


def run(stack: Stack, seed: int, seconds: float) -> World:
    """Chaos, then quiet; raises AssertionError with all that was wrong."""
    print(f"chaos: seed {seed}, {seconds:g} s", flush=True)
    world = World(stack)
    measured = stack.folder / "health"
    watch = [sys.executable, str(Path(__file__).parents[1] / "support" / "health_watch.py")]
    with subprocess.Popen([*watch, str(world.proxy_port), str(measured)]) as watcher:
        try:
            _play(world, make_plan(seed, seconds))
        finally:
            watcher.kill()
    print(f"chaos: {_summary_of_health(measured)}", flush=True)
    _repair(world)
    after = _rest(world)
    world.proxy_keeper(Step(seconds, "proxy", "sigterm"))
    fresh = _rest(world)
    print(f"chaos: {world.summary()}\nchaos: {after} after it, {fresh} of a fresh proxy", flush=True)
    faults = [*world.faults, *_faults_of(world, after, fresh)]
    assert not faults, f"seed {seed}: {len(faults)} faults\n" + "\n".join(faults[:40])
    return world


def _play(world: World, plan: list[Step]) -> None:
    """Does every step at its time, and waits until all of them are over."""
    actors = {"shell": world.shell, "api": world.api, "editor": world.editor, "proxy": world.proxy_keeper}
    queues: dict[str, queue.Queue[Step | None]] = {name: queue.Queue() for name in actors}

    def act(name: str) -> None:
        while (step := queues[name].get()) is not None:
            try:
                actors[name](step)
                world.done[f"{name} {step.action}"] += 1
            except Exception as error:
                world.faults.append(f"{step}: {error!r}")

    threads = [threading.Thread(target=act, args=(name,), daemon=True) for name in actors]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    for step in plan:
        time.sleep(max(0.0, began + step.at - time.monotonic()))
        if step.actor == "client":
            outcome = Outcome(step, len(world.outcomes) + 1, time.monotonic())
            world.outcomes.append(outcome)
            threads.append(threading.Thread(target=world.client, args=(outcome,), daemon=True))
            threads[-1].start()
        elif step.actor == "hostile":
            threads.append(threading.Thread(target=world.hostile, args=(step,), daemon=True))
            threads[-1].start()
        else:
            queues[step.actor].put(step)
    for waiting in queues.values():
        waiting.put(None)
    deadline = time.monotonic() + HANGS_AFTER_S + 30
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    world.faults += ["an actor hangs" for thread in threads[: len(actors)] if thread.is_alive()]


def _repair(world: World) -> None:
    """Every unit is sound again, every model configured, nothing on hold."""
    for name in MODELS:
        world.write_unit(name, 0.1)
    world.write_config()
    world.post("/api/release", {})


def _rest(world: World) -> Footprint:
    """Each model is asked for once more, the small ones by many at once; then all is unloaded."""
    proxy = world.proxy
    for name in MODELS:
        answer = proxy.chat(name, timeout_s=HANGS_AFTER_S)
        if answer.status != 200 or answer.json["model"] != name:
            world.faults.append(f"at rest {name} is not served: {answer.status} {answer.body!r}")
    run_all(*[lambda: proxy.chat("cpu", standin={"delay_s": 1})] * BURST)
    world.post("/api/unload", {})
    pid = proxy.process.pid

    def count() -> tuple[int, int, dict[str, int]]:
        folder = Path(f"/proc/{pid}")
        tasks = list((folder / "task").iterdir())
        children = " ".join((task / "children").read_text() for task in tasks)
        return len(tasks), len(children.split()), descriptors_of(pid)

    seen = [count()]

    def is_still() -> bool:
        time.sleep(1)
        seen.append(count())
        return seen[-1] == seen[-2]

    wait_for(is_still, what="the proxy comes to rest")
    status = proxy.status()
    busy = {name: it for name, it in status["models"].items() if it["in_flight"] or it["waiting"]}
    if busy or status["waiting"] or status["on_hold"]:
        world.faults.append(f"not at rest: {busy} waiting={status['waiting']} on_hold={status['on_hold']}")
    return Footprint(*seen[-1], mib=round(rss_mib(pid), 1))


def _summary_of_health(measured: Path) -> str:
    """What `health_watch` saw."""
    rows = [line.split() for line in measured.read_text().splitlines() if len(line.split()) == 2]
    health = [float(row[0]) for row in rows if row[0] != "-"]
    return f"/health {percentiles(health)}; a bare process {percentiles([float(row[1]) for row in rows])}"


def _unaccounted(world: World) -> Iterator[str]:
    """Requests that a client has an answer to, and the journal has no line of."""
    log = "".join(proxy.log for proxy in world.stack.proxies)
    answered = [
        it
        for it in world.outcomes
        if it.result in ACCOUNTED - {"dropped", "no proxy"} and not world.was_down(it.ended, it.ended + KILLED_S)
    ]
    lines = len(re.findall(r" request model=", log))
    if lines < len(answered):
        yield f"{len(answered)} requests were answered, the journal has {lines} lines"
    refused = len(re.findall(r"(?:request_refused|refused path=\S*) .*unlogged=", log))
    refused += sum(map(int, re.findall(r" unlogged=(\d+)", log)))
    if refused < world.refused:
        yield f"{world.refused} requests were refused, the journal has {refused} of them"
    print(
        f"chaos: {len(answered)} answered, {lines} lines; {world.refused} refused, {refused} in the journal", flush=True
    )


def _faults_of(world: World, after: Footprint, fresh: Footprint) -> Iterator[str]:
    for outcome in world.outcomes:
        if outcome.result not in ACCOUNTED:
            took_s = outcome.ended - outcome.began
            yield f"request {outcome.number}, {outcome.step}, {took_s:.1f} s: {outcome.result}"
    for name in MODELS:
        if not any(it.result == "ok" and it.step.model == name for it in world.outcomes):
            yield f"{name} never answered"
    # The server's own threads come in steps, as they are needed, and stay.
    is_more = after.threads > fresh.threads + THREADS_STEP
    if is_more or after.children or after.descriptors != fresh.descriptors:
        yield f"left over in the proxy: {after}, a fresh one: {fresh}"
    if after.mib > fresh.mib * MOST_GROWTH:
        yield f"memory grew: {after.mib} MiB, a fresh proxy: {fresh.mib}"
    for name, unit in world.units.items():
        if world.stack.active_state(unit) not in ("inactive", "failed"):
            yield f"the unit of {name} still runs"
    for group in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if f"/{world.stack.prefix}-" in group.read_text():
                yield f"left over: process {group.parent.name}, {group.with_name('cmdline').read_text()}"
    yield from _unaccounted(world)
    for proxy in world.stack.proxies:
        longest = max((len(line) for line in proxy.log_path.read_bytes().splitlines()), default=0)
        if longest > MAX_LINE_BYTES:
            yield f"{proxy.log_path.name} has a line of {longest} bytes"
        for word in ("Traceback", "_crashed path", "switch_crashed"):
            if word in proxy.log:
                at = proxy.log.index(word)
                yield f"in {proxy.log_path.name}: {proxy.log[max(0, at - 300) : at + 2500]}"


@pytest.mark.slow
def test_chaos_leaves_every_request_accounted_for(stack: Stack) -> None:
    """Whatever clients, shells, editors and kills do at once: the right answer or a documented error, in time, and
    nothing is left over."""
    run(stack, CI_SEED, CI_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--folder", type=Path, default=None, help="where the proxies' logs stay")
    arguments = parser.parse_args()
    seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    with tempfile.TemporaryDirectory() as home:
        manager = UserManager.start(Path(home))
        folder = arguments.folder or Path(home)
        folder.mkdir(parents=True, exist_ok=True)
        stack = Stack(manager.env, folder, "chaos")
        try:
            run(stack, seed, arguments.seconds)
        except AssertionError as error:
            print(error)
            return 1
        finally:
            stack.close()
            manager.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
