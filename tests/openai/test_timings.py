"""llama-server's `timings`, found in a reply."""

from __future__ import annotations

import json
from typing import Any

import pytest

from systemd_llm_switch.openai.shapes import timings_in

TIMINGS = {"cache_n": 1, "prompt_n": 2, "prompt_ms": 3.5, "predicted_n": 4}


@pytest.mark.parametrize("indent", [None, 2])
def test_timings_are_found(indent: int | None) -> None:
    assert timings_in(json.dumps({"choices": [], "timings": TIMINGS, "id": "x"}, indent=indent).encode()) == TIMINGS


@pytest.mark.parametrize("order", [("choices", "timings"), ("timings", "choices")])
def test_text_that_looks_like_timings_is_not_taken_for_them(order: tuple[str, str]) -> None:
    text = json.dumps({"timings": {"cache_n": 9}})
    fields: dict[str, Any] = {"choices": [{"message": {"content": text}}], "timings": TIMINGS}
    assert timings_in(json.dumps({name: fields[name] for name in order}).encode()) == TIMINGS


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"timings":', b'{"timings":1}', b'{"timings":null}', b'{"timings":' + b"[" * 9999]
)
def test_a_reply_without_timings_has_none(body: bytes) -> None:
    assert timings_in(body) == {}
