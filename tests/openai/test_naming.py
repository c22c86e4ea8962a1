"""A reply names the model that was asked for, and is not touched where it does already."""

from __future__ import annotations

import json

import pytest

from systemd_llm_switch.openai.shapes import naming, renamed

PATH = "/srv/models/Qwen3-Coder-30B.gguf"
TOOL_INPUT = [{"type": "tool_use", "input": {"model": PATH}}]


@pytest.mark.parametrize(
    "reply",
    [
        {"model": PATH, "object": "list", "data": [{"embedding": [0.5]}]},
        {"object": "list", "data": [], "model": PATH},
        {"content": TOOL_INPUT, "model": PATH},
        {"model": 'a "quoted" name', "data": []},
        {"model": None, "data": []},
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_the_model_is_replaced_and_nothing_else(reply: dict[str, object], separators: tuple[str, str]) -> None:
    named = json.loads(naming(json.dumps(reply, separators=separators).encode(), "coder"))
    assert named == reply | {"model": "coder"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "coder", "data": [0.10]}', b'{"data": [0.10],  "model":"coder"}', b'{"data": [1.0]}', b"", b"[1]",
        b'{"input": {"model": "x"}}', b'{"model": ', b"[" * 100_000 + b'"model"',
    ],
)  # fmt: skip
def test_what_names_it_or_no_model_stays_as_it_is(body: bytes) -> None:
    assert naming(body, "coder") is body


def test_numbers_of_a_reply_that_begins_with_its_model_keep_their_digits() -> None:
    """It is not written anew, whatever its size."""
    rest = b', "data": [' + b"0.10, " * 500_000 + b"1.0]}"
    assert naming(b'{"model": "%b"' % PATH.encode() + rest, "coder") == b'{"model": "coder"' + rest


@pytest.mark.parametrize("before", [b'{"id": 1, ', b'{"text":"a \\"model\\": \\"x\\" b","n": 0.10,\n'])
@pytest.mark.parametrize("space", [b"", b" "])
def test_a_reply_gets_another_name_and_keeps_all_other_bytes(before: bytes, space: bytes) -> None:
    body = before + b'"model"%b:%b"/srv/a.gguf" , "x": [1.0]}' % (space, space)
    assert renamed(body, "ä") == before + b'"model"%b:%b"\\u00e4" , "x": [1.0]}' % (space, space)


@pytest.mark.parametrize(
    "body", [b'{"model": "a", "input": {"model": "a"}}', b'{"model": "a\\/b"}', b'{"a": "model", "model": "b"}', b"{}"]
)
def test_a_name_that_is_not_found_without_doubt_is_not_replaced(body: bytes) -> None:
    assert renamed(body, "coder") is None
