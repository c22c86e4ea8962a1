"""Large values are written as small ones are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.interpreter import longest_hold_s
from systemd_llm_switch.openai.large_json import dump_large, dump_like
from systemd_llm_switch.openai.shapes import dump

LONG = 1 << 18


@settings(max_examples=30)
@given(st.text(alphabet='a"\\\n\u00e9\u2028\U0001f600\ud83d\ude00', min_size=1), st.integers(-3, 3))
def test_a_long_string_is_written_in_pieces_as_in_one(unit: str, shift: int) -> None:
    """Wherever it is cut: in a pair of surrogates, too."""
    text = (unit * (2 * LONG // len(unit) + 1))[: 2 * LONG + shift]
    value = {"model": "m", "messages": [{"content": [text, {"text": text, "x": None}], text: 1.5}, "short", True]}
    assert dump_large(value) == dump(value)


@pytest.mark.parametrize("value", [None, {}, [], "x", {"a": [1, "long string 00000000000000000000000000000000"]}])
def test_a_small_value_is_the_same(value: Any) -> None:
    assert dump_large(value) == dump(value)


def test_what_is_nested_too_deeply_is_an_error_as_ever() -> None:
    value: Any = 1
    for _ in range(2000):
        value = [value]
    with pytest.raises(RecursionError):
        dump_large(value)


def test_others_run_while_a_large_value_is_written() -> None:
    """On a busy machine, one of several tries is quick."""
    raw = b'{"x":"' + rb"\n" * 10_000_000 + b'"}'
    value = {"x": "\n" * 10_000_000}
    hold_s = min(longest_hold_s(lambda: dump_like(raw, value)) for _ in range(5))
    assert hold_s < longest_hold_s(lambda: dump(value)) / 2
