"""Further routes of llama-server, forwarded as they are and switched by model; and further fields of a chat request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.stack import Proxy, Stack, chat, in_background, wait_for

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    return stack.run({"a": stack.standin("a"), "b": stack.standin("b"), "live": {"unit": stack.standin("live")}})


@pytest.mark.parametrize(
    "path",
    [
        "/v1/rerank", "/v1/reranking", "/rerank", "/v1/messages/count_tokens",
        "/infill", "/tokenize", "/detokenize", "/apply-template",
    ],
)  # fmt: skip
def test_a_route_is_forwarded_as_it_is_to_its_model(proxy: Proxy, stack: Stack, path: str) -> None:
    """The path, the body and the reply's bytes are untouched; the model is switched to."""
    raw = '{"any": [1,  2], "of": "it"}'
    answer = proxy.post(path, {"model": "b", "query": "q", "standin": {"raw": raw}})
    assert answer.status == 200
    assert answer.body == raw.encode()
    assert proxy.state("b") == "ready"
    seen = stack.seen()
    assert seen["paths"][-1] == path
    assert seen["bodies"][-1]["query"] == "q"


def test_such_a_route_streams_when_the_client_asks(proxy: Proxy, stack: Stack) -> None:
    """Every event as it came, whatever its protocol."""
    answer = proxy.post("/infill", {"model": "a", "stream": True, "standin": {"deltas": [{"x": 1}]}})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.events[0]["choices"][0]["delta"] == {"x": 1}
    assert stack.seen()["bodies"][-1]["stream"] is True


def test_a_completion_is_streamed_as_text_whatever_the_backend_calls_it(proxy: Proxy) -> None:
    """The route tells; log probabilities come in pieces beside the text, and no line is too long."""
    tokens = [{"token": f"t{number}", "top_logprobs": ["x" * 500]} for number in range(200)]
    choice = {"index": 0, "text": "HELLO", "finish_reason": "stop", "logprobs": {"content": tokens}}
    body = {"model": "a", "prompt": "x", "stream": True, "standin": {"raw": json.dumps({"choices": [choice]})}}
    answer = proxy.post("/v1/completions", body)
    choices = [event["choices"][0] for event in answer.events[:-1]]
    assert "".join(choice["text"] for choice in choices) == "HELLO"
    parts = [choice["logprobs"]["content"] for choice in choices if choice.get("logprobs")]
    assert [token for part in parts for token in part] == tokens
    assert max(map(len, answer.body.split(b"\n"))) < 64 * 1024


def test_a_form_keeps_its_file_beside_a_models_params(stack: Stack) -> None:
    """They are for bodies of JSON: a form goes on byte for byte."""
    proxy = stack.run({"a": {"unit": stack.standin("a"), "params": {"temperature": 1}, "force": {"top_k": 2}}})
    raw = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert proxy.post("/v1/audio/transcriptions", raw, headers=headers).status == 200
    assert stack.seen()["bodies"][-1] == {"not_json": raw.decode()}


def test_audio_comes_as_a_form(proxy: Proxy, stack: Stack) -> None:
    """The model is a form field; the form goes on byte for byte."""
    boundary = "xyz"
    parts = [
        '--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nb\r\n',
        '--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n\x00\x01RIFF\r\n--xyz--\r\n',
    ]
    raw = "".join(parts).encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    answer = proxy.post("/v1/audio/transcriptions", raw, headers=headers)
    assert answer.status == 200
    seen = stack.seen()
    assert seen["headers"][-1]["Content-Type"] == headers["Content-Type"]
    assert seen["bodies"][-1] == {"not_json": raw.decode("latin-1")}
    broken = proxy.post("/v1/audio/transcriptions", b"--xyz\r\nnonsense", headers=headers)
    assert broken.status == 400


def test_upstream_shows_a_loaded_model_and_loads_none(proxy: Proxy) -> None:
    before = proxy.get("/upstream/a/props")
    assert before.status == 404
    assert before.error["code"] == "model_not_loaded"
    assert proxy.status()["switches"] == []
    proxy.chat("a")
    assert proxy.get("/upstream/a/props?x=1").json == {"path": "/props?x=1", "name": "a"}
    assert proxy.post("/upstream/a/tokenize", {"standin": {"raw": "[1]"}}).body == b"[1]"
    assert proxy.get("/upstream/b/props").error["code"] == "model_not_loaded"
    assert proxy.get("/upstream/nope/props").error["code"] == "model_not_found"


def test_requests_outside_the_queue_leave_threads_for_the_rest(proxy: Proxy) -> None:
    """However many ask a wedged backend for its slots, /health answers; one too many is told so."""
    proxy.chat("a")
    hung = {"standin": {"delay_s": 3}}
    with in_background(*[lambda: proxy.post("/upstream/a/slots", hung)] * 40) as answers:
        wait_for(lambda: proxy.get("/health").status == 200)
        wait_for(lambda: proxy.status()["models"]["a"]["state"] == "ready")
    statuses = [answer.status for answer in answers]
    assert sorted(set(statuses)) == [200, 429]
    assert statuses.count(200) == 16
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.error["code"] == "queue_full"
    assert refused.headers["retry-after"] == "5"
    assert proxy.post("/upstream/a/tokenize", {"standin": {"raw": "[1]"}}).body == b"[1]"


def test_params_are_defaults_and_force_is_not(stack: Stack) -> None:
    unit = stack.standin("m")
    model = {"unit": unit, "params": {"temperature": 0.2, "top_k": 7}, "force": {"min_p": 0.1}}
    proxy = stack.run({"m": model})
    proxy.chat("m", temperature=0.9, min_p=0.5)
    body = stack.seen()["bodies"][-1]
    assert (body["temperature"], body["top_k"], body["min_p"]) == (0.9, 7, 0.1)


OTHER_TOOL = {"type": "function", "function": {"name": "get_news", "parameters": {"type": "object"}}}


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("choice", "told", "tools"),
    [
        (_named("get_weather"), "required", TOOLS),
        (_named("get_nothing"), _named("get_nothing"), [OTHER_TOOL, *TOOLS]),
        ({"type": "function"}, {"type": "function"}, [OTHER_TOOL, *TOOLS]),
        ("auto", "auto", [OTHER_TOOL, *TOOLS]),
    ],
)
def test_a_tool_that_is_forced_by_its_name_is_the_only_one(
    proxy: Proxy, stack: Stack, choice: object, told: object, tools: object
) -> None:
    """llama-server reads no name in `tool_choice`, only "required"; what names no tool is left as it is."""
    assert proxy.chat("a", tools=[OTHER_TOOL, *TOOLS], tool_choice=choice).status == 200
    body = stack.seen()["bodies"][-1]
    assert (body["tool_choice"], body["tools"]) == (told, tools)


def test_a_broken_history_is_repaired_before_it_is_sent(proxy: Proxy, stack: Stack) -> None:
    """A conversation never gets stuck on arguments that were cut long ago."""
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Par'}}
    body = chat("a", tools=TOOLS)
    body["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "?"},
    ]
    assert proxy.post("/v1/chat/completions", body).status == 200
    sent = stack.seen()["bodies"][-1]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert isinstance(json.loads(sent), dict)
