"""OpenAI's responses: the request as a chat, the reply as a response and as its events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from systemd_llm_switch.dialects.responses import Responses
from systemd_llm_switch.dialects.responses_request import chat_of_responses
from systemd_llm_switch.errors import InvalidRequest
from systemd_llm_switch.openai.sse import sse_frames

Json = dict[str, Any]
CALL = {"id": "call_1", "type": "function", "function": {"name": "get", "arguments": '{"city": "Rome"}'}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 6}}
TOOLS = [
    {"type": "function", "name": "get", "description": "d", "parameters": {"type": "object"}, "strict": False},
    {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}},
    {"type": "namespace", "name": "mcp", "tools": [{"type": "function", "name": "find", "parameters": {}}]},
    {"type": "web_search"},
]


def reply(message: Json, finish: str = "stop") -> Json:
    """A chat's reply."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"model": "m", "created": 7, "choices": [choice], "usage": USAGE}


def whole(message: Json, finish: str = "stop") -> Json:
    answer: Json = json.loads(Responses({"model": "asked", "tools": TOOLS}).whole(reply(message, finish), b""))
    return answer


def streamed(message: Json, finish: str = "stop") -> list[Json]:
    """The events, of frames that come one by one."""
    dialect = Responses({"model": "asked", "tools": TOOLS})
    sent = b"".join(dialect.events(it) for it in sse_frames(reply(message, finish), is_chat=True, wants_usage=True))
    return events_of(sent)


def events_of(sent: bytes) -> list[Json]:
    """Each has its type as its name, and the next number."""
    events = []
    for number, block in enumerate(sent.decode().removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        events.append(event)
    return events


def without_ids(response: Json) -> Json:
    """A response whose ids are only their kinds."""
    items = [{**item, "id": item["id"].partition("_")[0]} for item in response["output"]]
    return {**response, "id": response["id"].partition("_")[0], "output": items}


def words(text: str) -> Json:
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": "msg", "type": "message", "status": "completed", "role": "assistant", "content": [content]}


def call(**fields: Any) -> Json:
    return {"id": "fc", "type": "function_call", "status": "completed", "call_id": "call_1", **fields}


# --- replies --------------------------------------------------------------------------------------

REPLIES: dict[str, tuple[Json, str, list[Json]]] = {
    "words": ({"content": "Hi."}, "stop", [words("Hi.")]),
    "a call": (
        {"content": None, "tool_calls": [CALL]}, "tool_calls", [call(name="get", arguments='{"city": "Rome"}')],
    ),
    "all": (
        {"reasoning_content": "Hm.", "content": "I look.", "tool_calls": [CALL]}, "tool_calls",
        [
            {
                "id": "rs", "type": "reasoning", "status": "completed", "summary": [],
                "content": [{"type": "reasoning_text", "text": "Hm."}],
            },
            words("I look."),
            call(name="get", arguments='{"city": "Rome"}'),
        ],
    ),
    "a tool of free text": (
        {"tool_calls": [CALL | {"function": {"name": "patch", "arguments": '{"input": "*** Begin"}'}}]}, "tool_calls",
        [{"id": "fc", "type": "custom_tool_call", "status": "completed", "call_id": "call_1", "name": "patch",
          "input": "*** Begin"}],
    ),
    "a tool in a namespace": (
        {"tool_calls": [CALL | {"function": {"name": "mcp__find", "arguments": "{}"}}]}, "tool_calls",
        [call(name="find", namespace="mcp", arguments="{}")],
    ),
    "nothing": ({"content": None}, "stop", []),
}  # fmt: skip


@pytest.mark.parametrize("case", REPLIES)
def test_a_reply_becomes_a_response(case: str) -> None:
    message, finish, output = REPLIES[case]
    answer = without_ids(whole(message, finish))
    assert answer["output"] == output
    assert (answer["status"], answer["error"], answer["incomplete_details"]) == ("completed", None, None)
    assert answer["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 6},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 13,
    }
    assert (answer["id"], answer["object"], answer["model"], answer["created_at"]) == ("resp", "response", "m", 7)
    assert answer["tools"] == TOOLS


@pytest.mark.parametrize("case", REPLIES)
def test_the_events_of_a_reply_say_the_same(case: str) -> None:
    """The last has the whole response, the finished items are the items of it, and each piece has its place."""
    message, finish, output = REPLIES[case]
    events = streamed(message, finish)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == "response.completed"
    assert without_ids(events[-1]["response"]) == without_ids(whole(message, finish))
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == list(range(len(output)))
    assert [event["item"]["id"] for event in added] == [item["id"] for item in done]
    for event in events:
        if "item_id" in event:
            assert event["item_id"] == done[event["output_index"]]["id"]


TEXTS = {"output_text": "text", "reasoning_text": "text", "function_call_arguments": "arguments",
         "custom_tool_call_input": "input"}  # fmt: skip


@pytest.mark.parametrize("case", REPLIES)
def test_the_deltas_of_an_item_are_its_text(case: str) -> None:
    events = streamed(*REPLIES[case][:2])
    for kind, name in TEXTS.items():
        deltas: dict[int, str] = {}
        for event in events:
            if event["type"] == f"response.{kind}.delta":
                deltas[event["output_index"]] = deltas.get(event["output_index"], "") + event["delta"]
        assert deltas == {it["output_index"]: it[name] for it in events if it["type"] == f"response.{kind}.done"}


def test_a_part_is_added_before_its_deltas_and_done_after_them() -> None:
    kinds = [event["type"].removeprefix("response.") for event in streamed({"content": "Hi."})]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip


def test_a_cut_response_is_incomplete() -> None:
    answer = whole({"content": "Hi"}, "length")
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert streamed({"content": "Hi"}, "length")[-1]["type"] == "response.incomplete"


# --- errors ---------------------------------------------------------------------------------------

ERROR = {"message": "the model fell over", "type": "server_error", "param": None, "code": "backend_crashed"}


@pytest.mark.parametrize("begun", [False, True])
def test_an_error_in_a_stream_fails_the_response_and_is_raised(begun: bool) -> None:
    """SDKs raise the second; Codex reads the first. What was said before is in it."""
    dialect = Responses({"model": "m"})
    chunk = {"choices": [{"index": 0, "delta": {"content": "Half an"}}]}
    sent = dialect.events(b"data: " + json.dumps(chunk).encode() + b"\n\n") if begun else b""
    events = events_of(sent + dialect.error_events(502, ERROR, may_get_better=True))
    assert events[0]["type"] == "response.created"
    failed, last = events[-2:]
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "backend_crashed", "message": "the model fell over"}
    assert failed["response"]["id"] == events[0]["response"]["id"]
    assert last["type"] == "error"
    assert last["error"] == ERROR
    assert (last["code"], last["message"]) == ("backend_crashed", "the model fell over")


def test_a_prompt_that_is_too_long_has_the_code_that_codex_knows() -> None:
    error = ERROR | {"message": "… (context length exceeded)", "code": 400}
    events = events_of(Responses({"model": "m"}).error_events(400, error, may_get_better=False))
    assert events[-2]["response"]["error"]["code"] == "context_length_exceeded"


# --- requests -------------------------------------------------------------------------------------


def messages_of(given: object, **fields: Any) -> list[Json]:
    told: list[Json] = chat_of_responses({"model": "m", "input": given, **fields})["messages"]
    return told


def item(role: str, text: str, kind: str = "input_text") -> Json:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def test_instructions_are_one_first_message() -> None:
    """Codex sends several developer messages, and many templates take one."""
    told = messages_of([item("developer", "B"), item("developer", "C"), item("user", "Hi")], instructions="A")
    assert told == [{"role": "system", "content": "A\n\nB\n\nC"}, {"role": "user", "content": "Hi"}]


def test_later_instructions_are_said_by_the_user() -> None:
    assert [it["role"] for it in messages_of([item("user", "Hi"), item("developer", "C")])] == ["user", "user"]


def test_a_conversation_with_tools_becomes_a_chat() -> None:
    told = messages_of(
        [
            {"role": "user", "content": "Weather?"},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            item("assistant", "I look.", "output_text"),
            {"type": "function_call", "call_id": "c1", "name": "get", "arguments": "{bad"},
            {"type": "function_call", "call_id": "c2", "name": "find", "namespace": "mcp", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "c3", "name": "patch", "input": "*** Begin"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "found"}]},
            {"type": "custom_tool_call_output", "call_id": "c3", "output": "done"},
            {"type": "web_search_call", "id": "ws"},
        ]
    )
    calls = [("c1", "get", "{bad"), ("c2", "mcp__find", "{}"), ("c3", "patch", '{"input":"*** Begin"}')]
    assert told == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
                for id_, name, arguments in calls
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "found"},
        {"role": "tool", "tool_call_id": "c3", "content": "done"},
    ]


def test_images_are_passed_on_and_files_are_named() -> None:
    parts = [{"type": "input_image", "image_url": "data:x"}, {"type": "input_file", "file_id": "f"}]
    (told,) = messages_of([{"role": "user", "content": parts}])
    assert told["content"] == [
        {"type": "image_url", "image_url": {"url": "data:x"}},
        {"type": "text", "text": "[input_file: left out, this model cannot read it]"},
    ]


def test_every_tool_that_the_client_runs_becomes_a_function() -> None:
    told = chat_of_responses({"model": "m", "input": "Hi", "tools": TOOLS})["tools"]
    assert [it["function"]["name"] for it in told] == ["get", "patch", "mcp__find"]
    assert told[0]["function"] == {"name": "get", "description": "d", "parameters": {"type": "object"}, "strict": False}
    assert told[1]["function"]["parameters"] == {
        "type": "object",
        "properties": {"input": {"type": "string", "description": "lark: start: x"}},
        "required": ["input"],
    }


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
A_FUNCTION = {"type": "function", "function": {"name": "get"}}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "function", "name": "get"}}, {"tool_choice": A_FUNCTION}),
        ({"tool_choice": {"type": "file_search"}}, {}),
        ({"max_output_tokens": 5}, {"max_tokens": 5}),
        ({"max_output_tokens": None}, {}),
        (
            {"reasoning": {"effort": "low", "summary": "auto"}},
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "low"}},
        ),
        (
            {"reasoning": {"effort": "none"}},
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}},
        ),
        ({"reasoning": None, "store": False, "include": ["x"], "client_metadata": {"a": "b"}}, {}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
        ),
        ({"temperature": 0, "parallel_tool_calls": False}, {"temperature": 0, "parallel_tool_calls": False}),
    ],
)
def test_fields_get_a_chats_names(given: Json, meant: Json) -> None:
    told = chat_of_responses({"model": "m", "input": "Hi", **given})
    assert told == {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **meant}


def test_allowed_tools_are_the_only_ones() -> None:
    allowed = [{"type": "function", "name": "get"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": allowed}
    told = chat_of_responses({"model": "m", "input": "Hi", "tools": TOOLS, "tool_choice": choice})
    assert told["tool_choice"] == "required"
    assert [it["function"]["name"] for it in told["tools"]] == ["get"]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"previous_response_id": "resp_1"}, "send the whole conversation"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "send the whole conversation"),
        ({"input": None}, "has no `input`"),
        ({"input": 5}, "must be a list of objects"),
        ({"tools": "x"}, "must be a list of objects"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(field: Json, words: str) -> None:
    body = {"model": "m", "input": "Hi", **field}
    with pytest.raises(InvalidRequest, match=words):
        chat_of_responses(body)
