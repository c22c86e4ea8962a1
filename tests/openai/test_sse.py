"""The reader of a backend's events, and how the end of a stream is recognised."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systemd_llm_switch.openai.sse import EventReader, is_last_event

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


@pytest.mark.parametrize(
    "data",
    [
        b"[DONE]",
        b'{"type":"response.completed","response":{}}',
        b'{"response": {"status": "failed"}, "type": "response.failed"}',
        b'{"type": "response.incomplete"}',
        b'{"type":"message_stop"}',
        b'{"type":"error","error":{"type":"overloaded_error"}}',
        b'{"error":{"message":"no"}}',
    ],
)
def test_the_last_event_of_a_stream_is_recognised(data: bytes) -> None:
    assert is_last_event(data)


@pytest.mark.parametrize(
    "data",
    [
        json.dumps({"type": "response.output_text.delta", "delta": "response.completed"}).encode(),
        json.dumps({"type": "content_block_delta", "delta": {"text": '{"type":"message_stop"}'}}).encode(),
        json.dumps({"type": "content_block_delta", "delta": {"text": "an error"}}).encode(),
        b"message_stop",
        b'["message_stop"]',
        b"[DONE",
        b"",
    ],
)
def test_words_in_a_text_do_not_end_a_stream(data: bytes) -> None:
    assert not is_last_event(data)
