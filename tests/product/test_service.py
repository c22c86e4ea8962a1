"""The proxy as systemd runs it: `llm-switch.service` as it is installed, in a real user manager with a real journal."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.stack import ROOT, Answer, Proxy, Stack, free_port, in_background, wait_for
from systemd_llm_switch.setup.systemctl import Systemctl
from systemd_llm_switch.setup.unit_files import Machine, UnitSource
from systemd_llm_switch.setup.user_manager import UserManager

SECRET = "xyzzy-plugh"
SHUTDOWN_S = 25  # what the proxy grants running requests
INFO, WARNING, ERROR = 6, 4, 3


class Service:
    """The proxy's own unit. `drop_in` is what `systemctl --user edit` would add."""

    def __init__(self, stack: Stack, name: str = "llm-switch", drop_in: str = "") -> None:
        self.stack = stack
        # A name that no run had before: the journal remembers the units of earlier ones.
        self.unit = f"{stack.prefix}-{secrets.token_hex(4)}-{name}.service"
        self.config = stack.folder / f"{name}.yaml"
        self.proxy = Proxy(free_port(), None, stack.folder)  # type: ignore[arg-type]
        home = Path(stack.env["HOME"])
        left_out = Systemctl(stack.env).unusable_settings()
        machine = Machine(home, Path(sys.executable), home, home, left_out, self.config)
        text = UnitSource.read(ROOT / "deploy/systemd/llm-switch.service").render(machine, None)
        folder = home / ".config/systemd/user"
        (folder / self.unit).write_text(text)
        (folder / f"{self.unit}.d").mkdir(exist_ok=True)
        # The package as it is here, wherever the interpreter has another one installed.
        own = f"[Service]\nEnvironment=PYTHONPATH={ROOT / 'src'}\n{drop_in}\n"
        (folder / f"{self.unit}.d/test.conf").write_text(own)
        stack.units.append(self.unit)
        stack.systemctl("daemon-reload")

    def write_config(self, models: dict[str, Any], **server: Any) -> None:
        server = {"port": self.proxy.port, "llama_url": f"http://127.0.0.1:{self.stack.port}", **server}
        self.config.write_text(yaml.safe_dump({"server": server, "models": models}, sort_keys=False))

    def start(self, models: dict[str, Any], **server: Any) -> Proxy:
        """Blocks until systemd calls it started."""
        self.write_config(models, **server)
        self.stack.systemctl("start", self.unit)
        return self.proxy

    def show(self, name: str) -> str:
        return self.stack.systemctl("show", "-p", name, "--value", self.unit).strip()

    def entries(self, *options: str) -> list[dict[str, Any]]:
        """All that the journal has of the unit."""
        command = ["journalctl", "--user-unit", self.unit, "-o", "json", "--no-pager", "--quiet", *options]
        told = subprocess.run(command, env=self.stack.env, capture_output=True, text=True, check=True).stdout
        return [json.loads(line) for line in told.splitlines()]

    def journal(self, *options: str) -> list[tuple[int, str]]:
        """The priority and the text of the proxy's own lines, not the manager's."""
        own = [entry for entry in self.entries(*options) if entry.get("_SYSTEMD_USER_UNIT") == self.unit]
        return [(int(entry["PRIORITY"]), str(entry["MESSAGE"])) for entry in own]

    def ended_well(self) -> bool:
        """Whether systemd saw it end by itself, as asked; what the unit's Result was is forgotten with its stop."""
        said = [str(entry["MESSAGE"]) for entry in self.entries() if entry.get("USER_UNIT") == self.unit]
        is_bad = any("Failed with result" in text or "Killing process" in text for text in said)
        return not is_bad and any(text.startswith("Stopped ") for text in said)

    def lines(self, event: str) -> list[str]:
        """The lines of one event."""
        return [text for _, text in self.journal() if text.split(" ")[0] == event]

    def wait_for_last_request(self, words: str) -> None:
        """Blocks until the last logged request has these words."""
        wait_for(lambda: words in "".join(self.lines("request")[-1:]), what=f"the journal says {words}")

    def is_up(self) -> bool:
        with contextlib.suppress(OSError):
            return self.proxy.get("/health").status == 200
        return False


@pytest.fixture
def service(stack: Stack) -> Service:
    return Service(stack)


@pytest.fixture
def pair(stack: Stack) -> dict[str, str]:
    """Two models on one port."""
    return {"a": stack.standin("a"), "b": stack.standin("b")}


Late = tuple[Service, float, list[Any]]


@pytest.fixture(scope="module")
def late(manager: UserManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Late]:
    """A proxy that is told to stop while two requests hang at its model, when that was, and what they get."""
    stack = Stack(manager.env, tmp_path_factory.mktemp("late"), "late")
    service = Service(stack)
    proxy = service.start({"a": stack.standin("a")})
    hung = {"hang": True}
    ask = [lambda: proxy.chat("a", standin=hung), lambda: proxy.chat("a", stream=True, standin=hung)]
    with in_background(*ask) as answers:
        wait_for(lambda: _running(stack) == 2)
        began = time.monotonic()
        stack.systemctl("stop", "--no-block", service.unit)
        yield service, began, answers
    stack.close()


@pytest.fixture(autouse=True, scope="module")
def _begin_to_stop(late: Late) -> None:
    """Its time runs from the first test on, beside the others."""


def _running(stack: Stack) -> int:
    with contextlib.suppress(OSError):
        return int(stack.seen()["running"])
    return -1


# --- ready ------------------------------------------------------------------------------------------


def test_started_means_that_the_port_listens(service: Service, pair: dict[str, str]) -> None:
    proxy = service.start(pair)
    assert proxy.get("/health").status == 200  # with no attempt before
    assert (service.show("ActiveState"), service.show("Type")) == ("active", "notify")
    assert proxy.chat("a").text == "hello from a"


def test_while_the_port_is_taken_it_does_not_count_as_started(stack: Stack, pair: dict[str, str]) -> None:
    """`systemctl start` fails, instead of leaving a person with a unit that is active and deaf."""
    service = Service(stack, drop_in="Restart=no")
    service.write_config(pair)
    with contextlib.closing(_listen(service.proxy.port)):
        stack.systemctl("start", service.unit, check=False)
        assert service.show("ActiveState") == "failed"
    told = service.journal("-p", "err")
    assert len(told) == 1
    assert f"port {service.proxy.port} is taken by another program" in told[0][1]
    assert "listening" not in str(service.journal())


def test_a_second_proxy_says_that_one_runs_already(service: Service, stack: Stack, pair: dict[str, str]) -> None:
    """A person types `llm-switch serve` while the service runs. It touches no unit, whatever it preloads."""
    proxy = service.start(pair)
    assert proxy.chat("a").status == 200
    service.write_config(pair, preload=["b"])
    second = [sys.executable, "-m", "systemd_llm_switch", "serve", "--config", str(service.config)]
    env = stack.env | {"PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run(second, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert f"port {proxy.port} is taken by a proxy that runs already" in ran.stderr
    assert [stack.active_state(pair[name]) for name in "ab"] == ["active", "inactive"]


def _listen(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def test_it_can_do_its_work_inside_its_sandbox(service: Service, pair: dict[str, str]) -> None:
    """systemctl, the journal, its state folder: all that a switch, a failure's reason and a hold need."""
    stack = service.stack
    proxy = service.start({**pair, "broken": stack.standin("broken", "--exit", "3", "--say", "no such model file")})
    for name in ("a", "b"):
        assert proxy.chat(name).text == f"hello from {name}"
    assert "no such model file" in proxy.chat("broken").error["message"]
    assert proxy.post("/api/hold", {}).json == {"success": True, "on_hold": True, "minutes": None}
    stack.systemctl("restart", service.unit)
    assert proxy.chat("a").error["code"] == "on_hold"
    assert "warning" not in proxy.post("/api/release", {}).json
    assert proxy.chat("a").text == "hello from a"


def test_from_its_sandbox_it_sees_whose_unit_answers(service: Service) -> None:
    """A unit that somebody starts while ours is about to listen does not pass for it; see also test_switching.py."""
    stack = service.stack
    late, other = stack.standin("late", "--bind-s", "1.5"), stack.standin("other")
    proxy = service.start({"late": late, "other": other})
    with in_background(lambda: proxy.chat("late")) as answers:
        wait_for(lambda: stack.active_state(late) == "active")
        stack.systemctl("start", other)
    assert answers[0].error["code"] == "model_start_failed"
    assert "Address already in use" in answers[0].error["message"]


def test_from_its_sandbox_it_names_the_unit_that_has_the_port(stack: Stack, service: Service) -> None:
    """A model whose line was taken out of the config while it ran: no switch stops it any more."""
    removed = stack.standin("removed")
    stack.systemctl("start", removed)
    wait_for(lambda: _running(stack) == 0)
    proxy = service.start({"a": stack.standin("a")})
    message = proxy.chat("a").error["message"]
    assert f"is taken by unit {removed}" in message
    assert f"`systemctl --user stop {removed}`" in message


# --- the journal ------------------------------------------------------------------------------------


def test_priorities_are_the_journals_own(service: Service, pair: dict[str, str]) -> None:
    """`journalctl -p err` shows what somebody must look at, `-p warning` also what clients did wrong."""
    proxy = service.start({**pair, "broken": service.stack.standin("broken", "--exit", "3")})
    for model, status in (("a", 200), ("nope", 404), ("broken", 503)):
        assert proxy.chat(model).status == status
    assert proxy.get("/nope").status == 404
    wait_for(lambda: len(service.lines("request")) == 3)
    errors, warnings, everything = (service.journal("-p", name) for name in ("err", "warning", "debug"))
    assert {priority for priority, _ in errors} == {ERROR}
    assert [text.split(" ")[0] for _, text in errors] == ["switch_failed", "request"]
    assert "status=503" in errors[1][1]
    assert {priority for priority, _ in warnings} == {ERROR, WARNING}
    only_warnings = [text for priority, text in warnings if priority == WARNING]
    assert [text.split(" ")[0] for text in only_warnings] == ["request", "refused"]
    assert all("status=404" in text for text in only_warnings)
    plain = {text.split(" ")[0] for priority, text in everything if priority == INFO}
    assert plain >= {"listening", "switch", "request"}
    assert not [text for _, text in everything if text.startswith("<")]


TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}


def call_of(function: dict[str, str]) -> dict[str, Any]:
    """A message with one tool call."""
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


def test_its_lines_are_found_by_its_name(service: Service, pair: dict[str, str]) -> None:
    """`journalctl -t llm-switch`; python's name would be no help."""
    service.start(pair)
    assert any(entry["MESSAGE"].startswith("listening") for entry in service.entries("-t", "llm-switch"))


def test_a_switch_a_request_and_a_repair_log_one_line_each(service: Service, pair: dict[str, str]) -> None:
    proxy = service.start(pair)
    proxy.chat("a")
    function = {"name": "read", "arguments": "{'path': 'a.py',}"}
    message = call_of(function)
    proxy.chat("b", tools=[TOOL], stream=True, standin={"message": message, "finish": "tool_calls"})
    wait_for(lambda: len(service.lines("request")) == 2)
    first, second = service.lines("switch")
    assert re.fullmatch(r"switch from=- to=a stop_ms=\d+ load_ms=\d+", first)
    assert re.fullmatch(r"switch from=a to=b stop_ms=\d+ load_ms=\d+", second)
    plain, repaired = service.lines("request")
    figures = r"queue_ms=\d+\.\d switch_ms=\d+\.\d backend_ms=\d+\.\d prompt_tokens=3 completion_tokens=5"
    request = rf"request model={{}} path=/v1/chat/completions status=200 stream={{}} {figures} repaired={{}} error=-"
    assert re.fullmatch(request.format("a", "no", 0), plain)
    assert re.fullmatch(request.format("b", "yes", 1), repaired)
    (repair,) = service.lines("repair")
    assert re.fullmatch(r"repair model=b kind=\w+ tool=read", repair)


def test_an_error_logs_one_line_with_its_code(service: Service, pair: dict[str, str]) -> None:
    proxy = service.start(pair, request_timeout=1)
    for orders, code in (({"crash": 7}, "backend_crashed"), ({"cut": True}, "backend_error"), ({"hang": True}, None)):
        answer = proxy.chat("a", standin=orders)
        assert answer.error["code"] == (code or "backend_timeout")
        service.wait_for_last_request(f"error={answer.error['code']}")
    assert len(service.lines("request")) == 3


def test_what_is_asked_and_answered_never_reaches_the_journal(service: Service, pair: dict[str, str]) -> None:
    """However it goes: prompts, replies, tool arguments, and bodies that are no JSON."""
    proxy = service.start(pair, request_timeout=0.5)
    message = {"role": "assistant", "content": SECRET}
    function = {"name": "read", "arguments": f"{{'{SECRET}': '{SECRET}',}}"}
    call = call_of(function)
    orders: tuple[dict[str, Any], ...] = (
        {"message": message}, {"message": call, "finish": "tool_calls"}, {"status": 400}, {"cut": True}, {"hang": True},
        {"raw": f"<{SECRET}>"}, {"raw": json.dumps({"error": SECRET}), "status": 500}, {"crash": 1},
        {"deltas": [{"content": SECRET}], "stream_error": {"message": SECRET, "code": 500}},
    )  # fmt: skip
    for stream in (False, True):
        for order in orders:
            proxy.chat("a", SECRET, tools=[TOOL], stream=stream, standin=order)
    history = [{"role": "user", "content": SECRET}, call, {"role": "tool", "tool_call_id": "1", "content": SECRET}]
    proxy.post("/v1/chat/completions", {"model": "a", "messages": history})
    for body in (f'{{"model": "a", "{SECRET}'.encode(), SECRET.encode(), b"[" + json.dumps(SECRET).encode() + b"]"):
        for path in ("/v1/chat/completions", "/v1/embeddings", "/api/load", "/api/hold"):
            proxy.post(path, body)
    proxy.post("/v1/embeddings", {"model": "a", "input": [SECRET]})
    service.wait_for_last_request("path=/v1/embeddings status=200")
    assert len(service.lines("request")) > 20
    assert SECRET not in json.dumps(service.journal())


# --- watchdog and restarts --------------------------------------------------------------------------

QUICK = "RestartSec=100ms\nWatchdogSec=1500ms\nTimeoutAbortSec=300ms"


def test_a_live_proxy_notifies_the_watchdog(stack: Stack, pair: dict[str, str]) -> None:
    """Before the watchdog's time is over, and while requests run."""
    service = Service(stack, drop_in=QUICK)
    proxy = service.start(pair)
    seen: set[str] = set()

    def has_told_thrice() -> bool:
        seen.add(service.show("WatchdogTimestampMonotonic"))
        return len(seen) > 3

    with in_background(lambda: proxy.chat("a", standin={"delay_s": 2.5})) as answers:
        wait_for(has_told_thrice)
    assert answers[0].status == 200
    assert service.show("NRestarts") == "0"


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_wedged_or_killed_proxy_is_started_anew_and_adopts_the_model(
    stack: Stack, pair: dict[str, str], number: signal.Signals
) -> None:
    service = Service(stack, drop_in=QUICK)
    proxy = service.start(pair)
    proxy.chat("a")
    model, before = stack.main_pid(pair["a"]), stack.main_pid(service.unit)
    os.kill(before, number)
    wait_for(lambda: service.show("NRestarts") == "1" and service.is_up())
    assert stack.main_pid(service.unit) != before
    wait_for(lambda: proxy.state("a") == "ready")
    answer = proxy.chat("a")
    assert (answer.text, answer.timing("switch")) == ("hello from a", 0)
    assert stack.main_pid(pair["a"]) == model
    assert len(service.lines("adopted")) == 1


def test_a_config_that_is_broken_ends_in_a_clear_message(stack: Stack, pair: dict[str, str]) -> None:
    """Not in restarts for ever; once it is mended, the unit starts."""
    service = Service(stack, drop_in="RestartSec=20ms")
    service.config.write_text("server: {prot: 3002}\nmodels: {a: a}\n")
    stack.systemctl("start", service.unit, check=False)
    # The sixth start within the minute is refused; between two of them the unit is activating.
    wait_for(lambda: service.show("NRestarts") == "5" and service.show("ActiveState") == "failed")
    told = service.journal("-p", "err")
    assert len(told) == 2 * 5
    assert {priority for priority, _ in told} == {ERROR}
    assert f"config_error path={service.config} server.prot: unknown key; did you mean 'port'?" in told[0][1]
    assert "did you mean a.service?" in told[1][1]
    service.write_config(pair)
    stack.systemctl("reset-failed", service.unit)
    stack.systemctl("start", service.unit)
    assert service.proxy.get("/health").status == 200


# --- stopping ---------------------------------------------------------------------------------------


def test_stop_finishes_what_runs_and_leaves_the_model(service: Service, pair: dict[str, str]) -> None:
    """Streams too. A stopped proxy is no failed unit."""
    stack = service.stack
    proxy = service.start(pair)
    proxy.chat("a")

    def ask(stream: bool) -> Answer:
        return proxy.chat("a", stream=stream, standin={"delay_s": 1.6})

    with in_background(lambda: ask(False), lambda: ask(True)) as answers:
        wait_for(lambda: stack.seen()["running"] == 2)
        began = time.monotonic()
        stack.systemctl("stop", service.unit)
        assert time.monotonic() - began > 1
    assert answers[0].text == "hello from a"
    assert answers[1].events[-1] == "[DONE]"
    assert service.show("ActiveState") == "inactive"
    assert service.ended_well()
    assert stack.active_state(pair["a"]) == "active"
    assert service.journal()[-1][1] == "stopped"


def test_an_idle_proxy_stops_at_once(service: Service, pair: dict[str, str]) -> None:
    """It does not wait for kept and silent connections, as it would for requests."""
    proxy = service.start(pair)
    proxy.chat("a")
    with contextlib.ExitStack() as held:
        for _ in range(20):
            held.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
        began = time.monotonic()
        service.stack.systemctl("stop", service.unit)
        assert time.monotonic() - began < 0.8 * SHUTDOWN_S
    assert service.ended_well()


def test_a_restart_during_a_switch_finds_its_way(service: Service) -> None:
    """Who waits is told to come again, and is then served by the very process that was loading."""
    stack = service.stack
    models = {"a": stack.standin("a"), "slow": stack.standin("slow", "--load-s", "1.5")}
    proxy = service.start(models)
    proxy.chat("a")
    with in_background(lambda: proxy.chat("slow")) as answers:
        wait_for(lambda: stack.active_state(models["slow"]) == "active")
        stack.systemctl("restart", service.unit)
    assert (answers[0].status, answers[0].error["code"]) == (503, "shutting_down")
    assert 1 <= int(answers[0].headers["retry-after"]) < 60
    pid = stack.main_pid(models["slow"])
    assert pid != 0
    assert proxy.chat("slow").text == "hello from slow"
    assert stack.main_pid(models["slow"]) == pid
    assert stack.active_state(models["a"]) == "inactive"


def test_told_to_stop_before_it_serves_it_stops(stack: Stack, pair: dict[str, str]) -> None:
    """As soon as it listens to the signal, which is some milliseconds before it serves."""
    stack.write_config(pair)
    for _ in range(5):
        proxy = stack.start_proxy(wait=False)
        wait_for(functools.partial(_catches, proxy.process.pid, signal.SIGTERM))
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(30) == 0
        assert "stopping signal=SIGTERM" in proxy.log
        assert "Traceback" not in proxy.log


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal; see proc_pid_status(5)."""
    found = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return bool(int(found[1], 16) >> (number - 1) & 1)


def test_a_request_that_does_not_end_holds_a_stop_up_for_a_bounded_time(late: Late) -> None:
    """Within the unit's TimeoutStopSec, so that nothing is killed; its client is told, and the model stays."""
    service, began, answers = late
    wait_for(lambda: service.show("ActiveState") == "inactive")
    (ended,) = [int(it["__MONOTONIC_TIMESTAMP"]) / 1e6 for it in service.entries() if it["MESSAGE"] == "stopped"]
    assert ended - began > SHUTDOWN_S - 3
    assert service.ended_well()
    assert service.stack.active_state(f"{service.stack.prefix}-a.service") == "active"
    assert all("status=503" in line and "error=shutting_down" in line for line in service.lines("request")[-2:])
    plain, streamed = answers
    assert (plain.status, plain.error["code"]) == (503, "shutting_down")
    assert streamed.events[-1]["error"]["code"] == "shutting_down"
