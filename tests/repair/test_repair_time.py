"""Repair takes time in proportion to the reply's length, whatever a model that is caught in a loop writes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from corpus.cases import load_cases
from support.leaked import MARKED
from support.replies import calling, plenty, saying
from systemd_llm_switch.forward.live_reply import BrokenStream, LiveReply
from systemd_llm_switch.openai.decoder import TooLarge
from systemd_llm_switch.repair import (
    Budget,
    RequestFacts,
    parse_reply,
    repair_history,
    repair_reply,
)

SMALL, LARGE = 30_000, 120_000
MAX_RATIO = 10  # four would be linear; the rest is noise of a shared machine
NOISE_S = 0.003
BOUND_S = 5.0
FILES = next(case for case in load_cases() if case.raw.get("tools") == "files").facts
JSON = RequestFacts(wants_json=True)
CALL = '{"name": "read_file", "arguments": {"path": "a"}}'


def filled(unit: str, length: int) -> str:
    return (unit * (length // len(unit) + 1))[:length]


def content(unit: str) -> Callable[[int], str]:
    """A file whose content is one thing over and over."""
    return lambda length: f'{{"path": "a", "content": "{filled(unit, length)}"}}'


def between(start: str, unit: str, end: str = "") -> Callable[[int], str]:
    return lambda length: start + filled(unit, length) + end


ARGUMENTS: dict[str, Callable[[int], str]] = {
    "code with quotes": content('print("a", "b")\n'),
    "quotes": content('"'),
    "quotes and commas": content('", '),
    "quotes and braces": content('"}'),
    "quotes and names": content('", "path": '),
    "quotes, braces and space": content('"}' + " " * 50),
    "backslashes": content("\\"),
    "apostrophes": between("{'path': 'a', 'content': '", "it's ", "'}"),
    "opening braces": between("", "{"),
    "objects without end": between("", '{"a":'),
    "closing braces": between('{"path": "a"', "} ", "x"),
    "space": between('{"path": "a",', " \n", "x"),
    "comments": between('{"path": "a" ', "// a\n", "}"),
    "comments without end": between('{"path": "a" ', "/* "),
    "words": between("{a: ", "x "),
    "members": between("{", "'a': 'b', ", "}"),
    "marks before": between("", "<tool_call>", '{"path": "a"}'),
    "marks behind": between('{"path": "a"}', "</tool_call>"),
    "fences": between("", "```json\n"),
}
CONTENTS: dict[str, Callable[[int], str]] = {
    "marks": between("", "<tool_call>"),
    "calls": between("", f"<tool_call>{CALL}</tool_call>\n"),
    "calls without end": between("", f"<tool_call>{CALL[:-10]}"),
    "bare calls": between("", f"{CALL}\n"),
    "functions without end": between("", "<function=read_file>\n<parameter=path>\n"),
    "parameters": between("<function=read_file>\n", "<parameter=path>\nx\n</parameter>\n"),
    "keys without values": between("<tool_call>read_file\n", "<arg_key>path</arg_key>\n<arg_value>"),
    "call ends behind a parameter in a parameter": between(
        "<function=write_to_file>\n<parameter=path>a</parameter>\n<parameter=content>\n<parameter=x></parameter>z",
        "y</function>",
    ),
    "control tokens": between("", "[TOOL_CALLS]read_file{"),
    "end tokens": between("{", "<|im_end|>"),
    "backticks": between("", "`", " {"),
    "single backticks": between("", "` ", "{"),
    "fences of all kinds": between("<x\n", "```\n~~~~\n````\n~~~\n"),
    "fences in lines": between("<x ", "a ``` b ```` c"),
    "thoughts": between("", "<think>", "{"),
    "opening braces": between("", "{"),
    "space": between("{", " ", "x"),
    "tags": between("", "<"),
}
WANTED_JSON: dict[str, Callable[[int], str]] = {
    "opening braces": between("", "{"),
    "quotes": between('{"a": "', '"b", '),
    "fences": between("", "```json\n{\n"),
    "words": between("", "no { no } "),
    "members": between("{", "'a': 'b', ", "}"),
}


def assert_linear(work: Callable[[Any], object], made: Callable[[int], Any]) -> None:
    """By the CPU time of this thread, so that a busy machine does not count; the best of up to six runs each."""
    small = large = float("inf")
    given = made(SMALL), made(LARGE)
    for _ in range(6):
        small, large = min(small, _seconds(work, given[0])), min(large, _seconds(work, given[1]))
        if large < BOUND_S and large < MAX_RATIO * max(small, NOISE_S):
            return
    assert large < BOUND_S
    assert large < MAX_RATIO * max(small, NOISE_S)


def _seconds(work: Callable[[Any], object], given: object) -> float:
    began = time.thread_time()
    work(given)
    return time.thread_time() - began


@pytest.mark.parametrize("shape", ARGUMENTS)
def test_arguments(shape: str) -> None:
    assert_linear(
        lambda reply: repair_reply(reply, FILES, budget=plenty()),
        lambda it: calling("write_to_file", ARGUMENTS[shape](it)),
    )


@pytest.mark.parametrize("shape", ["code with quotes", "quotes", "members", "opening braces"])
def test_arguments_that_were_cut(shape: str) -> None:
    def cut(length: int) -> Any:
        return calling("write_to_file", ARGUMENTS[shape](length)[:-2], "length")

    assert_linear(lambda reply: repair_reply(reply, FILES, budget=plenty()), cut)


def test_texts_that_all_lost_their_closing_quote() -> None:
    """Each is looked for to the end of the arguments, so their number has a bound."""
    texts = between('{"question": "?", "follow_up": [', '{"text": "a, "mode": null}, ')
    assert_linear(
        lambda reply: repair_reply(reply, FILES, budget=plenty()),
        lambda length: calling("ask_followup_question", texts(length)),
    )


def test_more_values_than_any_call_has_are_left_as_they_are() -> None:
    """Past the bound on its work repair gives up, and says so."""
    reply = calling("ask_followup_question", between('{"question": "?", "follow_up": [', "{'text': 'a'}, ")(1_000_000))
    mended, repairs = repair_reply(reply, FILES, budget=plenty())
    assert mended is reply
    assert [repair.kind for repair in repairs] == ["unrepairable_arguments"]


@pytest.mark.parametrize("shape", CONTENTS)
def test_words_that_may_hold_calls(shape: str) -> None:
    assert_linear(
        lambda reply: repair_reply(reply, FILES, budget=plenty()), lambda length: saying(CONTENTS[shape](length))
    )


@pytest.mark.parametrize("form", MARKED)
def test_a_form_with_a_large_file_in_it(form: str) -> None:
    """One call with a large file, whole and without its end."""

    def whole(length: int) -> str:
        return MARKED[form]("write_to_file", {"path": "a", "content": 'print("a")\n' * (length // 11)})

    assert_linear(lambda reply: repair_reply(reply, FILES, budget=plenty()), lambda length: saying(whole(length)))
    assert_linear(lambda reply: repair_reply(reply, FILES, budget=plenty()), lambda length: saying(whole(length)[:-20]))


@pytest.mark.parametrize("form", MARKED)
def test_a_form_over_and_over(form: str) -> None:
    """A model in a loop; the budget would hide it, so there is plenty."""
    call = MARKED[form]("read_file", {"path": "a"})
    assert_linear(
        lambda reply: repair_reply(reply, FILES, Budget(base_s=60)), lambda length: saying(filled(f"{call}\n", length))
    )


@pytest.mark.parametrize("shape", WANTED_JSON)
def test_content_that_is_to_be_json(shape: str) -> None:
    assert_linear(
        lambda reply: repair_reply(reply, JSON, budget=plenty()), lambda length: saying(WANTED_JSON[shape](length))
    )


@pytest.mark.parametrize("shape", ["code with quotes", "quotes", "objects without end"])
def test_a_replayed_history(shape: str) -> None:
    def replayed(length: int) -> Any:
        reply = calling("write_to_file", ARGUMENTS[shape](length))
        return {"messages": [choice["message"] for choice in reply["choices"]]}

    assert_linear(repair_history, replayed)


def test_a_whole_body_that_is_malformed() -> None:
    def malformed(length: int) -> bytes:
        reply = json.dumps(saying(filled('print("a")\n', length)))
        return reply.replace("}", ",}").encode()

    assert_linear(parse_reply, malformed)


LIVE = {
    "newlines": ("Hi ", "\n"),
    "spaces": ("Hi ", "     "),
    "space from the start": ("", " "),
    "leaked thoughts": ("<|channel|>analysis<|message|>", "abcd "),
    "thoughts without their tokens": ("analysisWe ", "abcd "),
    "words": ("Hi ", "abcd "),
}


@pytest.mark.parametrize("shape", LIVE)
def test_a_live_stream_of_many_pieces(shape: str) -> None:
    """What is held back is not read again for each piece."""
    start, piece = LIVE[shape]

    def feed(count: int) -> None:
        live = LiveReply(FILES, is_chat=True, wants_usage=False)
        for text in (start, *[piece] * count):
            live.feed(json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode())

    assert_linear(feed, lambda length: length // 50)


def test_arguments_of_more_values_than_python_parses_in_a_moment_are_not_parsed() -> None:
    """No other request is answered meanwhile. In a string, they are not among the values of the request's body."""
    function = {"name": "f", "arguments": '{"a":[' + "{}," * 1_000_000 + "1]}"}
    message = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    repaired, repairs = repair_history({"messages": [message]}, plenty())
    assert [it.kind for it in repairs] == ["history_arguments", "repair_budget"]
    assert '"arguments": "{\\"malformed_arguments\\":' in json.dumps(repaired)


def test_a_number_of_too_many_digits_is_not_parsed() -> None:
    """Python's time for one grows with the square of its digits."""
    function = {"name": "f", "arguments": '{"a":' + "9" * 1001 + "}"}
    message = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    assert repair_history({"messages": [message]}, plenty())[1]


@pytest.mark.parametrize("unit", ["{},", '{"a":1},', "1,"])
def test_a_reply_of_more_values_than_any_has_is_refused(unit: str) -> None:
    raw = b'{"choices":[' + unit.encode() * 2_000_001 + b"1]}"
    with pytest.raises(TooLarge, match="more than 2000000 values"):
        parse_reply(raw, plenty())


def test_a_reply_larger_than_any_is_refused() -> None:
    raw = b'{"choices":["%b"]}' % (b"x" * 64_000_000)
    with pytest.raises(TooLarge, match="larger than 64 MB"):
        parse_reply(raw, plenty())


def test_an_event_of_more_values_than_any_has_breaks_the_stream() -> None:
    with pytest.raises(BrokenStream):
        LiveReply(RequestFacts(), is_chat=True, wants_usage=False).feed(b'{"choices":[' + b"{}," * 100_001 + b"{}]}")


def test_more_choices_than_any_reply_has_break_the_stream() -> None:
    """Each takes a hundred times the memory of its event."""
    live = LiveReply(RequestFacts(), is_chat=True, wants_usage=False)
    events = (b'{"choices":[{"index":%d,"delta":{"content":"a"}}]}' % index for index in range(1001))
    for _ in range(1000):
        live.feed(next(events))
    live.feed(b'{"choices":[{"index":7,"delta":{"content":"a"}}]}')
    with pytest.raises(BrokenStream, match="more than 1000 choices"):
        live.feed(next(events))
