"""Live streaming: words as they come, tool calls whole and sound, the same answer as without streaming."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.stack import Answer, Proxy, Stack, chat, run_all, wait_for
from systemd_llm_switch.setup.user_manager import UserManager

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "write_file",
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "lines": {"type": "integer"}},
                "required": ["path"],
            },
        },
    }
]
LARGE_ARGUMENTS = json.dumps({"path": "a.py", "lines": 1, "text": "x" * 8_000_000})


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    return run(stack)


def run(stack: Stack) -> Proxy:
    """A model that streams live, and the same one that does not."""
    unit = stack.standin("m")
    models = {"live": {"unit": unit, "streaming": "live"}, "whole": {"unit": unit, "streaming": "buffered"}}
    proxy = stack.run(models)
    assert proxy.chat("whole").status == 200
    return proxy


def put_together(events: list[Any]) -> dict[str, Any]:
    """What a client makes of a stream."""
    assert events[-1] == "[DONE]"
    text, reasoning, finish = "", "", None
    calls: dict[int, dict[str, Any]] = {}
    for event in events[:-1]:
        for choice in event["choices"]:
            assert finish is None, "something came after finish_reason"
            delta = choice["delta"]
            text += delta.get("content") or ""
            reasoning += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or []:
                known = calls.setdefault(call["index"], {"arguments": ""})
                known.setdefault("id", call.get("id"))
                known.setdefault("name", call["function"].get("name"))
                known["arguments"] += call["function"].get("arguments") or ""
            finish = choice["finish_reason"]
    for call in calls.values():
        assert call.pop("id")
    return {"text": text, "reasoning": reasoning, "calls": [calls[i] for i in sorted(calls)], "finish": finish}


def of_message(answer: Any) -> dict[str, Any]:
    """The same of a finished answer."""
    choice = answer.json["choices"][0]
    message = choice["message"]
    calls = [
        {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        for call in message.get("tool_calls") or []
    ]
    return {
        "text": message.get("content") or "",
        "reasoning": message.get("reasoning_content") or "",
        "calls": calls,
        "finish": choice["finish_reason"],
    }


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS}])
def test_words_come_as_the_model_writes_them(proxy: Proxy, fields: dict[str, Any]) -> None:
    """The first delta does not wait for the last, and each is passed on at once, also where a call may come."""
    arrivals = []
    began = time.monotonic()
    for event in stream(proxy, "live", standin={"delta_s": 0.3}, **fields):
        arrivals.append((time.monotonic() - began, event))
    contents = [at for at, event in arrivals if event != "[DONE]" and event["choices"][0]["delta"].get("content")]
    assert len(contents) >= 3  # a space at the end may be held, and comes alone
    assert contents[2] - contents[0] > 0.5


def test_the_backend_is_asked_to_stream_only_live(proxy: Proxy, stack: Stack) -> None:
    proxy.chat("live", stream=True)
    proxy.chat("whole", stream=True)
    bodies = stack.seen()["bodies"]
    assert [body.get("stream", False) for body in bodies[-2:]] == [True, False]


def test_usage_comes_only_when_asked_for(proxy: Proxy) -> None:
    with_usage = proxy.chat("live", stream=True, stream_options={"include_usage": True}).events
    without = proxy.chat("live", stream=True).events
    assert with_usage[-2]["usage"]["total_tokens"] == 8
    assert with_usage[-2]["choices"] == []
    assert all("usage" not in event for event in without if event != "[DONE]")


@pytest.mark.parametrize("case", ["broken", "two", "leaked", "leaked_after_text", "prose", "fence", "empty_space"])
def test_both_modes_give_the_same_answer(proxy: Proxy, case: str) -> None:
    """Whatever the model writes, piece by piece: put together it equals the finished and repaired reply."""
    message, deltas = CASES[case]
    finish = "stop"
    live = proxy.chat("live", tools=TOOLS, stream=True, standin={"deltas": deltas, "finish": finish}).events
    whole = proxy.chat("whole", tools=TOOLS, standin={"message": message, "finish": finish})
    assert put_together(live) == of_message(whole)
    again = proxy.chat("whole", tools=TOOLS, stream=True, standin={"message": message, "finish": finish}).events
    assert put_together(again) == of_message(whole)


def _pieces(text: str, size: int = 3) -> list[dict[str, Any]]:
    return [{"content": text[start : start + size]} for start in range(0, len(text), size)]


def _call(index: int, arguments: list[str]) -> list[dict[str, Any]]:
    head = {"index": index, "id": f"c{index}", "type": "function", "function": {"name": "write_file", "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": piece}} for piece in arguments]
    return [{"tool_calls": [call]} for call in [head, *rest]]


def _finished_call(index: int, arguments: str) -> dict[str, Any]:
    return {"id": f"c{index}", "type": "function", "function": {"name": "write_file", "arguments": arguments}}


LEAK = '<tool_call>\n{"name": "write_file", "arguments": {"path": "a.py", "lines": 3}}\n</tool_call>'
PROSE = "I would use `write_file` here.\n\nThe tag <b>bold</b> and a list: [1, 2].  \n\n  Indented.\n"
FENCE = 'Here is code:\n\n```json\n{"name": "x"}\n```\n\nThat was it.\n'
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "broken": (
        {"role": "assistant", "content": None, "tool_calls": [_finished_call(0, "{'path': 'a.py', 'lines': '3',}")]},
        [{"role": "assistant"}, *_call(0, ["{'path': 'a", ".py', 'lines'", ": '3',}"])],
    ),
    "two": (
        {
            "role": "assistant",
            "content": "Two files.",
            "tool_calls": [_finished_call(0, '{"path": "a"}'), _finished_call(1, '{"path": "b"')],
        },
        [
            {"role": "assistant"}, {"content": "Two files."},
            *_call(0, ['{"path":', ' "a"}']), *_call(1, ['{"path": "b"']),
        ],
    ),
    "leaked": ({"role": "assistant", "content": LEAK}, [{"role": "assistant"}, *_pieces(LEAK)]),
    "leaked_after_text": (
        {"role": "assistant", "content": f"I will write it.\n\n{LEAK}"},
        [{"role": "assistant"}, *_pieces(f"I will write it.\n\n{LEAK}")],
    ),
    "prose": ({"role": "assistant", "content": PROSE}, [{"role": "assistant"}, *_pieces(PROSE)]),
    "fence": (
        {"role": "assistant", "reasoning_content": "Hm. So.", "content": FENCE},
        [{"role": "assistant"}, {"reasoning_content": "Hm. "}, {"reasoning_content": "So."}, *_pieces(FENCE)],
    ),
    "empty_space": ({"role": "assistant", "content": " \n"}, [{"role": "assistant"}, {"content": " \n"}]),
}  # fmt: skip


def test_a_leaked_call_is_not_shown_as_text(proxy: Proxy) -> None:
    """The text before it comes live, the call as a call."""
    deltas = [{"role": "assistant"}, *_pieces(f"I will write it.\n\n{LEAK}")]
    whole = put_together(proxy.chat("live", tools=TOOLS, stream=True, standin={"deltas": deltas}).events)
    assert whole["text"] == "I will write it."
    assert [json.loads(call["arguments"]) for call in whole["calls"]] == [{"path": "a.py", "lines": 3}]
    assert whole["finish"] == "tool_calls"
    wait_for(lambda: proxy.status()["repairs"].get("rescued_call") == 1)  # counted after the answer


def test_json_content_is_held_and_repaired(proxy: Proxy) -> None:
    text = '```json\n{"a": 1,}\n```'
    fields: dict[str, Any] = {"response_format": {"type": "json_object"}}
    live = proxy.chat("live", stream=True, standin={"deltas": _pieces(text)}, **fields).events
    whole = proxy.chat("whole", standin={"message": {"role": "assistant", "content": text}}, **fields)
    assert put_together(live)["text"] == of_message(whole)["text"]
    assert json.loads(put_together(live)["text"]) == {"a": 1}


def test_a_cut_in_the_stream_is_an_error_in_it(proxy: Proxy) -> None:
    events = list(stream(proxy, "live", standin={"cut_stream": True}))
    assert events[-1]["error"]["code"] == "backend_error"
    assert "choices" not in events[-1]


def test_a_crash_in_the_stream_is_reported_with_its_reason(proxy: Proxy, stack: Stack) -> None:
    events = []
    for event in stream(proxy, "live", standin={"delta_s": 0.5}):
        events.append(event)
        if len(events) == 2:
            stack.systemctl("kill", "--signal=SIGKILL", f"{stack.prefix}-m.service")
    assert events[-1]["error"]["code"] == "backend_crashed"
    assert "SIGKILL" in events[-1]["error"]["message"]
    assert proxy.chat("live").status == 200


def test_a_backends_error_in_the_stream_is_passed_on(proxy: Proxy) -> None:
    error = {"message": "the model fell over", "type": "server_error", "code": 500}
    events = list(stream(proxy, "live", standin={"stream_error": error}))
    assert [event["choices"][0]["delta"].get("content") for event in events[1:4]] == ["a ", "b ", "m "]
    assert events[-1]["error"]["message"] == "the model fell over"


def test_a_backends_error_before_the_stream_keeps_its_status(proxy: Proxy) -> None:
    answer = proxy.chat("live", stream=True, standin={"deltas": [], "hang": False, "status": 200}, n=1)
    assert answer.status == 200
    lost = proxy.chat("nope", stream=True)
    assert lost.status == 404


def test_a_dropped_live_stream_frees_the_backend_at_once(proxy: Proxy, stack: Stack) -> None:
    events = stream(proxy, "live", standin={"delta_s": 0.1, "deltas": [{"content": "x"}] * 500})
    next(events)
    events.close()
    wait_for(lambda: stack.seen()["dropped"] == 1)
    wait_for(lambda: "status=499" in proxy.log)


def test_text_completions_stream_live_too(proxy: Proxy) -> None:
    deltas = [{"content": "a "}, {"content": "b"}]
    body = {"model": "live", "prompt": "p", "stream": True, "standin": {"deltas": deltas}}
    answer = proxy.post("/v1/completions", body)
    assert answer.status == 200
    assert answer.events[-1] == "[DONE]"


# --- pauses: what takes some fifteen seconds, all at once --------------------------------------------------

TORN = {"deltas": [{"content": "one"}, {"content": "two"}]}
PAUSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a held call": (
        "live", "/v1/chat/completions",
        {"deltas": [{"role": "assistant"}, *_call(0, ['{"path"', ': "a"}'])], "delta_s": 3.5},
    ),
    "chat, between chunks": ("live", "/v1/chat/completions", {**TORN, "torn_at": 0, "torn_s": 11.5}),
    "chat, within a chunk's length": ("live", "/v1/chat/completions", {**TORN, "torn_at": 1, "torn_s": 11.5}),
    "messages, between chunks": ("live", "/v1/messages", {**TORN, "torn_at": 0, "torn_s": 11.5}),
    "messages, within a chunk's length": ("live", "/v1/messages", {**TORN, "torn_at": 1, "torn_s": 11.5}),
    "within an event": ("live", "/infill", {**TORN, "torn_at": 30, "torn_s": 15}),
    "the headers early": ("whole", "/v1/chat/completions", {"early_s": 13}),
    "half the body early": ("whole", "/v1/chat/completions", {"half_s": 13}),
}  # fmt: skip


@dataclass(frozen=True)
class Paused:
    """What came of the requests in PAUSES, and how often the proxy's threads began to wait meanwhile."""

    answers: dict[str, Answer]
    waits: int


@pytest.fixture(scope="module")
def paused(manager: UserManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paused]:
    stack = Stack(manager.env, tmp_path_factory.mktemp("paused"), "paused")
    proxy = run(stack)
    before = waits_of(proxy.process.pid)
    answers = run_all(
        *[
            lambda model=model, path=path, orders=orders: proxy.post(
                path, chat(model, tools=TOOLS, stream=True, standin=orders)
            )
            for model, path, orders in PAUSES.values()
        ]
    )
    yield Paused(dict(zip(PAUSES, answers, strict=True)), waits_of(proxy.process.pid) - before)
    stack.close()


def test_silence_is_filled_with_comments(paused: Paused) -> None:
    """While a tool call is held nothing is sent, so a keep-alive is."""
    answer = paused.answers["a held call"]
    assert b": keep-alive\n\n" in answer.body
    assert put_together(answer.events)["calls"] == [{"name": "write_file", "arguments": '{"path": "a"}'}]


@pytest.mark.parametrize("case", [name for name in PAUSES if name.startswith(("chat", "messages"))])
def test_a_stream_that_pauses_is_kept_alive(paused: Paused, case: str) -> None:
    """After its first words, too, whatever its protocol and wherever the wire is cut."""
    answer = paused.answers[case]
    first, pause, second = answer.body.partition(b": keep-alive\n\n")
    assert pause
    assert b'"one"' in first
    assert b'"two"' in second
    assert answer.events[-1] == {"messages": {"type": "message_stop"}}.get(case.partition(",")[0], "[DONE]")


def test_a_pause_within_an_event_is_waited_out(paused: Paused) -> None:
    """No comment is put into the event, and nothing spins meanwhile."""
    answer = paused.answers["within an event"]
    assert [event["choices"][0]["delta"] for event in answer.events[:2]] == TORN["deltas"]
    assert b": keep-alive" not in answer.body
    assert paused.waits < 2000


@pytest.mark.parametrize("case", ["the headers early", "half the body early"])
def test_a_body_that_comes_long_after_its_headers_is_kept_alive(paused: Paused, case: str) -> None:
    """A buffered stream: the client hears something while the backend has sent its headers only, or half the body."""
    answer = paused.answers[case]
    assert answer.body.count(b": keep-alive\n\n") == 2  # after the grace, and ten seconds later
    assert put_together(answer.events)["text"] == "hello from m"


def test_a_slow_reader_of_a_whole_call_does_not_hold_off_a_switch(stack: Stack) -> None:
    """The backend has told all; that the client does not take it is no reason to keep the model."""
    proxy = stack.run({"m": {"unit": stack.standin("m"), "streaming": "live"}, "other": stack.standin("other")})
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "write_file", "arguments": LARGE_ARGUMENTS}}
    assert proxy.chat("m").status == 200
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with contextlib.closing(sock):
        sock.connect(("127.0.0.1", proxy.port))
        body = json.dumps(chat("m", stream=True, tools=TOOLS, standin={"deltas": [{"tool_calls": [call]}]})).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        wait_for(lambda: stack.seen()["requests"] == 2 and stack.seen()["running"] == 0, what="it was all told")
        assert proxy.post("/v1/chat/completions", chat("other"), timeout_s=10).status == 200
        sock.settimeout(20)
        received = bytearray()
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += sock.recv(1 << 20)
        assert received.count(b"x") >= 8_000_000  # nothing of it is lost


def waits_of(pid: int) -> int:
    """How often the threads of a process began to wait: a thousand times a second where one polls without need,
    however fast the machine is."""
    told = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in told)


def stream(proxy: Proxy, model: str, **fields: Any) -> Generator[Any]:
    """The events as they arrive."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(chat(model, stream=True, **fields)))
        reply = connection.getresponse()
        assert reply.status == 200
        assert reply.getheader("content-type", "").startswith("text/event-stream")
        for line in reply:
            if line.startswith(b"data: "):
                data = line[6:].strip()
                yield "[DONE]" if data == b"[DONE]" else json.loads(data)
    finally:
        connection.close()
