"""Anthropic's messages: the request as a chat, the reply as a message and as its events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from systemd_llm_switch.dialects.messages import Messages, error_body
from systemd_llm_switch.dialects.messages_request import chat_of_messages
from systemd_llm_switch.dialects.routes import translate
from systemd_llm_switch.errors import InvalidJson, InvalidRequest
from systemd_llm_switch.openai.request import Request
from systemd_llm_switch.openai.sse import sse_frames

Json = dict[str, Any]
CALL = {"id": "call_1", "type": "function", "function": {"name": "get", "arguments": '{"city": "Rome"}'}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 6}}
MEANT_USAGE = {
    "input_tokens": 3,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 6,
    "output_tokens": 4,
}


def reply(message: Json, finish: str = "stop") -> Json:
    """A chat's reply."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"model": "m", "created": 7, "choices": [choice], "usage": USAGE}


def whole(message: Json, finish: str = "stop") -> Json:
    answer: Json = json.loads(Messages({"model": "asked"}).whole(reply(message, finish), b""))
    return answer


def streamed(message: Json, finish: str = "stop") -> list[Json]:
    """The events, of frames that come one by one; each has its type as its name."""
    dialect = Messages({"model": "asked"})
    sent = b"".join(dialect.events(it) for it in sse_frames(reply(message, finish), is_chat=True, wants_usage=True))
    return events_of(sent)


def events_of(sent: bytes) -> list[Json]:
    events = []
    for block in sent.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def put_together(events: list[Json]) -> Json:
    """The message that an SDK makes of the events."""
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_stop"
    message: Json = events[0]["message"]
    open_index = None
    for event in events[1:-1]:
        match event["type"]:
            case "content_block_start":
                assert open_index is None
                assert event["index"] == len(message["content"])
                open_index = event["index"]
                message["content"].append({**event["content_block"], "json": ""})
            case "content_block_delta":
                assert event["index"] == open_index
                block, delta = message["content"][open_index], event["delta"]
                kind = delta["type"].removesuffix("_delta")
                if kind == "input_json":
                    block["json"] += delta["partial_json"]
                elif kind != "signature":
                    block[kind] += delta[kind]
            case "content_block_stop":
                assert event["index"] == open_index
                block = message["content"][open_index]
                text = block.pop("json")
                if block["type"] == "tool_use":
                    block["input"] = json.loads(text)
                open_index = None
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
    assert open_index is None
    return message


# --- replies --------------------------------------------------------------------------------------

REPLIES: dict[str, tuple[Json, str, list[Json], str]] = {
    "words": ({"content": "Hi."}, "stop", [{"type": "text", "text": "Hi."}], "end_turn"),
    "cut": ({"content": "Hi"}, "length", [{"type": "text", "text": "Hi"}], "max_tokens"),
    "a call": (
        {"content": None, "tool_calls": [CALL]}, "tool_calls",
        [{"type": "tool_use", "id": "call_1", "name": "get", "input": {"city": "Rome"}}], "tool_use",
    ),
    "all": (
        {"reasoning_content": "Hm.", "content": "I look.", "tool_calls": [CALL, CALL | {"id": "call_2"}]}, "tool_calls",
        [
            {"type": "thinking", "thinking": "Hm.", "signature": ""},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "call_1", "name": "get", "input": {"city": "Rome"}},
            {"type": "tool_use", "id": "call_2", "name": "get", "input": {"city": "Rome"}},
        ],
        "tool_use",
    ),
    "nothing": ({"content": ""}, "stop", [], "end_turn"),
}  # fmt: skip


@pytest.mark.parametrize("case", REPLIES)
def test_a_reply_becomes_a_message(case: str) -> None:
    message, finish, content, stop_reason = REPLIES[case]
    answer = whole(message, finish)
    assert answer["content"] == content
    assert answer["stop_reason"] == stop_reason
    assert answer["usage"] == MEANT_USAGE
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", "m")
    assert answer["id"].startswith("msg_")


@pytest.mark.parametrize("case", REPLIES)
def test_the_events_of_a_reply_say_the_same(case: str) -> None:
    message, finish, _, _ = REPLIES[case]
    told, meant = put_together(streamed(message, finish)), whole(message, finish)
    assert told.pop("id").startswith("msg_")
    meant.pop("id")
    assert told == meant


def test_a_message_that_came_as_a_whole_begins_with_its_usage() -> None:
    """All its frames are there at once, so its beginning need not say 0."""
    frames = b"".join(sse_frames(reply({"content": "Hi."}), is_chat=True, wants_usage=True))
    assert events_of(Messages({"model": "m"}).events(frames))[0]["message"]["usage"] == MEANT_USAGE


def test_a_thought_ends_with_a_signature() -> None:
    """SDKs keep no thought without one, and clients replay it."""
    deltas = [it["delta"]["type"] for it in streamed({"reasoning_content": "Hm."}) if "delta" in it and "index" in it]
    assert deltas == ["thinking_delta", "signature_delta"]


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ('{"a": ', {"malformed_arguments": '{"a": '}),
        ("[1]", {"malformed_arguments": "[1]"}),
        ("", {}),
        ({"a": 1}, {"a": 1}),
    ],
)
def test_an_input_is_an_object_whatever_the_arguments_are(arguments: object, meant: Json) -> None:
    """SDKs die of anything else."""
    call = {"id": "1", "function": {"name": "get", "arguments": arguments}}
    assert whole({"tool_calls": [call]})["content"][0]["input"] == meant


def test_a_long_input_comes_in_pieces() -> None:
    text = json.dumps({"text": "x" * 10_000})
    call = {"id": "1", "function": {"name": "get", "arguments": text}}
    events = streamed({"tool_calls": [call]}, "tool_calls")
    assert max(len(json.dumps(event)) for event in events) < 6000
    assert put_together(events)["content"][0]["input"] == json.loads(text)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (404, "not_found_error"),
        (405, "invalid_request_error"), (429, "rate_limit_error"), (502, "api_error"), (503, "overloaded_error"),
    ],
)  # fmt: skip
def test_an_error_has_anthropics_type_and_our_code(status: int, kind: str) -> None:
    error = {"message": "no", "type": "server_error", "param": None, "code": "x"}
    assert error_body(status, error) == {"type": "error", "error": error | {"type": kind}}


# --- requests -------------------------------------------------------------------------------------


def messages_of(*messages: Json, **fields: Any) -> list[Json]:
    told: list[Json] = chat_of_messages({"model": "m", "messages": list(messages), **fields})["messages"]
    return told


def test_instructions_are_one_first_message_without_the_billing_line() -> None:
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.9.a1b; cc_entrypoint=cli; cch=a5145;"},
        {"type": "text", "text": "You code.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be brief."},
    ]
    assert messages_of(system=system) == [{"role": "system", "content": "You code.\n\nBe brief."}]
    line = "x-anthropic-billing-header: cc_version=2.1; cch=a5145;You code."
    assert messages_of(system=line) == [{"role": "system", "content": "You code."}]


def test_later_instructions_are_said_by_the_user() -> None:
    """Claude Code sends some, and many templates refuse a second system message."""
    told = messages_of({"role": "user", "content": "Hi"}, {"role": "system", "content": "Agents: …"}, system="S")
    assert [it["role"] for it in told] == ["system", "user", "user"]


def test_a_conversation_with_tools_becomes_a_chat() -> None:
    told = messages_of(
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "redacted_thinking", "data": "…"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "get", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And?"},
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
            ],
        },
    )
    function = {"name": "get", "arguments": '{"city":"Rome"}'}
    assert told == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
        {"role": "user", "content": "And?"},
    ]


def test_an_input_that_is_a_text_is_left_to_the_repair_of_the_history() -> None:
    told = messages_of(
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": "{'a': 1"}]}
    )
    assert told[0]["tool_calls"][0]["function"]["arguments"] == "{'a': 1"


def test_images_are_passed_on_and_what_cannot_be_read_is_named() -> None:
    blocks = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}},
    ]
    (told,) = messages_of({"role": "user", "content": blocks})
    assert [it.get("text") or it["image_url"]["url"] for it in told["content"]] == [
        "data:image/png;base64,AAAA", "http://x/y.png", "words", "[document: left out, this model cannot read it]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        (
            {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "tool", "name": "f"}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        ({"stop_sequences": ["a"]}, {"stop": ["a"]}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"thinking_budget_tokens": 9}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            {"output_config": {"effort": "low"}, "chat_template_kwargs": {"reasoning_effort": "high", "a": 1}},
            {"chat_template_kwargs": {"reasoning_effort": "high", "a": 1}},
        ),
        ({"output_config": {"effort": "unheard of"}}, {}),
        ({"thinking": {"type": "adaptive"}, "metadata": {"user_id": "x"}, "context_management": {}}, {}),
        (
            {"output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "chat_template_kwargs": {"reasoning_effort": "high"},
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                },
            },
        ),
        (
            {"max_tokens": 5, "temperature": 0, "top_k": 3, "stream": True},
            {"max_tokens": 5, "temperature": 0, "top_k": 3, "stream": True},
        ),
        ({"min_p": 0.1, "chat_template_kwargs": {"a": 1}}, {"min_p": 0.1, "chat_template_kwargs": {"a": 1}}),
        (
            {
                "tools": [
                    {"name": "f", "description": "d", "input_schema": {"type": "object"}},
                    {"type": "web_search_20250305", "name": "web_search"},
                ]
            },
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
                    }
                ]
            },
        ),
    ],
)
def test_fields_get_a_chats_names(given: Json, meant: Json) -> None:
    told = chat_of_messages({"model": "m", "messages": [], **given})
    assert told == {"model": "m", "messages": [], **meant}


@pytest.mark.parametrize("field", [{"messages": "x"}, {"messages": [1]}, {"messages": [{"content": 5}]}, {"tools": {}}])
def test_a_malformed_request_is_refused_with_its_field(field: Json) -> None:
    with pytest.raises(InvalidRequest, match="must be a list of objects"):
        chat_of_messages({"model": "m", "messages": [], **field})


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: Json = {}
    for _ in range(100_000):
        deep = {"a": deep}
    block = {"type": "tool_use", "id": "t", "name": "f", "input": deep}
    body = {"model": "m", "messages": [{"role": "assistant", "content": [block]}]}
    request = Request("/v1/messages", "m", body, b"", is_streamed=False, wants_usage=False, content_type="")
    with pytest.raises(InvalidJson):
        translate(request)
