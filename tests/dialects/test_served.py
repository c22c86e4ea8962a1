"""Both APIs through the proxy: what leaks, breaks or is refused is repaired as in a chat, plain, buffered and live."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from support.stack import Answer, Proxy, Stack, wait_for
from systemd_llm_switch.setup.user_manager import UserManager

Json = dict[str, Any]
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}, "lines": {"type": "integer"}}}
LEAK = '<tool_call>\n{"name": "write_file", "arguments": {"path": "a.py", "lines": "3"}}\n</tool_call>'
MEANT = ("write_file", {"path": "a.py", "lines": 3})
MODES = ("plain", "buffered", "live")
ROUTES = ("/v1/messages", "/v1/responses")


@pytest.fixture(scope="module")
def stack(manager: UserManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(manager.env, tmp_path_factory.mktemp("dialects"), "dialects")
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def proxy(stack: Stack) -> Proxy:
    unit = stack.standin("m")
    proxy = stack.run({"live": {"unit": unit, "streaming": "live"}, "whole": {"unit": unit, "streaming": "buffered"}})
    assert proxy.chat("whole").status == 200
    return proxy


def ask(proxy: Proxy, path: str, mode: str, standin: Json, **fields: Any) -> Answer:
    """One request with a tool."""
    tool = {"name": "write_file", "description": "d"}
    if path == "/v1/messages":
        body: Json = {
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 99,
            "tools": [tool | {"input_schema": SCHEMA}],
        }
    else:
        body = {"input": "Hi", "tools": [tool | {"type": "function", "parameters": SCHEMA}]}
    body |= {"model": "live" if mode == "live" else "whole", "stream": mode != "plain", "standin": standin}
    return proxy.post(path, body | fields)


def says(message: Json, finish: str = "stop") -> Json:
    """The stand-in's orders for a reply, whole and in pieces."""
    text = message.get("content") or ""
    deltas: list[Json] = [{"role": "assistant"}]
    deltas += [{"content": text[at : at + 5]} for at in range(0, len(text), 5)]
    deltas += [{"tool_calls": [{"index": at, **call}]} for at, call in enumerate(message.get("tool_calls", ()))]
    return {"message": {"role": "assistant", **message}, "deltas": deltas, "finish": finish}


def told_of(path: str, mode: str, answer: Answer) -> tuple[str, list[tuple[str, Any]], str]:
    """The text, the calls and the end of an answer."""
    assert answer.status == 200, answer.body
    if path == "/v1/messages":
        return _of_message(answer.json) if mode == "plain" else _of_message_events(answer.events)
    response = answer.json if mode == "plain" else answer.events[-1]["response"]
    text = "".join(item["content"][0]["text"] for item in response["output"] if item["type"] == "message")
    calls = [it for it in response["output"] if it["type"] == "function_call"]
    return text, [(it["name"], json.loads(it["arguments"])) for it in calls], response["status"]


def _of_message(message: Json) -> tuple[str, list[tuple[str, Any]], str]:
    text = "".join(block["text"] for block in message["content"] if block["type"] == "text")
    calls = [(block["name"], block["input"]) for block in message["content"] if block["type"] == "tool_use"]
    return text, calls, message["stop_reason"]


def _of_message_events(events: list[Json]) -> tuple[str, list[tuple[str, Any]], str]:
    text, calls, stop = "", [], ""
    for event in events:
        block, delta = event.get("content_block", {}), event.get("delta", {})
        if block.get("type") == "tool_use":
            calls.append([block["name"], ""])
        text += delta.get("text", "")
        if "partial_json" in delta:
            calls[-1][1] += delta["partial_json"]
        stop = delta.get("stop_reason") or stop
    return text, [(name, json.loads(arguments)) for name, arguments in calls], stop


ENDS = {"/v1/messages": {"stop": "end_turn", "call": "tool_use"},
        "/v1/responses": {"stop": "completed", "call": "completed"}}  # fmt: skip
every_way = pytest.mark.parametrize(("path", "mode"), [(path, mode) for path in ROUTES for mode in MODES])


@every_way
def test_a_leaked_call_is_a_call(proxy: Proxy, path: str, mode: str) -> None:
    """And the text before it stays text."""
    answer = ask(proxy, path, mode, says({"content": f"I write it.\n\n{LEAK}"}))
    assert told_of(path, mode, answer) == ("I write it.", [MEANT], ENDS[path]["call"])


@every_way
def test_words_are_not_touched(proxy: Proxy, path: str, mode: str) -> None:
    text = "A call looks like `<tool_call>`, and a list like [1, 2].\n"
    assert told_of(path, mode, ask(proxy, path, mode, says({"content": text}))) == (text, [], ENDS[path]["stop"])


@every_way
def test_broken_arguments_are_repaired(proxy: Proxy, path: str, mode: str) -> None:
    call = {"function": {"name": "write_file", "arguments": "{'path': 'a.py', 'lines': '3',}"}}
    answer = ask(proxy, path, mode, says({"content": "", "tool_calls": [call]}, "tool_calls"))
    assert told_of(path, mode, answer) == ("", [MEANT], ENDS[path]["call"])


@every_way
def test_thoughts_in_the_words_are_thoughts(proxy: Proxy, path: str, mode: str) -> None:
    answer = ask(proxy, path, mode, says({"content": "<think>\nI greet.\n</think>\n\nHi."}))
    assert told_of(path, mode, answer) == ("Hi.", [], ENDS[path]["stop"])
    assert b"I greet." in answer.body


@pytest.mark.parametrize("path", ROUTES)
def test_a_repair_that_takes_too_long_is_given_up(proxy: Proxy, path: str) -> None:
    """Each tag may start a call that goes on to the end of the text."""
    before = proxy.status()["repairs"].get("repair_budget", 0)
    text = "<write_file><path>a" * 60_000
    orders = {"message": {"role": "assistant", "content": text}}
    assert told_of(path, "plain", ask(proxy, path, "plain", orders)) == (text, [], ENDS[path]["stop"])
    wait_for(lambda: proxy.status()["repairs"].get("repair_budget", 0) > before)  # counted after the answer


@every_way
def test_a_reply_that_the_backends_parser_refused_is_recovered(proxy: Proxy, path: str, mode: str) -> None:
    error: Json = {
        "message": "The model produced output that does not match the expected peg-native format",
        "code": 500,
    }
    orders: Json = {"template": "PROMPT", "completion": LEAK, "stream_error": error, "deltas": [{"role": "assistant"}]}
    if mode != "live":
        orders |= {"status": 500, "raw": json.dumps({"error": error})}
    assert told_of(path, mode, ask(proxy, path, mode, orders)) == ("", [MEANT], ENDS[path]["call"])


JSON_WANTED = {
    "/v1/messages": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}, "tools": []},
    "/v1/responses": {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, "tools": []},
}


@every_way
def test_json_content_is_repaired(proxy: Proxy, path: str, mode: str) -> None:
    answer = ask(proxy, path, mode, says({"content": "```json\n{'path': 'a.py',}\n```"}), **JSON_WANTED[path])
    assert json.loads(told_of(path, mode, answer)[0]) == {"path": "a.py"}


HISTORY: dict[str, Json] = {
    "/v1/messages": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": "{'a': 1"}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "done"}]},
        ]
    },
    "/v1/responses": {
        "input": [
            {"role": "user", "content": "Hi"},
            {"type": "function_call", "call_id": "t", "name": "f", "arguments": "{'a': 1"},
            {"type": "function_call_output", "call_id": "t", "output": "done"},
        ]
    },
}


@pytest.mark.parametrize("path", ROUTES)
def test_a_broken_call_that_the_client_replays_is_repaired(proxy: Proxy, stack: Stack, path: str) -> None:
    assert ask(proxy, path, "plain", {}, **HISTORY[path]).status == 200
    told = stack.seen()["bodies"][-1]["messages"]
    assert [message["role"] for message in told] == ["user", "assistant", "tool"]
    assert json.loads(told[1]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert stack.seen()["paths"][-1] == "/v1/chat/completions"


TOOL_CHOICE = {
    "/v1/messages": {"type": "tool", "name": "write_file"},
    "/v1/responses": {"type": "function", "name": "write_file"},
}


@pytest.mark.parametrize("path", ROUTES)
def test_a_tool_that_is_required_is_the_only_one(proxy: Proxy, stack: Stack, path: str) -> None:
    """llama-server takes an object for "auto"."""
    assert ask(proxy, path, "plain", {}, tool_choice=TOOL_CHOICE[path]).status == 200
    told = stack.seen()["bodies"][-1]
    assert told["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in told["tools"]] == ["write_file"]


@every_way
def test_the_journal_has_the_tokens(proxy: Proxy, path: str, mode: str) -> None:
    before = len(proxy.log.splitlines())
    ask(proxy, path, mode, says({"content": "Hi."}))
    wait_for(lambda: any(f"path={path} " in line for line in proxy.log.splitlines()[before:]))
    (line,) = (it for it in proxy.log.splitlines()[before:] if f"path={path} " in it)
    assert "prompt_tokens=3 completion_tokens=5" in line


def test_live_words_come_while_the_model_writes(proxy: Proxy) -> None:
    """Each in an event of its own."""
    for path in ROUTES:
        events = ask(proxy, path, "live", says({"content": "one, two, three, four"})).events
        deltas = [event for event in events if event["type"] in ("content_block_delta", "response.output_text.delta")]
        assert len(deltas) > 2, path


# --- errors ---------------------------------------------------------------------------------------


def test_an_error_of_messages_has_anthropics_shape(proxy: Proxy) -> None:
    """The proxy's own, before a model is known and after it, and a backend's."""
    refused = proxy.post("/v1/messages", b"{")
    unknown = proxy.post("/v1/messages", {"model": "nope", "messages": []})
    malformed = proxy.post("/v1/messages", {"model": "whole", "messages": "x"})
    failed = ask(proxy, "/v1/messages", "plain", {"status": 503})
    for answer, status, kind in (
        (refused, 400, "invalid_request_error"), (unknown, 404, "not_found_error"),
        (malformed, 400, "invalid_request_error"), (failed, 503, "overloaded_error"),
    ):  # fmt: skip
        assert answer.status == status
        assert answer.json["type"] == "error"
        assert answer.error["type"] == kind
    assert unknown.error["code"] == "model_not_found"
    assert failed.error["message"] == "the stand-in says 503"


def test_an_error_of_responses_has_openais_shape(proxy: Proxy) -> None:
    answer = proxy.post("/v1/responses", {"model": "whole", "input": "Hi", "previous_response_id": "resp_1"})
    assert (answer.status, answer.error["param"]) == (400, "previous_response_id")
    assert "type" not in answer.json


@pytest.mark.parametrize("path", ROUTES)
def test_a_reply_without_choices_is_an_error_and_no_empty_answer(proxy: Proxy, path: str) -> None:
    answer = ask(proxy, path, "plain", {"raw": '{"any": 1}'})
    assert (answer.status, answer.error["code"]) == (502, "backend_error")
