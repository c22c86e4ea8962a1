"""How replies end: early, late, too large, with a client that has enough, and with a device that failed."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

from support.stack import Proxy, Stack, chat, wait_for
from systemd_llm_switch.forward.live_reply import LiveReply
from systemd_llm_switch.repair import RequestFacts

# --- streams that end early -----------------------------------------------------------------------

HALF_A_CHAT = ['data: {"choices": [{"index": 0, "delta": {"content": "Half an"}}]}\n\n']
CUT = {
    "/v1/chat/completions": HALF_A_CHAT,
    "/v1/completions": ['data: {"choices": [{"index": 0, "text": "Half an"}]}\n\n'],
    "/v1/responses": HALF_A_CHAT,
    "/v1/messages": HALF_A_CHAT,
}
END_OF_A_CHAT = [
    'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n',
    "data: [DONE]\n\n",
]
LAST = {"/v1/responses": b"event: response.completed\n", "/v1/messages": b"event: message_stop\n"}
HOW = {"ended": {}, "closed within chunks": {"cut_stream": True}, "closed": {"unframed": True}}


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    proxy = stack.run({"m": {"unit": stack.standin("m"), "streaming": "live"}}, max_reply_mb=1)
    assert proxy.chat("m").status == 200
    return proxy


def asking(**fields: Any) -> dict[str, Any]:
    """A body that each of the routes takes."""
    return chat("m", input="Say hi.", **fields)


@pytest.mark.parametrize("path", CUT)
def test_a_stream_that_the_backend_ended_early_is_an_error(proxy: Proxy, path: str) -> None:
    """On each route, and however it ended: the words that came are passed on, and are not taken for the answer."""
    for name, orders in HOW.items():
        answer = proxy.post(path, asking(stream=True, standin={"events": CUT[path], **orders}))
        assert b"Half an" in answer.body, name
        assert answer.events[-1]["error"]["code"] == "backend_error", name
        assert "[DONE]" not in answer.events, name
    wait_for(lambda: proxy.log.count(f"path={path} status=502") == len(HOW), what="the journal has them as errors")


@pytest.mark.parametrize("path", LAST)
def test_an_error_in_a_stream_has_the_name_that_the_routes_clients_look_for(proxy: Proxy, path: str) -> None:
    """Anthropic's SDK skips an event without one, and takes half an answer for all of it."""
    answer = proxy.post(path, asking(stream=True, standin={"events": CUT[path]}))
    _, _, last = answer.body.rstrip().rpartition(b"\n\n")
    assert last.startswith(b"event: error\ndata: ")
    assert answer.events[-1]["type"] == "error"
    assert "ended early" in answer.events[-1]["error"]["message"]


@pytest.mark.parametrize("path", CUT)
def test_a_stream_that_ends_before_it_begins_is_a_502(proxy: Proxy, path: str) -> None:
    answer = proxy.post(path, asking(stream=True, standin={"events": []}))
    assert (answer.status, answer.error["code"]) == (502, "backend_error")


# --- a client that has the whole answer -----------------------------------------------------------


@pytest.mark.parametrize("path", LAST)
def test_a_client_that_leaves_after_the_last_event_has_its_answer(proxy: Proxy, path: str) -> None:
    """As Codex does: it does not wait for the end of the stream."""
    leave_after(proxy, path, LAST[path], {"events": [*CUT[path], *END_OF_A_CHAT]})
    wait_for(lambda: f"path={path} status=" in proxy.log, what="the journal has the request")
    assert f"path={path} status=200" in proxy.log


@pytest.mark.parametrize("path", LAST)
def test_a_client_that_leaves_before_the_last_event_is_gone(proxy: Proxy, path: str) -> None:
    leave_after(proxy, path, b"Half an", {"events": CUT[path], "linger_s": 60})
    wait_for(lambda: f"path={path} status=499" in proxy.log, what="the journal says that it left")


def leave_after(proxy: Proxy, path: str, words: bytes, orders: dict[str, Any]) -> None:
    """A client that closes its connection when it has read these words."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(asking(stream=True, standin=orders)))
        reply = connection.getresponse()
        assert any(words in line for line in reply)


# --- too large ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_a_reply_that_is_too_large_is_a_502_that_names_the_key(proxy: Proxy, path: str, stream: bool) -> None:
    orders = {"events": ["data: " + "x" * 2_000_000]} if stream else {"raw": "x" * 2_000_000}
    answer = proxy.post(path, chat("m", stream=stream, standin=orders))
    last = answer.body.rpartition(b"data: ")[2] if answer.status == 200 else answer.body
    error = json.loads(last)["error"]
    assert error["code"] == "backend_error"
    assert "larger than 1 MB (server.max_reply_mb)" in error["message"]
    assert proxy.chat("m").status == 200


# --- a device that failed -------------------------------------------------------------------------

BROKEN: dict[str, Any] = {
    "status": 500,
    "raw": json.dumps({"error": {"code": 500, "message": "CUDA error: an illegal access"}}),
}


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "live"])
def test_a_unit_whose_device_fails_again_and_again_is_restarted(
    proxy: Proxy, stack: Stack, fields: dict[str, Any]
) -> None:
    unit = stack.units[0]
    pid = stack.main_pid(unit)
    answers = [proxy.chat("m", **fields, standin=BROKEN) for _ in range(3)]
    assert [answer.status for answer in answers] == [500] * 3
    assert [unit in answer.error["message"] for answer in answers] == [False, False, True]
    assert "restarted before its next use" in answers[2].error["message"]
    assert proxy.chat("m").status == 200
    assert stack.main_pid(unit) not in (0, pid)


@pytest.mark.parametrize(
    "between", [{}, {"status": 500, "raw": '{"error": {"message": "another"}}'}], ids=["an answer", "another error"]
)
def test_errors_of_a_device_with_something_between_restart_nothing(
    proxy: Proxy, stack: Stack, between: dict[str, Any]
) -> None:
    pid = stack.main_pid(stack.units[0])
    replies: list[dict[str, Any]] = [BROKEN, BROKEN, between, BROKEN, BROKEN]
    for orders in replies:
        proxy.chat("m", standin=orders)
    assert proxy.chat("m").status == 200
    assert stack.main_pid(stack.units[0]) == pid


def test_answers_about_errors_of_a_device_restart_nothing(proxy: Proxy, stack: Stack) -> None:
    pid = stack.main_pid(stack.units[0])
    about = {"message": {"role": "assistant", "content": "It says `CUDA error` because of the driver."}}
    for _ in range(4):
        assert "CUDA error" in proxy.chat("m", standin=about).text
    assert stack.main_pid(stack.units[0]) == pid


# --- what a live stream says of itself ------------------------------------------------------------

TIMINGS = {"prompt_n": 3, "cache_n": 1, "prompt_per_second": 9.5}


def live(chunks: list[dict[str, Any]], *, wants_usage: bool = False) -> tuple[LiveReply, list[Any]]:
    """A live reply of these chunks, and the events that it becomes for the client."""
    reply = LiveReply(RequestFacts(), is_chat=True, wants_usage=wants_usage)
    sent = b"".join(reply.feed(json.dumps(chunk).encode()) for chunk in chunks)
    reply.check()
    reply.end()
    sent += b"".join(reply.rest())
    lines = [line[6:] for line in sent.decode().split("\n") if line.startswith("data: ")]
    return reply, [json.loads(line) for line in lines if line != "[DONE]"]


def finished(*deltas: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a reply with these deltas, as llama-server sends them when it is asked for the usage."""
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return [*chunks, {"choices": [], "usage": {"completion_tokens": 2}, "timings": TIMINGS}]


@pytest.mark.parametrize("wants_usage", [False, True])
def test_timings_stand_in_the_last_chunk(wants_usage: bool) -> None:
    """The proxy asks for the usage in any case, and llama-server puts the timings beside it."""
    reply, events = live(finished({"content": "hi"}), wants_usage=wants_usage)
    assert [event.get("timings") for event in events if "timings" in event] == [TIMINGS]
    assert events[-1]["timings"] == TIMINGS
    assert bool(events[-1]["choices"]) != wants_usage
    assert reply.timings == TIMINGS


def call(name: str, arguments: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"name": name, "arguments": arguments}, **more}]}


def more(arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}


@pytest.mark.parametrize(
    "deltas",
    [
        [call("f", '{"a": 1}', id="x"), call("g", '{"b": 2}', id="y")],
        [call("f", "", id="x"), more('{"a": 1}'), call("g", "", id="y"), more('{"b": '), more("2}")],
        [call("f", '{"a": 1}'), call("g", '{"b": 2}')],
    ],
    ids=["whole", "in pieces", "without ids"],
)
def test_two_calls_with_one_index_stay_two(deltas: list[dict[str, Any]]) -> None:
    _, events = live(finished(*deltas))
    calls = [it for event in events for choice in event["choices"] for it in choice["delta"].get("tool_calls", ())]
    assert [(it["index"], it["function"]["name"], it["function"]["arguments"]) for it in calls] == [
        (0, "f", '{"a": 1}'),
        (1, "g", '{"b": 2}'),
    ]


@pytest.mark.parametrize(
    "deltas",
    [
        [call("f", '{"a"', id="x"), call("f", ": 1}", id="x")],
        [call("f", '{"a"'), call("f", ": 1}")],
        [call("f", ""), call("f", '{"a": 1}')],
        [call("f", '{"a": {}', id="x"), {"tool_calls": [{"index": 0, "id": None, "function": {"arguments": "}"}}]}],
    ],
    ids=["the id again", "the name again", "the name first", "a null id"],
)
def test_one_call_in_pieces_stays_one(deltas: list[dict[str, Any]]) -> None:
    _, events = live(finished(*deltas))
    calls = [it for event in events for choice in event["choices"] for it in choice["delta"].get("tool_calls", ())]
    assert len(calls) == 1
    assert calls[0]["function"]["name"] == "f"
    assert isinstance(json.loads(calls[0]["function"]["arguments"]), dict)


# --- the request after a stream, on the real llama-server -----------------------------------------

ROUNDS = 25
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {},
    "/v1/responses": {"input": "Say hi.", "max_output_tokens": 2},
    "/v1/messages": {},
}


@pytest.fixture(params=["live", "buffered"])
def real(request: pytest.FixtureRequest, stack: Stack, real_unit: Callable[..., str]) -> Proxy:
    proxy = stack.run({"m": {"unit": real_unit("m"), "streaming": request.param}})
    assert proxy.chat("m", max_tokens=2).status == 200
    return proxy


def test_no_request_is_lost_after_a_stream(real: Proxy) -> None:
    """llama-server closes a connection a moment after it has carried a stream: the next request must not be on it."""
    connection = http.client.HTTPConnection("127.0.0.1", real.port, timeout=60)
    with contextlib.closing(connection):
        for path, fields in ROUTES.items():
            for _ in range(ROUNDS):
                for stream in (True, False):
                    body = {**chat("m"), "max_tokens": 2, "stream": stream, **fields}
                    connection.request("POST", path, json.dumps(body))
                    reply = connection.getresponse()
                    text = reply.read()
                    assert reply.status == 200, text
                    assert b'"error":{' not in text.replace(b" ", b"")
