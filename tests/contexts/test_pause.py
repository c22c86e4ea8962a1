"""`POST /api/hold {"pause": true}`: running answers are cut, the card is free, and they go on afterwards."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

from contexts.bed import conversation
from support.stack import Proxy, Stack, in_background, wait_for

WriteUnit = Callable[..., str]
LONG = 60


@pytest.fixture
def proxy(stack: Stack, real_unit: WriteUnit) -> Proxy:
    folder = stack.folder / "contexts"
    folder.mkdir(mode=0o700)
    return stack.run({"a": real_unit("a", "--slot-save-path", str(folder))}, streaming="live")


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "a", "messages": conversation(1), "max_tokens": LONG, "temperature": 0, **fields}


class Reader:
    """Reads a live stream piece by piece, in its own thread."""

    def __init__(self, proxy: Proxy, **fields: Any) -> None:
        self.proxy = proxy
        self.fields = fields
        self.pieces: list[str] = []
        self.errors: list[Any] = []
        self.finishes: list[str] = []
        self.is_done = False

    def __call__(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=300)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", json.dumps(body(stream=True, **self.fields)))
            for line in connection.getresponse():
                if line.startswith(b"data: {"):
                    self._take(json.loads(line[6:]))
                self.is_done = self.is_done or line.startswith(b"data: [DONE]")

    def _take(self, event: Any) -> None:
        if "error" in event:
            self.errors.append(event["error"])
        for choice in event.get("choices", ()):
            self.pieces.append(choice["delta"].get("content") or "")
            self.finishes += [choice["finish_reason"]] if choice["finish_reason"] else []

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def tokens_generated(proxy: Proxy) -> int:
    """For the requests that run at the backend now."""
    running = [slot for slot in proxy.get("/upstream/a/slots").json if slot["is_processing"]]
    return sum(token["n_decoded"] for slot in running for token in slot["next_token"])


def test_a_live_answer_goes_on_where_it_was(proxy: Proxy, stack: Stack) -> None:
    whole = proxy.post("/v1/chat/completions", body(), timeout_s=300).json
    proxy.post("/api/unload", {})
    proxy.post("/api/contexts/forget", {})
    reader = Reader(proxy)
    with in_background(reader):
        wait_for(lambda: len(reader.text.split()) > 5, 120)
        assert proxy.post("/api/hold", {"pause": True}, timeout_s=120).json["on_hold"] is True
        assert stack.active_state(stack.units[0]) == "inactive"
        cut, pieces = reader.text, len(reader.pieces)
        assert not reader.is_done
        assert "context_saved model=a" in proxy.log
        assert proxy.post("/api/release", {}).status == 200
    assert reader.errors == []
    assert len(cut) < len(reader.text)
    assert len(reader.pieces) - pieces > 10, "the rest comes as the model writes it"
    assert reader.text == whole["choices"][0]["message"]["content"]
    assert reader.finishes == [whole["choices"][0]["finish_reason"]]
    assert reader.is_done
    assert "context_restored model=a" in proxy.log


def test_a_plain_answer_is_given_after_the_pause(proxy: Proxy) -> None:
    """A plain request is asked again. Its prompt is in the restored context, so the answer is that of a second request:
    a prompt that is read in one go gives slightly other sums than one whose last token is read alone."""
    proxy.post("/v1/chat/completions", body(), timeout_s=300)
    whole = proxy.post("/v1/chat/completions", body(), timeout_s=300).json
    with in_background(lambda: proxy.post("/v1/chat/completions", body(), timeout_s=300)) as results:
        wait_for(lambda: tokens_generated(proxy) > 5, 120)
        proxy.post("/api/hold", {"pause": True}, timeout_s=120)
        wait_for(lambda: "request_paused model=a" in proxy.log)
        proxy.post("/api/release", {})
    assert results[0].status == 200
    assert results[0].text == whole["choices"][0]["message"]["content"]


def test_a_hold_that_ends_by_itself_lets_answers_go_on(proxy: Proxy) -> None:
    reader = Reader(proxy)
    with in_background(reader):
        wait_for(lambda: len(reader.text.split()) > 5, 120)
        proxy.post("/api/hold", {"pause": True, "minutes": 0.02}, timeout_s=120)
    assert reader.is_done
    assert reader.errors == []


def test_what_cannot_go_on_after_a_pause_ends_before_it(stack: Stack) -> None:
    """A completion's beginning cannot be given back to its model."""
    proxy = stack.run({"b": stack.standin("b")})
    assert proxy.post("/api/load", {"model": "b"}).status == 200
    asked = {"model": "b", "prompt": "x", "standin": {"until_released": True}}
    with in_background(lambda: proxy.post("/v1/completions", asked)) as results:
        wait_for(lambda: stack.seen()["running"] == 1)
        with in_background(lambda: proxy.post("/api/hold", {"pause": True})) as held:
            wait_for(lambda: proxy.status()["on_hold"])
            stack.release()
    assert (results[0].status, held[0].status) == (200, 200)
    assert "request_paused" not in proxy.log


def test_a_client_that_leaves_meanwhile_is_not_waited_for(stack: Stack) -> None:
    proxy = stack.run({"b": stack.standin("b")}, streaming="live")
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    asked = {"model": "b", "messages": [{"role": "user", "content": "x"}], "standin": {"hang": True}}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked))
    wait_for(lambda: proxy.status()["models"]["b"]["in_flight"] == 1)
    proxy.post("/api/hold", {"pause": True})
    wait_for(lambda: "request_paused model=b" in proxy.log)
    connection.close()
    wait_for(lambda: "status=499" in proxy.log)


def test_several_choices_that_have_begun_end_with_an_error(stack: Stack) -> None:
    proxy = stack.run({"b": stack.standin("b")}, streaming="live")
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    asked = {
        "model": "b", "messages": [{"role": "user", "content": "x"}], "stream": True, "n": 2,
        "standin": {"delta_s": 0.3, "deltas": [{"content": f"{number} "} for number in range(500)]},
    }  # fmt: skip
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(asked))
        reply = connection.getresponse()
        while b'"index": 1' not in reply.readline():
            continue
        proxy.post("/api/hold", {"pause": True})
        assert b"several choices cannot go on" in reply.read()


def test_thoughts_of_an_unknown_form_end_with_an_error(stack: Stack) -> None:
    """The stand-in has no template that would show their form."""
    proxy = stack.run({"b": stack.standin("b")}, streaming="live")
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    asked = {
        "model": "b", "messages": [{"role": "user", "content": "x"}], "stream": True,
        "standin": {
            "delta_s": 0.3, "deltas": [{"reasoning_content": f"{number} "} for number in range(500)],
            "template": "PROMPT", "completion": "It would have gone on.",
        },
    }  # fmt: skip
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(asked))
        reply = connection.getresponse()
        while b"reasoning_content" not in reply.readline():
            continue
        proxy.post("/api/hold", {"pause": True})
        proxy.post("/api/release", {})
        assert b"was paused and cannot go on" in reply.read()


def test_a_stopped_proxy_ends_what_is_paused(stack: Stack) -> None:
    proxy = stack.run({"b": stack.standin("b")})
    asked = {"model": "b", "messages": [{"role": "user", "content": "x"}], "standin": {"hang": True}}
    with in_background(lambda: proxy.post("/v1/chat/completions", asked)) as results:
        wait_for(lambda: proxy.status()["models"]["b"]["in_flight"] == 1)
        proxy.post("/api/hold", {"pause": True})
        wait_for(lambda: "request_paused model=b" in proxy.log)
        assert proxy.stop() == 0
    assert results[0].error["code"] == "shutting_down"


def test_pause_must_be_a_flag(stack: Stack) -> None:
    proxy = stack.run({"b": stack.standin("b")})
    assert proxy.post("/api/hold", {"pause": 1}).error["param"] == "pause"
