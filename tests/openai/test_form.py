"""A multipart form, of which the proxy needs the short text fields alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.stack import ROOT
from systemd_llm_switch.errors import MissingModel
from systemd_llm_switch.openai.request import parse_request

PARSES = """\
import resource
from systemd_llm_switch.openai.request import parse_request
PART = b'--x\\r\\nContent-Disposition: form-data; name="%b"%b\\r\\n\\r\\n%b\\r\\n'
raw = PART % (b"file", b'; filename="a.wav"', b"a" * 1_000_000) + PART % (b"model", b"", b"m") + b"--x--\\r\\n"
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
request = parse_request("/v1/audio/transcriptions", raw, ["m"], "multipart/form-data; boundary=x")
assert (request.model, request.raw) == ("m", raw)
"""


def test_a_large_file_needs_no_room_on_a_disk() -> None:
    """Here no file may hold a single byte, as on a full disk."""
    ran = subprocess.run(
        [sys.executable, "-c", PARSES],
        env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def test_a_long_field_is_none_of_the_proxys() -> None:
    raw = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--x--\r\n' % (b"m" * 10_000)
    with pytest.raises(MissingModel):
        parse_request("/v1/audio/transcriptions", raw, ["m"], "multipart/form-data; boundary=x")
