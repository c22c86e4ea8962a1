"""The reader of a backend's events."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systemd_llm_switch.openai.sse import EventReader

STREAM = b'data: {"a": 1}\n\n: a comment\n\ndata: two\r\n\r\nevent: x\ndata: one\ndata: more\n\ndata: [DONE]\n\n'
DATA = [b'{"a": 1}', b"two", b"one\nmore", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    reader, at, found = EventReader(), 0, []
    for cut in [*sorted(cuts), len(STREAM)]:
        found += reader.feed(STREAM[at:cut])
        at = cut
    assert found == DATA
    assert reader.is_between_events


@pytest.mark.parametrize("begun", [b"d", b"\r", b"data: {", b"data: x\n", b"data: x\r", b"data: x\r\n\r"])
def test_half_an_event_is_not_a_place_for_a_comment(begun: bytes) -> None:
    reader = EventReader()
    assert list(reader.feed(b"data: [1]\n\n" + begun)) == [b"[1]"]
    assert not reader.is_between_events


def test_an_endless_event_is_not_copied_for_each_of_its_pieces() -> None:
    """Calls of the interpreter are counted, and bytes that are held: both grow with the pieces, not with their
    square."""
    reader, piece = EventReader(), b"x" * 1000
    for _ in range(2000):
        reader.feed(piece)
    assert sum(map(sys.getsizeof, reader._pieces)) < 3_000_000
    assert len(reader._pieces) == 2000  # as they came: none was put together
    assert reader.feed(b"\n\n") == []
    assert reader.is_between_events
