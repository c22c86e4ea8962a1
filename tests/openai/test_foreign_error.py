"""A backend's error, in OpenAI's shape."""

from __future__ import annotations

import json

import pytest

from systemd_llm_switch.openai.shapes import foreign_error

KNOWN = "context length exceeded"


@pytest.mark.parametrize("more", ["", f": {KNOWN}"])
def test_an_overflow_has_the_words_that_clients_know_once(more: str) -> None:
    raw = json.dumps({"error": {"message": f"it exceeds the available context size{more}"}}).encode()
    assert foreign_error(400, raw)["error"]["message"].count(KNOWN) == 1


@pytest.mark.parametrize("code", [True, None, ["x"], 1.5])
def test_a_code_that_is_none_is_replaced(code: object) -> None:
    raw = json.dumps({"error": {"message": "x", "code": code}}).encode()
    assert foreign_error(500, raw)["error"]["code"] == "backend_error"
