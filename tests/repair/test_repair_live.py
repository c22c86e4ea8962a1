"""A stream, put together by its client, says what the finished and repaired reply says, in whatever pieces it came."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpus.cases import Case, load_cases
from support.replies import events_of, plenty, saying, told_by, told_whole
from systemd_llm_switch.forward.live_reply import LiveReply
from systemd_llm_switch.repair import RequestFacts, repair_reply

# The rest cannot be streamed: bodies and histories, replies without a reason to end, and shapes that no stream has.
_NOT_OF_A_STREAM = (
    "call_that_is_no_function", "level_between_is_missing", "everything_is_missing",
    "content_in_parts",
    # Their thoughts have gone out as text when their end comes.
    "orphan_think_end", "qwen35_think_then_call", "m3_toolcall_thinking", "minimax_m3_thoughts_without_their_start",
    "think_end_json_close", "thoughts_with_json_in_them", "misspelled_end_of_thoughts",
)  # fmt: skip
_CALL = '{"name": "read_file", "arguments": {"path": "a"}}'
_PARTS = (
    _CALL, f"[{_CALL}]", f"<tool_call>\n{_CALL}\n</tool_call>", f"```json\n{_CALL}\n```", "[TOOL_CALLS]",
    'read_file[ARGS]{"path": "a"}', "<tool_call>", "</tool_call>", "<function=read_file>", "<parameter=path>", "\na\n",
    "</parameter>", "</function>", "read_file<arg_key>path</arg_key><arg_value>a</arg_value>", "<|python_tag|>",
    "```json\n", "```", "~~~\n", "`", "<think>", "</think>", "<|im_end|>", "\n", "\n\n", " ", "For example:", "Well. ",
    "<|channel|>commentary to=functions.read_file <|message|>",
    "<|tool_call_begin|>functions.read_file:0<|tool_call_argument_begin|>", '{"path": "a"}',
    '<invoke name="read_file">',
    '<parameter name="path">a</parameter>', "</invoke>", "<minimax:tool_call>", "</minimax:tool_call>", "<read_file>",
    "<path>a</path>", "</read_file>", "commentary to=functions.read_file json", "```tool_code\n", 'read_file(path="a")',
    "[read_file(path='a')]", '<|tool_call>call:read_file{path:<|"|>a<|"|>}', "<tool_call|>",
    "[Calling tool: read_file(",
    ")]", "functools[", "<｜tool▁call▁begin｜>read_file<｜tool▁sep｜>", "<|im_end|>", "<|call|>", "commentary",
    "foo.", "functions.", "Well.functions.read_file:0<|tool_call_argument_begin|>",
    "read_file(path='a')]<|tool_call_end|>", ">>>read_file\n", "<xyz:tool_calls>", "<pre>", "</pre>",
    "<name>read_file\n</parameter>\n<parameter=path>a</parameter>",
    '<｜DSML｜ invoke name="read_file">', "<think> is a tag.",
    "{", "}", "[", "[1] x < y", "<", "//", '"', "Ä東🚀",
)  # fmt: skip
_FILES = next(case for case in load_cases() if case.raw.get("tools") == "files").facts
_JSON = RequestFacts.of({"response_format": {"type": "json_object"}})
sizes = st.lists(st.integers(1, 12), min_size=1, max_size=12)


def _is_streamable(case: Case) -> bool:
    if {"body", "history", "messages"} & case.raw.keys() or case.name in _NOT_OF_A_STREAM:
        return False
    choices = case.reply["choices"]
    return bool(choices) and all("message" in it and it["finish_reason"] for it in choices)


CASES = [case for case in load_cases() if _is_streamable(case)]


def _streamed(reply: dict[str, Any], facts: RequestFacts, pieces: list[int]) -> dict[int, Any]:
    live = LiveReply(facts, is_chat=True, wants_usage=False, budget=plenty())
    frames = [live.feed(event) for event in events_of(reply, cycle(pieces))]
    live.end()
    return told_by([*frames, *live.rest()])


def _finished(reply: dict[str, Any], facts: RequestFacts) -> dict[int, Any]:
    return told_whole(repair_reply(reply, facts, budget=plenty())[0])


def test_most_of_the_corpus_can_be_streamed() -> None:
    assert len(CASES) > 500


@pytest.mark.parametrize("size", [1, 7])
def test_every_case_of_the_corpus_says_the_same_in_pieces_of_one_size(size: int) -> None:
    wrong = [it.name for it in CASES if _streamed(it.reply, it.facts, [size]) != _finished(it.reply, it.facts)]
    assert wrong == []


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=st.sampled_from(CASES), pieces=sizes)
def test_a_streamed_case_of_the_corpus_says_the_same(case: Case, pieces: list[int]) -> None:
    assert _streamed(case.reply, case.facts, pieces) == _finished(case.reply, case.facts)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    parts=st.lists(st.sampled_from(_PARTS), min_size=1, max_size=9),
    finish_reason=st.sampled_from(["stop", "length"]),
    facts=st.sampled_from([_FILES, _FILES, _JSON, RequestFacts()]),
    pieces=sizes,
)
def test_any_text_says_the_same(parts: list[str], finish_reason: str, facts: RequestFacts, pieces: list[int]) -> None:
    """Whatever marks, fences, thoughts and calls follow on each other."""
    reply = saying("".join(parts), finish_reason)
    assert _streamed(reply, facts, pieces) == _finished(reply, facts)


def test_words_go_on_before_the_call_that_follows_them() -> None:
    """What is surely no part of a call is not held."""
    live = LiveReply(_FILES, is_chat=True, wants_usage=False, budget=plenty())
    frames = [live.feed(event) for event in events_of(saying(f"I will read it.\n<tool_call>{_CALL}"), cycle([3]))]
    assert told_by(frames)[0]["text"] == "I will read it."


def test_a_block_of_code_goes_on_as_it_is_written() -> None:
    """An answer that starts with a fence is held only as long as it may be nothing but a call."""
    live = LiveReply(_FILES, is_chat=True, wants_usage=False, budget=plenty())
    frames = [live.feed(event) for event in events_of(saying("```python\nimport os\n\nprint(os.name)"), cycle([3]))]
    assert "import os" in told_by(frames)[0]["text"]


def test_an_answer_that_starts_with_a_reference_goes_on_as_it_is_written() -> None:
    """So does a bracket that opens no list of calls."""
    live = LiveReply(_FILES, is_chat=True, wants_usage=False, budget=plenty())
    frames = [live.feed(event) for event in events_of(saying("[1] says so, and more."), cycle([3]))]
    assert told_by(frames)[0]["text"].startswith("[1] says so")
