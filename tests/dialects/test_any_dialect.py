"""Whatever a client sends and a backend replies: an error of ours or a sound answer, never an unhandled exception."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.replies import plenty
from systemd_llm_switch.dialects.dialect import Dialect
from systemd_llm_switch.dialects.routes import translate
from systemd_llm_switch.errors import ProxyError
from systemd_llm_switch.forward.live_reply import BrokenStream, LiveReply, StreamError
from systemd_llm_switch.openai.request import Request
from systemd_llm_switch.repair import RequestFacts, repair_history, repair_reply

Json = dict[str, Any]
PATHS = ("/v1/messages", "/v1/responses")
WORDS = (
    "text", "image", "tool_use", "tool_result", "thinking", "message", "function", "custom", "namespace",
    "function_call", "function_call_output", "reasoning", "user", "assistant", "system", "tool", "auto", "json_schema",
    "base64", "stop", "x", "", "{}", "a\nb", "<think>", "</think>",
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
)  # fmt: skip
KEYS = (
    "type", "role", "content", "text", "name", "input", "id", "arguments", "source", "data", "image_url", "system",
    "tools", "tool_choice", "messages", "output_config", "format", "effort", "reasoning", "thinking", "stop_sequences",
    "function", "usage", "prompt_tokens", "prompt_tokens_details", "completion_tokens", "instructions",
    "chat_template_kwargs",
)  # fmt: skip
values = st.recursive(
    st.sampled_from((*WORDS, 0, -1, 1.5, True, None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
blocks = st.dictionaries(st.sampled_from(KEYS), values, max_size=4)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(("user", "assistant", "system", None)), "content": values | st.lists(blocks, max_size=3)}
)
bodies = st.builds(
    lambda fields, more: {**fields, **more, "model": "m"},
    st.dictionaries(st.sampled_from(KEYS), values, max_size=6),
    st.fixed_dictionaries(
        {},
        optional={"messages": st.lists(turns, max_size=3), "input": st.lists(blocks, max_size=3) | st.just("hi"),
                  "tools": st.lists(blocks, max_size=2)},
    ),
)  # fmt: skip
deltas = st.fixed_dictionaries(
    {}, optional={"content": values, "reasoning_content": values, "tool_calls": values | st.lists(blocks, max_size=2)}
)
choices = st.fixed_dictionaries(
    {"index": st.just(0), "delta": deltas, "finish_reason": st.sampled_from((None, "stop", []))}
)
chunks = st.fixed_dictionaries({"choices": st.lists(choices, max_size=1) | values, "usage": values}) | values
replies = st.fixed_dictionaries(
    {
        "choices": st.lists(st.fixed_dictionaries({"message": deltas, "finish_reason": values}), max_size=2),
        "usage": values,
        "model": values,
        "created": values,
    }
)
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ASKED: Json = {"model": "m", "input": "hi", "messages": [], "tools": [{"type": "function", "name": "f"}]}
FACTS = RequestFacts.of({"tools": [{"type": "function", "function": {"name": "f"}}]}, thoughts=True)


BLOCK: Json = {"type": "text", "text": "a"}
PICTURE: Json = {"type": "image", "source": {"type": "url", "url": "x"}}
THOUGHT: Json = {"type": "thinking", "thinking": "a"}
ITEM: Json = {"type": "message", "role": "assistant", "content": "a"}
GROWING: dict[str, Callable[[int], tuple[str, Json]]] = {
    "texts of an answer": lambda count: (PATHS[0], said_in([BLOCK] * count)),
    "pictures in an answer": lambda count: (PATHS[0], said_in([PICTURE] * count)),
    "thoughts": lambda count: (PATHS[0], said_in([THOUGHT] * count)),
    "instructions": lambda count: (PATHS[0], {"system": [BLOCK] * count, "messages": []}),
    "items of an answer": lambda count: (PATHS[1], {"input": [ITEM] * count}),
    "allowed tools": lambda count: (PATHS[1], allowing(count)),
}


def said_in(blocks: list[Json]) -> Json:
    return {"messages": [{"role": "assistant", "content": blocks}]}


def allowing(count: int) -> Json:
    """As many tools, and as many others that are allowed."""
    tools, others = ([{"type": "function", "name": f"{kind}{it}"} for it in range(count)] for kind in "ab")
    return {"input": "x", "tools": tools, "tool_choice": {"type": "allowed_tools", "tools": others}}


@pytest.mark.parametrize("kind", GROWING)
def test_the_time_of_a_request_grows_no_faster_than_the_request(kind: str) -> None:
    """CPU time of this thread at sizes n and 8n: with the square of the size, it would be 64 times as much. A busy
    machine, whose caches hold other data, may spoil some of the tries."""

    def seconds(count: int) -> float:
        path, body = GROWING[kind](count)
        began = time.thread_time()
        served(path, {"model": "m", **body})
        return time.thread_time() - began

    assert any(seconds(40_000) < 24 * seconds(5_000) + 0.02 for _ in range(5))


def served(path: str, body: Json) -> tuple[Request, Dialect]:
    return translate(Request(path, "m", body, b"", is_streamed=False, wants_usage=False, content_type=""))


@pytest.mark.parametrize("path", PATHS)
@many
@given(body=bodies)
def test_any_request_becomes_a_chat_or_is_refused(path: str, body: Json) -> None:
    with contextlib.suppress(ProxyError):
        chat, _ = served(path, body)
        repaired, _ = repair_history(chat.body, budget=plenty())
        assert json.loads(json.dumps(repaired))["messages"] is not None


@pytest.mark.parametrize("path", PATHS)
@many
@given(reply=replies)
def test_any_reply_is_an_answer(path: str, reply: Json) -> None:
    repaired, _ = repair_reply(reply, FACTS, budget=plenty())
    assert json.loads(served(path, ASKED)[1].whole(repaired, b""))["type" if path == PATHS[0] else "object"]


@pytest.mark.parametrize("path", PATHS)
@many
@given(stream=st.lists(chunks, max_size=4))
def test_any_stream_is_whole_events(path: str, stream: list[object]) -> None:
    """The last one is an error where the backend's stream is broken."""
    dialect = served(path, ASKED)[1]
    for block in answered(dialect, stream).decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def answered(dialect: Dialect, stream: list[object]) -> bytes:
    live = LiveReply(FACTS, is_chat=True, wants_usage=True, budget=plenty())
    sent = b""
    try:
        for chunk in stream:
            if frames := live.feed(json.dumps(chunk).encode()):
                sent += dialect.events(frames)
        live.check()
        live.end()
        return sent + b"".join(map(dialect.events, live.rest()))
    except (BrokenStream, StreamError):
        error = {"message": "broken", "type": "server_error", "code": "backend_error", "param": None}
        return sent + dialect.error_events(502, error, may_get_better=False)


def test_the_arguments_of_a_call_are_joined_once() -> None:
    """A stream's pieces of them, each of 4096 characters."""

    def seconds(count: int) -> float:
        dialect = served(PATHS[0], ASKED)[1]
        first, later = (
            b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{%b"arguments":"%b"}}]}}]}\n\n'
            % (name, b"a" * 4096)
            for name in (b'"name":"f",', b"")
        )
        began = time.thread_time()
        dialect.events(first)
        for _ in range(count):
            dialect.events(later)
        dialect.events(b"data: [DONE]\n\n")
        return time.thread_time() - began

    assert min(seconds(4000) for _ in range(2)) < 8 * min(seconds(1000) for _ in range(2)) + 0.02
