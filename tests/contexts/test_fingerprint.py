"""Which conversations share a beginning."""

from __future__ import annotations

from typing import Any

import pytest

from systemd_llm_switch.contexts.fingerprint import NOTHING, STRIDE, Fingerprint, fingerprint


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    """A chat's body; the user speaks first."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    return {"model": "m", "messages": messages, **fields}


LONG = " ".join(f"word{number}" for number in range(1000))


def test_a_conversation_that_goes_on_shares_all_of_its_beginning() -> None:
    before, after = fingerprint(chat(LONG)), fingerprint(chat(LONG, "An answer.", "And now?"))
    assert before.common(after) == len(before.marks) * STRIDE > 0.9 * before.size


def test_another_question_behind_a_long_text_shares_the_text() -> None:
    one, other = fingerprint(chat(LONG + " What?")), fingerprint(chat(LONG + " Why?"))
    assert one.common(other) > 0.9 * one.size


def test_other_tools_share_nothing_since_templates_put_them_first() -> None:
    one, other = fingerprint(chat(LONG, tools=[{"a": 1}])), fingerprint(chat(LONG, tools=[{"b": 1}]))
    assert one.common(other) == 0


def test_the_order_of_other_fields_does_not_matter() -> None:
    one = fingerprint({"temperature": 0, **chat(LONG), "max_tokens": 3})
    assert one == fingerprint(chat(LONG, stream=True))


def test_a_plain_prompt_has_one_too() -> None:
    one, other = fingerprint({"prompt": LONG}), fingerprint({"prompt": LONG + " more"})
    assert one.common(other) > 0.9 * one.size


def test_it_survives_a_file() -> None:
    one = fingerprint(chat(LONG))
    assert Fingerprint.of_text(one.as_text(), one.size) == one


@pytest.mark.parametrize(("text", "size"), [("!", 9999), ("AAAA", 9999), (fingerprint(chat(LONG)).as_text(), 3)])
def test_another_text_is_refused(text: str, size: int) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Fingerprint.of_text(text, size)


def test_what_cannot_be_written_has_none() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert fingerprint({"messages": [deep]}) == NOTHING


def test_a_huge_conversation_costs_no_more_than_a_bound() -> None:
    found = fingerprint(chat(*[LONG] * 2000))
    assert found.size <= 4_000_000


def test_a_lone_surrogate_is_accepted() -> None:
    assert fingerprint(chat("\ud800" * 1000)).marks
