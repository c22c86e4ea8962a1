"""What becomes of llama-server's errors 500 that its parsers alone are to blame for: on the real one first."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from support.replies import told_by, told_whole
from support.stack import Answer, Proxy, Stack, wait_for

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
PARIS = {"text": "", "calls": [("get_weather", {"city": "Paris"})], "finish": "tool_calls"}
# Each way to ask: the model (one unit, in both modes of `streaming`) and what a client adds.
WAYS = [
    pytest.param("whole", {}, id="plain"),
    pytest.param("whole", {"stream": True}, id="buffered"),
    pytest.param("live", {"stream": True}, id="live"),
]
both_modes = pytest.mark.parametrize(("model", "fields"), WAYS)


def models(unit: str) -> dict[str, Any]:
    return {mode: {"unit": unit, "streaming": mode if mode == "live" else "buffered"} for mode in ("whole", "live")}


def told(answer: Answer) -> Any:
    """What a client makes of an answer, streamed or not."""
    assert answer.status == 200
    assert b'"error"' not in answer.body
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.events[-1] == "[DONE]"
        whole = told_by([answer.body])[0]
    else:
        whole = told_whole(answer.json)[0]
    calls = [(call["name"], json.loads(call["arguments"])) for call in whole["calls"].values()]
    return {"text": whole["text"], "calls": calls, "finish": whole["finish"]}


# --- on the real backend ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(module_stack: Stack, module_real_unit: Callable[..., str]) -> Proxy:
    """The real model, told to write its calls bare, as Llama 3 does."""
    template = Path(__file__).parents[1] / "support" / "bare_calls.jinja"
    return module_stack.run(models(module_real_unit("m", "--chat-template-file", str(template))))


def in_the_way_of(call: str) -> list[dict[str, str]]:
    """A conversation in which the model calls the tool in that way each time, and will once more, for Paris."""
    messages = []
    for city in ("Rome", "Oslo"):
        messages.append({"role": "user", "content": f"Weather in {city}?"})
        messages.append({"role": "assistant", "content": call.replace("CITY", city)})
    return [*messages, {"role": "user", "content": "Weather in Paris?"}]


def ask(proxy: Proxy, model: str, messages: list[dict[str, str]], **fields: Any) -> Answer:
    return proxy.chat(model, messages=messages, tools=TOOLS, max_tokens=60, temperature=0, **fields)


def straight(stack: Stack, path: str, **body: Any) -> requests.Response:
    """A request to the backend itself."""
    return _straight(stack.port, path, json.dumps(body | {"temperature": 0}))


@functools.cache
def _straight(port: int, path: str, body: str) -> requests.Response:
    """At temperature 0 the model writes the same each time, so it is asked once for all ways to ask."""
    return requests.post(f"http://127.0.0.1:{port}{path}", body, timeout=60)


def assert_refused(stack: Stack, messages: list[dict[str, str]]) -> None:
    """The backend by itself does not answer this."""
    refused = straight(stack, "/v1/chat/completions", messages=messages, tools=TOOLS, max_tokens=60)
    assert refused.status_code == 500
    assert "does not match the expected" in refused.json()["error"]["message"]


def saved_replies(proxy: Proxy) -> int:
    return int(proxy.status()["repairs"].get("backend_refusal", 0))


@both_modes
@pytest.mark.parametrize(
    "call",
    [
        "{'name': 'get_weather', 'parameters': {'city': 'CITY'}}",
        '{"name": "get_weather", "parameters": {"city": "CITY"},}',
        '{"name": "Get_Weather", "parameters": {"city": "CITY"}}',
    ],
    ids=["Python's quotes", "a comma", "another case"],
)
def test_the_call_that_llama_server_refuses_is_saved(
    real: Proxy, module_stack: Stack, call: str, model: str, fields: dict[str, Any]
) -> None:
    messages, before = in_the_way_of(call), saved_replies(real)
    answer = ask(real, model, messages, **fields)
    assert_refused(module_stack, messages)
    assert told(answer) == PARIS
    wait_for(lambda: saved_replies(real) == before + 1)  # counted after the answer


@both_modes
def test_the_words_that_llama_server_refuses_are_the_answer(
    real: Proxy, module_stack: Stack, model: str, fields: dict[str, Any]
) -> None:
    """Code with braces is taken for a broken call. Live, the words before the brace are with the client already."""
    messages = [{"role": "user", "content": "Write a CSS rule."}]
    answer = ask(real, model, messages, **fields)
    assert_refused(module_stack, messages)
    prompt = straight(module_stack, "/apply-template", messages=messages, tools=TOOLS).json()["prompt"]
    written = straight(module_stack, "/completion", prompt=prompt, n_predict=60).json()["content"]
    said, brace, _ = written.partition("{")
    assert said
    assert brace
    text = told(answer)["text"]
    if model == "live":  # the model reads its own words as a prompt, cut into tokens anew, and may choose others then
        assert text.startswith(said + brace)
        assert abs(len(text) - len(written)) < len(written) / 2
    else:
        assert text == written
    assert told(answer)["calls"] == []
    assert told(answer)["finish"] == "length"


def test_a_broken_history_does_not_block_a_conversation(real: Proxy, module_stack: Stack) -> None:
    """Arguments that were cut long ago: the backend by itself fails for as long as a client replays them."""
    function = {"name": "get_weather", "arguments": '{"city": "Par'}
    messages = [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "No such city."},
    ]
    assert real.chat("whole", messages=messages, tools=TOOLS).status == 200
    wait_for(lambda: real.status()["repairs"].get("history_arguments") == 1)
    refused = straight(module_stack, "/v1/chat/completions", messages=messages, tools=TOOLS, max_tokens=8)
    assert refused.status_code == 500
    assert "Failed to parse tool call arguments" in refused.json()["error"]["message"]


# --- with a stand-in: what the real one cannot be made to do -------------------------------------------

ERROR = {
    "code": 500,
    "message": "The model produced output that does not match the expected peg-native format",
    "type": "server_error",
}
REFUSAL = {"status": 500, "raw": json.dumps({"error": ERROR}), "template": "PROMPT"}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    return stack.run(models(stack.standin("m")))


@both_modes
def test_the_raw_text_is_asked_for_with_the_requests_own_sampling(
    proxy: Proxy, stack: Stack, model: str, fields: dict[str, Any]
) -> None:
    answer = proxy.chat(model, tools=TOOLS, temperature=0.3, seed=5, standin=REFUSAL | {"completion": CALL}, **fields)
    assert told(answer) == PARIS
    asked = stack.seen()["bodies"][-1]
    assert (asked["prompt"], asked["temperature"], asked["seed"], asked["n_predict"]) == ("PROMPT", 0.3, 5, 8)
    assert not {"messages", "tools"} & set(asked)
    wait_for(lambda: saved_replies(proxy) == 1)
    assert int(answer.headers["x-llm-switch-repaired"]) >= 2


def test_the_prompt_is_that_of_the_request_as_it_was_sent(stack: Stack) -> None:
    """A tool that is demanded by name, defaults and what is forced: the template sees them as the backend did."""
    model = {"unit": stack.standin("m"), "params": {"seed": 7}, "force": {"temperature": 0.9}}
    proxy = stack.run({"m": model})
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    choice = {"type": "function", "function": {"name": "get_weather"}}
    orders = REFUSAL | {"completion": CALL}
    assert told(proxy.chat("m", tools=[other, *TOOLS], tool_choice=choice, standin=orders)) == PARIS
    template, completion = stack.seen()["bodies"][-2:]
    assert (template["tools"], template["tool_choice"]) == (TOOLS, "required")
    assert (completion["seed"], completion["temperature"]) == (7, 0.9)


def test_a_refused_text_without_a_call_is_the_content(proxy: Proxy) -> None:
    orders = REFUSAL | {"completion": "<think>Hm.</think>\n\nJust words."}
    message = proxy.chat("whole", tools=TOOLS, standin=orders).json["choices"][0]["message"]
    assert message["content"] == "Just words."
    assert message["reasoning_content"] == "Hm."


@pytest.mark.parametrize(
    ("deltas", "template", "prompt", "left"),
    [
        ([{"content": "Let me "}, {"content": "look:\n"}], "P", "PLet me look:", 7),
        (
            [{"reasoning_content": "Hm."}, {"content": "Look:\n"}],
            "P",
            "P<think>\nHm.\n</think>\n\nLook:",
            7,
        ),
        ([{"reasoning_content": "Hm."}], "P<think>\n", "P<think>\nHm.\n</think>\n\n", 7),
        (
            [{"content": "Look:\n"}, {"tool_calls": [{"index": 0, "function": {"name": "x", "arguments": "{"}}]}],
            "P",
            "PLook:",
            8,
        ),
        ([{"content": f"{number}\n"} for number in range(20)], "P", "P" + "\n".join(map(str, range(20))), 1),
    ],
    ids=["words", "thoughts and words", "thoughts that the prompt begins", "half a call", "to the last token"],
)
def test_a_live_stream_goes_on_where_the_parser_gave_up(
    proxy: Proxy, stack: Stack, deltas: list[dict[str, Any]], template: str, prompt: str, left: int
) -> None:
    """What the client has is not told twice, and the model writes on from it, for as many tokens as are left."""
    orders = {"deltas": deltas, "stream_error": ERROR, "template": template, "completion": CALL}
    usage: dict[str, Any] = {"stream_options": {"include_usage": True}}
    answer = proxy.chat("live", tools=TOOLS, stream=True, standin=orders, **usage)
    said = "".join(delta.get("content", "") for delta in deltas)
    assert told(answer) == PARIS | {"text": said.rstrip()}
    asked = stack.seen()["bodies"][-1]
    assert (asked["prompt"], asked["n_predict"]) == (prompt, left)
    tokens = sum("tool_calls" not in delta for delta in deltas) - said.endswith(("\n", " "))
    assert answer.events[-2]["usage"] == {
        "prompt_tokens": 9 - tokens, "completion_tokens": 4 + tokens, "total_tokens": 13,
    }  # fmt: skip


@both_modes
def test_a_refusal_without_a_raw_text_is_passed_on(proxy: Proxy, model: str, fields: dict[str, Any]) -> None:
    """A backend that knows no `/apply-template` cannot be asked; its own message then says what was wrong."""
    answer = proxy.chat(model, tools=TOOLS, standin=REFUSAL | {"template": None, "completion": ""}, **fields)
    assert answer.status == 500
    assert answer.error["message"] == ERROR["message"]


def test_several_answers_at_once_are_not_continued(proxy: Proxy) -> None:
    """With `n` the proxy does not know which of them the parser refused: the error is told in the stream."""
    orders = {"stream_error": ERROR, "template": "P", "completion": CALL}
    answer = proxy.chat("live", tools=TOOLS, stream=True, n=2, standin=orders)
    assert answer.events[-1]["error"]["message"] == ERROR["message"]


@pytest.mark.parametrize("model", ["whole", "live"])
def test_any_other_500_stays_one(proxy: Proxy, model: str) -> None:
    answer = proxy.chat(model, tools=TOOLS, standin={"status": 500, "raw": '{"error": {"message": "boom"}}'})
    assert answer.status == 500
    assert answer.error["message"] == "boom"


# --- older builds, whose error holds the text ----------------------------------------------------------


def refused_with(text: str, at: int = 0) -> dict[str, Any]:
    return ERROR | {"message": f"Failed to parse input at pos {at}: {text}"}


@both_modes
def test_a_text_that_stands_in_the_error_is_not_generated_again(
    proxy: Proxy, stack: Stack, model: str, fields: dict[str, Any]
) -> None:
    orders = {"status": 500, "raw": json.dumps({"error": refused_with(CALL, at=12)}), "template": "P", "completion": ""}
    assert told(proxy.chat(model, tools=TOOLS, standin=orders, **fields)) == PARIS
    assert "prompt" not in stack.seen()["bodies"][-1]


def test_a_live_stream_goes_on_with_the_text_in_its_error(proxy: Proxy) -> None:
    orders = {"deltas": [{"content": "Let me look:\n"}], "stream_error": refused_with(CALL, at=13)}
    assert told(proxy.chat("live", tools=TOOLS, stream=True, standin=orders)) == PARIS | {"text": "Let me look:"}


def test_the_end_of_a_call_in_an_error_is_not_taken_for_the_text(proxy: Proxy, stack: Stack) -> None:
    """Its beginning is lost: the text is generated again."""
    raw = json.dumps({"error": refused_with('"Paris"}}</tool_call>', at=40)})
    orders = {"status": 500, "raw": raw, "template": "PROMPT", "completion": CALL}
    assert told(proxy.chat("whole", tools=TOOLS, standin=orders)) == PARIS
    assert stack.seen()["bodies"][-1]["prompt"] == "PROMPT"


def test_a_recovered_reply_has_its_own_id_and_time(proxy: Proxy) -> None:
    first, second = (proxy.chat("whole", tools=TOOLS, standin=REFUSAL | {"completion": CALL}).json for _ in range(2))
    assert first["id"] != second["id"]
    assert abs(second["created"] - time.time()) < 3600
