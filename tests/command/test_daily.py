"""The daily verbs, on a real proxy and real units."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.stack import ROOT, Proxy, Stack, free_port, in_background, wait_for


class Chatting:
    """A running `llm-switch chat`."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self._process = process
        self._terminal = terminal
        self._shown = b""

    def terminal(self) -> str:
        """What the terminal has shown so far."""
        while select.select([self._terminal], [], [], 0)[0]:
            try:
                self._shown += os.read(self._terminal, 4096)
            except OSError:  # EIO: the command has ended
                break
        return self._shown.decode()

    def answer(self) -> str:
        """All of stdout, once the command has ended."""
        return self._process.communicate(timeout=120)[0].decode()


class Command:
    """`llm-switch`, as a person types it."""

    def __init__(self, stack: Stack) -> None:
        self._config = str(stack.config_path)
        self._env = {**stack.env, "PYTHONPATH": str(ROOT / "src"), "LLM_SWITCH_CONFIG": self._config}

    def run(self, *words: str, text: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*words),
            input=text,
            env=self._env | env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.words(*words), env=self._env, stdout=subprocess.PIPE, text=True)

    @contextlib.contextmanager
    def chatting(self, *words: str) -> Iterator[Chatting]:
        """A chat whose stderr is a terminal."""
        own, others = pty.openpty()
        process = subprocess.Popen(
            self.words("chat", *words), env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=others
        )
        os.close(others)
        try:
            yield Chatting(process, own)
        finally:
            process.kill()
            process.wait()
            os.close(own)

    def words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "systemd_llm_switch", *words]

    def output(self, *words: str) -> str:
        """What it prints where all is well."""
        ran = self.run(*words)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.output(*words, "--json"))


def run_proxy(stack: Stack, models: dict[str, Any], **server: Any) -> Proxy:
    """A proxy whose config names the port that it got."""
    proxy = stack.run(models, **server)
    stack.write_config(models, port=proxy.port, **server)
    return proxy


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    models = {"a": {"unit": stack.standin("a"), "aliases": ["alias"]}, "b": stack.standin("b")}
    return run_proxy(stack, models)


@pytest.fixture
def command(stack: Stack, proxy: Proxy) -> Command:
    return Command(stack)


def test_status_as_json_is_what_the_proxy_answers(command: Command, proxy: Proxy) -> None:
    assert command.json("status") == proxy.status()
    assert command.json("ps") == proxy.status()


def test_status_shows_each_model_and_who_waits(command: Command, proxy: Proxy) -> None:
    proxy.chat("a")
    shown = command.output("status")
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert lines["a"][1] == "ready"
    assert lines["b"][1] == "stopped"
    assert "Nobody waits." in shown


def test_status_and_the_progress_of_a_chat_say_why_a_request_waits(
    command: Command, proxy: Proxy, stack: Stack
) -> None:
    reason = "waits for a to finish running requests"
    with in_background(lambda: proxy.chat("a", standin={"until_released": True})):
        wait_for(lambda: proxy.status()["models"]["a"]["in_flight"] == 1)
        with command.chatting("b", "Hello") as chat:
            wait_for(lambda: f"b: {reason}" in chat.terminal())
            (line,) = [line for line in command.output("status").splitlines() if line.endswith(reason)]
            assert line.split()[0] == "b"
            stack.release()
            assert chat.answer() == "hello from b\n"


def test_status_says_why_a_model_does_not_start(stack: Stack) -> None:
    proxy = run_proxy(stack, {"broken": stack.standin("broken", "--exit", "3", "--say", "no such file")})
    proxy.chat("broken")
    lines = Command(stack).output("status").splitlines()
    assert any(line.startswith("broken: model 'broken' failed to start") for line in lines)
    assert "    no such file" in lines  # the journal's


@pytest.mark.parametrize(
    ("prepare", "state"),
    [
        (lambda proxy: None, "idle"),
        (lambda proxy: proxy.chat("a"), "loaded"),
        (lambda proxy: proxy.post("/api/hold", {}), "hold"),
    ],
)
def test_the_bar_gets_a_line_of_json(
    command: Command, proxy: Proxy, prepare: Callable[[Proxy], object], state: str
) -> None:
    prepare(proxy)
    (line,) = command.output("status", "--waybar").splitlines()
    shown = json.loads(line)
    assert set(shown) == {"text", "alt", "class", "tooltip"}
    assert shown["class"] == state


def test_models_lists_them_with_their_aliases(command: Command) -> None:
    (line,) = [line for line in command.output("models").splitlines() if line.startswith("a ")]
    assert line.split() == ["a", "unloaded", "-", "-", "alias"]
    assert [model["id"] for model in command.json("models")["data"]] == ["a", "b"]


def test_load_waits_until_the_model_is_ready(command: Command, proxy: Proxy) -> None:
    assert command.output("load", "alias").startswith("a is ready")
    assert proxy.state("a") == "ready"


def test_load_without_a_wait_returns_at_once(command: Command, proxy: Proxy) -> None:
    assert command.output("load", "a", "--no-wait") == "a is being loaded.\n"
    wait_for(lambda: proxy.state("a") == "ready")


@pytest.mark.parametrize("words", ["load nobody", "unload nobody", "logs nobody", "chat nobody x"])
def test_an_unknown_model_is_refused_with_the_proxys_words(command: Command, words: str) -> None:
    ran = command.run(*words.split())
    assert ran.returncode == 1
    assert "nobody" in ran.stderr
    assert ran.stdout == ""


def test_unload_frees_one_model_or_all(command: Command, proxy: Proxy) -> None:
    proxy.chat("a")
    assert command.output("unload", "b") == "Nothing was loaded.\n"
    assert command.output("unload", "a") == "a is unloaded.\n"
    assert proxy.state("a") == "stopped"
    proxy.chat("b")
    assert command.output("unload") == "b is unloaded.\n"


@pytest.mark.parametrize("words", [["unload", "a", "--no-wait"], ["hold", "--no-wait"]])
def test_no_wait_returns_while_a_request_still_runs(stack: Stack, words: list[str]) -> None:
    proxy = run_proxy(stack, {"a": stack.standin("a")})
    with in_background(lambda: proxy.chat("a", standin={"until_released": True})) as results:
        wait_for(lambda: proxy.status()["models"]["a"]["in_flight"] == 1)
        Command(stack).output(*words)
        assert proxy.state("a") == "draining"
        stack.release()
    assert results[0].status == 200
    wait_for(lambda: proxy.state("a") == "stopped")


def test_unload_with_force_ends_what_runs(stack: Stack) -> None:
    proxy = run_proxy(stack, {"a": stack.standin("a")})
    with in_background(lambda: proxy.chat("a", standin={"until_released": True})) as results:
        wait_for(lambda: proxy.status()["models"]["a"]["in_flight"] == 1)
        Command(stack).output("unload", "--force")
    assert results[0].error["code"] == "model_unloaded"


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("90m", 90), ("2h", 120), ("0.5h", 30), ("1d", 1440), ("5min", 5)]
)
def test_hold_takes_a_time(command: Command, proxy: Proxy, text: str, minutes: float) -> None:
    assert command.json("hold", text)["minutes"] == minutes
    left_min = (proxy.status()["hold_until"] - time.time()) / 60
    assert minutes - 2 < left_min <= minutes + 0.01  # it is rounded to a tenth of a second


@pytest.mark.parametrize("text", ["0", "-1", "2x", "h", "1e9", "", "9" * 20])
def test_a_time_that_makes_no_sense_is_wrong_usage(command: Command, text: str) -> None:
    assert command.run("hold", text).returncode == 2


def test_hold_and_release_are_shown(command: Command, proxy: Proxy) -> None:
    proxy.chat("a")
    assert command.output("hold") == "On hold until `llm-switch release`: the VRAM is free.\n"
    assert proxy.state("a") == "stopped"
    assert "On hold until llm-switch release" in command.output("status")
    assert command.output("release") == "Requests are served again.\n"
    assert proxy.chat("a").status == 200


def test_release_without_a_hold_says_that_there_was_none(command: Command) -> None:
    assert command.output("release") == "There was no hold; requests are served.\n"


def test_chat_prints_the_answer_and_nothing_else(command: Command, proxy: Proxy) -> None:
    answer = proxy.chat("a", "Hello").text
    assert command.output("chat", "a", "Hello") == f"{answer}\n"


def test_chat_reads_a_question_from_a_pipe(command: Command) -> None:
    assert command.run("chat", "a", text="Hello\nthere\n").stdout.strip()


def test_an_error_within_the_answer_is_shown(stack: Stack) -> None:
    proxy = run_proxy(stack, {"a": stack.standin("a")}, streaming="live")
    proxy.chat("a")
    proxy.post("/api/hold", {})
    ran = Command(stack).run("chat", "a", "Hello")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "on hold" in ran.stderr


def test_logs_shows_a_models_journal_and_the_proxys_log(command: Command, proxy: Proxy) -> None:
    proxy.chat("a")
    wait_for(lambda: "Started" in command.output("logs", "a"))
    wait_for(lambda: "request model=a" in command.output("logs"))
    assert len(command.output("logs", "-n", "1").splitlines()) == 1


def test_logs_without_a_line_says_what_that_may_mean(command: Command) -> None:
    ran = command.run("logs", "b")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert "The journal shows no lines of b: it has not run yet, or you may not read the journal." in ran.stderr


@pytest.mark.parametrize(("words", "awaited"), [(("logs", "-f"), "request model=a"), (("requests", "-f"), " a  200 ")])
def test_what_comes_is_followed(command: Command, proxy: Proxy, words: tuple[str, ...], awaited: str) -> None:
    process = command.start(*words)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        with in_background(lambda: wait_for(lambda: proxy.chat("a").status == 200 and process.poll() is not None)):
            assert any(awaited in line for line in process.stdout)
            process.kill()
    finally:
        process.kill()
        process.wait()


def test_requests_lists_the_last_ones(command: Command, proxy: Proxy) -> None:
    proxy.chat("a")
    wait_for(lambda: " a " in command.output("requests"))
    assert command.json("requests", "-n", "1") == proxy.get("/api/requests?limit=1").json


def test_metrics_are_those_that_prometheus_reads(command: Command) -> None:
    assert 'llm_switch_model_loaded{model="a"} 0.0\n' in command.output("metrics")


def test_forget_says_what_is_gone(command: Command) -> None:
    assert command.output("forget") == "There were no contexts.\n"


def test_the_status_says_which_unit_keeps_no_contexts_and_what_to_add(command: Command, proxy: Proxy) -> None:
    wait_for(lambda: "a: no contexts are kept: add `--slot-save-path DIR`" in command.output("status"))


def test_a_key_of_the_config_is_used(stack: Stack) -> None:
    run_proxy(stack, {"a": stack.standin("a")}, api_keys=["sesame"])
    command = Command(stack)
    assert command.run("status").returncode == 0
    ran = command.run("status", LLM_SWITCH_API_KEY="wrong")
    assert ran.returncode == 1
    assert "server.api_keys" in ran.stderr


class TestWithoutAProxy:
    @pytest.fixture
    def lonely(self, stack: Stack) -> Command:
        stack.write_config({"a": stack.standin("a")}, port=free_port())
        return Command(stack)

    @pytest.mark.parametrize(
        "words",
        ["metrics", "load a", "unload", "hold", "release", "requests", "chat a x", "forget"],
    )
    def test_a_verb_says_where_it_looked_and_what_to_do(self, lonely: Command, words: str) -> None:
        ran = lonely.run(*words.split())
        assert (ran.returncode, ran.stdout) == (3, "")
        assert "no proxy answers at http://127.0.0.1:" in ran.stderr
        assert "systemctl --user start llm-switch.service" in ran.stderr

    @pytest.mark.parametrize("verb", ["status", "models"])
    def test_what_systemd_reports_is_shown(self, lonely: Command, verb: str) -> None:
        ran = lonely.run(verb)
        assert ran.returncode == 3
        assert "inactive" in ran.stdout

    @pytest.mark.parametrize("verb", ["status", "models"])
    def test_for_programs_it_is_json_there_too(self, lonely: Command, stack: Stack, verb: str) -> None:
        ran = lonely.run(verb, "--json")
        assert ran.returncode == 3
        said = json.loads(ran.stdout)
        assert said["error"] in ran.stderr
        assert said["models"] == {"a": {"unit": stack.units[0], "systemd": "inactive"}}

    def test_logs_shows_what_the_journal_has(self, lonely: Command, stack: Stack) -> None:
        (unit,) = stack.units
        stack.systemctl("start", unit)
        ran = wait_for(lambda: (it := lonely.run("logs", "a")) and "Started" in it.stdout and it)
        assert ran.returncode == 3

    def test_the_bar_stays(self, lonely: Command) -> None:
        assert json.loads(lonely.output("status", "--waybar"))["class"] == "down"


def test_something_else_on_the_port_is_not_taken_for_the_proxy(stack: Stack) -> None:
    port = free_port()
    stack.write_config({"a": stack.standin("a")}, port=port)
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], stderr=subprocess.DEVNULL
    )
    try:
        ran = wait_for(lambda: (it := Command(stack).run("status")) and "not the proxy" in it.stderr and it)
        assert ran.returncode == 3
    finally:
        server.kill()
        server.wait()


ANSWERS_ALL = """\
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200); self.send_header("Content-Type", "text/html"); self.end_headers()
        self.wfile.write(b"<html>")
    do_GET = do_POST
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
"""


def test_a_page_in_the_place_of_an_answer_is_an_error(stack: Stack) -> None:
    port = free_port()
    stack.write_config({"a": stack.standin("a")}, port=port)
    server = subprocess.Popen([sys.executable, "-c", ANSWERS_ALL, str(port)])
    try:
        ran = wait_for(lambda: (it := Command(stack).run("chat", "a", "hi")) and "not the proxy" in it.stderr and it)
        assert ran.returncode == 3
        assert ran.stdout == ""
    finally:
        server.kill()
        server.wait()


def test_what_a_model_writes_does_not_act_on_the_terminal(stack: Stack) -> None:
    """A file has every character."""
    message = {"role": "assistant", "reasoning_content": "x\x1b[2Jy", "content": "a\x1b[2Jb\x9b"}
    run_proxy(stack, {"a": {"unit": stack.standin("a"), "params": {"standin": {"message": message}}}})
    with Command(stack).chatting("a", "hi") as chat:
        assert chat.answer() == "a\x1b[2Jb\x9b\n"
        wait_for(lambda: r"x\x1b[2Jy" in chat.terminal())
        assert "\x1b[2J" not in chat.terminal()


ANSWERS_JSON = ANSWERS_ALL.replace("text/html", "application/json").replace('"<html>"', """'{"data": [{"id": "a"}]}'""")


def test_another_server_of_json_is_not_taken_for_the_proxy(stack: Stack) -> None:
    """llama-server itself, for example, on the proxy's port."""
    port = free_port()
    stack.write_config({"a": stack.standin("a")}, port=port)
    server = subprocess.Popen([sys.executable, "-c", ANSWERS_JSON, str(port)])
    try:
        wait_for(lambda: "it calls itself 'BaseHTTP" in Command(stack).run("models").stderr)
        for verb in (["status"], ["requests"], ["logs", "a"], ["release"]):
            ran = Command(stack).run(*verb)
            assert (ran.returncode, "Traceback" in ran.stderr) == (3, False), ran.stderr
    finally:
        server.kill()
        server.wait()


def test_config_says_what_the_running_proxy_goes_by(stack: Stack) -> None:
    proxy = run_proxy(stack, {"a": stack.standin("a")})
    assert Command(stack).run("config").stderr == ""
    moved = stack.config_path.rename(stack.config_path.with_name("moved.yaml"))
    proxy.get("/v1/models")
    ran = Command(stack).run("config", "--config", str(moved))
    assert f"the running proxy keeps the last good config of {stack.config_path}: " in ran.stderr


def test_a_broken_config_is_named(stack: Stack) -> None:
    stack.config_path.write_text("models: 5\n")
    ran = Command(stack).run("status")
    assert ran.returncode == 1
    assert "models" in ran.stderr
