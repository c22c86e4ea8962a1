"""Which beginning two conversations share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contexts.test_fingerprint import LONG
from systemd_llm_switch.contexts.openings import Opening, Openings


def message(system: str, *turns: str, **fields: Any) -> bytes:
    roles = ("user", "assistant")
    said = [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]
    return json.dumps({"messages": [{"role": "system", "content": system}, *said], **fields}).encode()


def start(system: str, *turns: str, **fields: Any) -> Opening:
    found = Opening.of_message(message(system, *turns, **fields))
    assert found is not None
    return found


def noted(*starts: Opening) -> Openings:
    seen = Openings()
    for it in starts:
        seen.note(it)
    return seen


def test_two_conversations_of_one_client_are_alike() -> None:
    one, other = start(LONG, "What?"), start(LONG, "Why?")
    assert noted(one, other).alike() == (other, one)


def test_one_conversation_that_goes_on_is_not_two() -> None:
    assert noted(start(LONG, "What?"), start(LONG, "What?", "That.", "And now?")).alike() is None


def test_another_temperature_does_not_make_two_of_one() -> None:
    assert noted(start(LONG, "What?"), start(LONG, "What?", temperature=1)).alike() is None


def test_a_title_request_in_between_does_not_matter() -> None:
    one, other = start(LONG, "What?"), start(LONG, "Why?")
    assert noted(one, start("You write titles.", "A title!"), other).alike() == (other, one)


def test_the_longest_shared_beginning_wins() -> None:
    one, other = start(LONG, "What?"), start(LONG, "Why?")
    short = [start(LONG[:1200], question) for question in ("a", "b")]
    assert noted(one, other, *short).alike() == (other, one)


def test_other_tools_are_another_beginning() -> None:
    assert noted(start(LONG, "What?", tools=[{"a": 1}]), start(LONG, "Why?", tools=[{"b": 1}])).alike() is None


def test_short_beginnings_are_not_worth_reading() -> None:
    assert noted(start("Be nice.", "What?"), start("Be nice.", "Why?")).alike() is None


def test_what_follows_the_first_question_is_not_kept() -> None:
    assert [it["content"] for it in start("s", "What?", "That.", "And now?").body["messages"]] == ["s", "What?"]


@pytest.mark.parametrize(
    "sent",
    [b'{"messages": 1}', b'{"messages": []}', b'{"messages": [1, {"role": "system"}]}', message(LONG * 500, "What?")],
    ids=["number", "empty", "nobody asks", "too large"],
)
def test_what_begins_no_conversation_is_left_alone(sent: bytes) -> None:
    assert Opening.of_message(sent) is None
