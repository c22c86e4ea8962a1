"""Node's clients against the real stack, in both modes: openai-node and the Vercel AI SDK (tests/clients/).

As a script, it has openai-node wait for an answer as long as one likes, by the real clock:

    python tests/product/test_clients_node.py --wait-s 360
"""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for a run as a script
sys.path.insert(0, str(Path(__file__).parents[2] / "deploy"))

from support.clients import CALL_PROMPT, LATE_ERROR, MEANT_CALLS, MODES, Bed, ending
from support.stack import Stack, chat
from systemd_llm_switch.setup.user_manager import UserManager

SCRIPTS = Path(__file__).parents[1] / "clients"


class Node:
    """A process with both clients, which runs one case after the other."""

    def __init__(self) -> None:
        command = ["node", str(SCRIPTS / "serve.mjs")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, order: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(order)}\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], 60)[0], f"no report: {order}"
        report = json.loads(self.process.stdout.readline())
        assert "crash" not in report, report
        return report


class Script:
    """One of the clients. `run` gives the report of one of its cases; `start` runs a case in a process of its own."""

    def __init__(self, name: str, url: str, node: Node | None = None) -> None:
        self.name = name
        self._url = url
        self._node = node

    def start(self, case: str, **order: Any) -> subprocess.Popen[str]:
        command = ["node", str(SCRIPTS / f"{self.name}.mjs"), case, json.dumps({"url": self._url, **order})]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, text=True)

    def run(self, case: str, **order: Any) -> Any:
        assert self._node is not None
        return self._node.run({"script": self.name, "name": case, "url": self._url, **order})


def report_of(process: subprocess.Popen[str], timeout_s: float = 60) -> Any:
    """What a script printed; blocks until its end."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output
    return json.loads(output)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    node = Node()
    with ending(node.process):
        yield node


@pytest.fixture(params=["openai-node", "ai-sdk"])
def client(request: pytest.FixtureRequest, bed: Bed, node: Node) -> Script:
    return Script(request.param, bed.url, node)


@pytest.fixture
def ai_sdk(bed: Bed, node: Node) -> Script:
    return Script("ai-sdk", bed.url, node)


@pytest.fixture
def plain(bed: Bed) -> Any:
    """What the real model says to `Say hi.`, asked without any client."""
    answer = bed.proxy.post("/v1/chat/completions", chat("real", temperature=0))
    return answer.json


# --- chat -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_what_the_model_said(client: Script, plain: Any, stream: bool) -> None:
    """Text, finish_reason and usage, streamed or not."""
    case = "stream" if stream and client.name == "openai-node" else "chat"
    told = client.run(case, model="real", stream=stream)
    assert told["text"] == plain["choices"][0]["message"]["content"]
    assert told["finish"] == plain["choices"][0]["finish_reason"]
    for count in ("prompt_tokens", "completion_tokens"):
        assert told["usage"][count] == plain["usage"][count] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_ai_sdk_shows_what_the_model_thought(ai_sdk: Script, stream: bool) -> None:
    told = ai_sdk.run("chat", model="thinking", stream=stream)
    assert (told["reasoning"], told["text"]) == ("Hm. Rain?", "I look it up.")


@pytest.mark.parametrize("stream", [False, True])
def test_the_ai_sdk_gets_its_object(ai_sdk: Script, stream: bool) -> None:
    """By a zod schema, of the real model and of one that formats badly."""
    told = ai_sdk.run("objects", models=["real", "broken-json"], stream=stream)
    assert told["real"]["city"] in ("Paris", "Oslo")
    assert isinstance(told["real"]["days"], int)
    assert told["broken-json"] == MEANT_CALLS[0]


# --- tools ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_round_trip_on_the_real_model(client: Script, stream: bool) -> None:
    """It wants to call another tool than the forced one, which is called all the same; then it speaks."""
    told = client.run("forced", model="real", stream=stream, prompt=CALL_PROMPT.replace("NAME", "get_news"))
    [call] = told["calls"]
    assert call["name"] == "get_weather"
    assert call["id"]
    assert call["input"]["city"] in ("Paris", "Oslo")
    assert isinstance(call["input"]["days"], int)
    assert told["finish"] in ("tool_calls", "tool-calls")
    assert told["text"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_runs_malformed_calls(client: Script, bed: Bed, stream: bool) -> None:
    """Its tools get what the model meant, and their results reach the model under the ids of the calls."""
    told = client.run("agent", model="broken-calls", stream=stream)
    assert told["inputs"] == MEANT_CALLS
    assert told["text"] == "It rains."
    *_, message, first, second = bed.last_body()["messages"]
    assert [first["tool_call_id"], second["tool_call_id"]] == [call["id"] for call in message["tool_calls"]]
    assert first["tool_call_id"] != second["tool_call_id"]
    assert [first["content"], second["content"]] == ["3 days of rain in Paris.", "2 days of rain in Oslo."]


# --- errors and cancelling --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_is_thrown_with_its_status_and_message(client: Script, stream: bool) -> None:
    told = client.run("errors", models=["nope", "failing"], stream=stream)
    assert (told["nope"]["status"], told["failing"]["status"]) == (404, 500)
    assert "'nope' does not exist; this proxy has: real," in told["nope"]["message"]
    assert "the stand-in says 500" in told["failing"]["message"]


def test_an_error_after_the_stream_began_is_thrown_with_its_message(client: Script) -> None:
    told = client.run("errors", models=["late-failing"], stream=True)
    assert LATE_ERROR in told["late-failing"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_aborting_frees_the_backend(client: Script, bed: Bed, stream: bool) -> None:
    def abort() -> None:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    with ending(client.start("cancel", model="endless" if stream else "hanging", stream=stream)) as process:
        bed.wait_until_generating()
        bed.expect_freed(abort)
        assert report_of(process)["error"] in ("APIUserAbortError", "DOMException")


# --- waiting ----------------------------------------------------------------------------------------

# Scaled down from the 300 s after which Node's fetch gives up and the 360 s of a slow load; but for the proxy's
# keep-alives, one every 10 s, which must come within it.
LIMIT_S = 14
WAIT_S = 32


class Waiting:
    """openai-node waits for answers that are silent for long: before they begin, or once they have begun. Through
    the proxy, and from the backend itself."""

    def __init__(self, stack: Stack, wait_s: float, limit_s: float | None) -> None:
        unit = stack.standin("slow")
        models = {mode: {"unit": unit, "streaming": mode} for mode in MODES}
        proxy = stack.run(models)
        assert proxy.chat("live").status == 200
        silences = {
            "buffered": {"delay_s": wait_s},
            "live": {"deltas": [{"content": "at last"}], "delta_s": wait_s},
        }
        urls = {"proxy": f"{proxy.url}/v1", "backend": f"http://127.0.0.1:{stack.port}/v1"}
        self._wait_s = wait_s
        self._scripts = {
            (server, mode): Script("openai-node", url).start("wait", model=mode, standin=silence, limit_s=limit_s)
            for server, url in urls.items()
            for mode, silence in silences.items()
        }

    def report(self, server: str, mode: str) -> Any:
        """How one of them ended; blocks until then."""
        return report_of(self._scripts[server, mode], self._wait_s + 30)

    def end(self) -> None:
        for process in self._scripts.values():
            process.kill()
            process.communicate()


@pytest.fixture(scope="module", autouse=True)
def waiting(manager: UserManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waiting]:
    """Begun before all tests here, so that the time passes meanwhile."""
    stack = Stack(manager.env, tmp_path_factory.mktemp("waiting"), "waiting")
    waiting = Waiting(stack, WAIT_S, LIMIT_S)
    yield waiting
    waiting.end()
    stack.close()


@pytest.mark.parametrize("mode", MODES)
def test_silence_longer_than_fetch_endures_is_endured(waiting: Waiting, mode: str) -> None:
    """From the backend itself the same client has given up, at its limit."""
    alone, told = waiting.report("backend", mode), waiting.report("proxy", mode)
    gave_up = {"buffered": ("APIConnectionTimeoutError", None), "live": ("TypeError", "UND_ERR_BODY_TIMEOUT")}
    assert (alone["error"], alone["cause"]) == gave_up[mode]
    assert LIMIT_S - 1 < alone["waited_s"] < WAIT_S
    assert told["unexpected"]["text"] in ("hello from slow", "at last")
    assert told["waited_s"] >= WAIT_S


def main() -> int:
    """Waits by the real clock, with Node's own fetch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--wait-s", type=float, default=360)
    wait_s = parser.parse_args().wait_s
    with tempfile.TemporaryDirectory() as folder:
        manager = UserManager.start(Path(folder))
        stack = Stack(manager.env, Path(folder), "waiting")
        try:
            waiting = Waiting(stack, wait_s, limit_s=None)
            for server in ("backend", "proxy"):
                for mode in MODES:
                    print(server, mode, json.dumps(waiting.report(server, mode)), flush=True)
        finally:
            stack.close()
            manager.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
