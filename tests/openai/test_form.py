"""A multipart form, of which the proxy needs the short text fields alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from systemd_llm_switch.openai.request import parse_request

PART = b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'


def test_a_large_file_needs_no_room_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or a missing folder, must not fail the request."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    raw = PART % (b"file", b'; filename="a.wav"', b"a" * 1_000_000) + PART % (b"model", b"", b"m") + b"--x--\r\n"
    request = parse_request("/v1/audio/transcriptions", raw, ["m"], "multipart/form-data; boundary=x")
    assert (request.model, request.raw) == ("m", raw)
