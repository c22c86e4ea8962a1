"""A body of too many values is refused before it is parsed; text of any length is not."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systemd_llm_switch.errors import InvalidRequest
from systemd_llm_switch.openai.request import parse_object
from systemd_llm_switch.openai.value_count import MAX_VALUES, has_too_many_values


@pytest.mark.parametrize("unit", ["1,", '{"a":1},', '"a",', "[],", '{"\\"":[', "[[[["])
def test_more_values_than_python_parses_in_a_moment_are_refused(unit: str) -> None:
    body = b'{"model":"a","x":[' + unit.encode() * (MAX_VALUES + 1) + b"1]}"
    with pytest.raises(InvalidRequest, match="more than 500000 values"):
        parse_object(body)


@pytest.mark.parametrize("text", [",[{" * MAX_VALUES, '\\"[{,' * MAX_VALUES, 'say "[1, 2]" ' * MAX_VALUES])
def test_what_is_in_a_string_is_not_counted(text: str) -> None:
    assert parse_object(json.dumps({"model": "a", "x": text}).encode())["x"] == text


values = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a"\\,[{}]: '),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('a"\\,'), inner),
)


def count(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(count, inner))


@given(values)
def test_the_count_is_about_right(value: object) -> None:
    """Each value but the first is behind a comma or an opening bracket, and an empty bracket counts, too."""
    raw = b" " * 100 + json.dumps([value]).encode()
    assert not has_too_many_values(raw, 2 * count(value) + 1)
    if count(value) > 1:
        assert has_too_many_values(raw.strip().ljust(100), (count(value) - 1) // 2)


def test_a_string_full_of_escapes_costs_little_memory() -> None:
    """A pattern that skips escapes keeps a note of each: a hundred bytes for two."""
    body = b'{"x":"' + rb"\n\\\"," * MAX_VALUES + b'"}'
    tracemalloc.start()
    try:
        assert not has_too_many_values(body)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()


def test_an_open_string_is_read_once() -> None:
    raw = b",[{" * MAX_VALUES + b'"' + b'\\"' * 5_000_000
    began = time.thread_time()
    has_too_many_values(raw, 10**7)
    has_too_many_values(raw[:1_000_000] + b"\\" + raw[1_000_000:], MAX_VALUES)
    assert time.thread_time() - began < 10
