"""A body of too many values is refused before it is parsed; text of any length is not."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systemd_llm_switch.errors import InvalidJson, InvalidRequest
from systemd_llm_switch.openai.json_cost import MAX_VALUES, has_too_many_values, parsed_bytes
from systemd_llm_switch.openai.request import parse_object


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
    """Each value but the first is behind a comma or an opening bracket, and an empty bracket counts, too. A member of
    an object counts as five."""
    raw = b" " * 100 + json.dumps([value]).encode()
    assert not has_too_many_values(raw, 6 * count(value) + 1)
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


def test_lists_count_twice() -> None:
    """Python's garbage collector looks at each of them several times."""
    lists = b"[" * 400 + b"]" * 400 + b","
    assert parse_object(b'{"model":"a","x":[%b1]}' % (lists * 600))
    with pytest.raises(InvalidRequest, match="a list as two"):
        parse_object(b'{"model":"a","x":[%b1]}' % (lists * 650))


def test_members_of_objects_count_more() -> None:
    """Python takes that much longer for them than for plain values."""
    limit = MAX_VALUES // 5
    members = [f'"{number}":1'.encode() for number in range(limit + 1)]
    assert parse_object(b'{"model":"a","x":{%b}}' % b",".join(members[: limit - 10]))
    with pytest.raises(InvalidRequest, match="a member of an object counts as five"):
        parse_object(b'{"model":"a","x":{%b}}' % b",".join(members))


@pytest.mark.parametrize("shift", range(4))
def test_a_string_is_one_wherever_its_escapes_are(shift: int) -> None:
    """The text is read in portions of 128 KiB. The end of one may be between a backslash and what it escapes."""
    before = b'{"x":"' + b"a" * ((1 << 17) - 7 - shift)
    for escaped in (rb"\"", rb"\\", rb"\\\""):
        assert not has_too_many_values(before + escaped + b",[{" * 5_000 + b'"}', 1000)
    assert has_too_many_values(before + rb"\\" + b'":' + b"[" * 5_000, 1000)


@pytest.mark.parametrize("number", ["9" * 1001, "-" + "9" * 1000])
def test_a_whole_number_of_too_many_digits_is_refused(number: str) -> None:
    """Python's time for one grows with the square of its digits."""
    with pytest.raises(InvalidJson, match="is too large"):
        parse_object(f'{{"model":"a","seed":{number}}}'.encode())


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1." + "1" * 1000])
def test_a_float_that_no_backend_can_read_is_refused(number: str) -> None:
    with pytest.raises(InvalidJson, match="is too large"):
        parse_object(f'{{"model":"a","temperature":{number}}}'.encode())


def test_a_number_beyond_all_floats_is_read() -> None:
    assert parse_object(b'{"x":%b}' % (b"1" + b"0" * 400))["x"] == 10**400


@pytest.mark.parametrize(
    ("raw", "least", "most"),
    [
        (b"[" + b"[]," * 100_000 + b"1]", 5_000_000, 20_000_000),
        (b"[" + b"1," * 400_000 + b"1]", 20_000_000, 33_000_000),
        (b'["' + b",[{:" * 400_000 + b'"]', 0, 1000),
        (b"[" + b"1," * 10_000 + b"1]", 0, 0),
        (b"[" + b"{}," * 9_000_000 + b"1]", 30_000_000, 60_000_000),
    ],
    ids=["lists", "numbers", "a string", "few", "more than are parsed"],
)
def test_the_memory_of_parsed_values_is_estimated(raw: bytes, least: int, most: int) -> None:
    assert least <= parsed_bytes(raw) <= most
