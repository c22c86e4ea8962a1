"""The line that a request leaves in the journal."""

from __future__ import annotations

import logging

import pytest

from systemd_llm_switch.forward.record import Record


def test_a_backend_cannot_add_fields_to_the_line(caplog: pytest.LogCaptureFixture) -> None:
    record = Record("/v1/chat/completions", status=200, usage={"prompt_tokens": "3 error=forged"})
    with caplog.at_level(logging.INFO):
        record.log()
    assert "prompt_tokens=- completion_tokens=- " in caplog.text
