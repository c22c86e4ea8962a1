"""What a backend is sent about streams when the proxy itself makes the stream, or none is wanted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from systemd_llm_switch.openai.endpoints import CHAT_PATH
from systemd_llm_switch.openai.request import parse_request, to_backend

PATHS = (CHAT_PATH, "/v1/completions")


def sent(path: str, raw: bytes, params: Any = None) -> Any:
    request = parse_request(path, raw, ["m"])
    return json.loads(to_backend(request, request.body, params or {}, {}))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "field",
    [b"", b',"stream":true', b',"stream":false', b',"stream":null', b',"stream_options":{"include_usage":true}'],
)
def test_the_backend_is_asked_for_a_whole_reply(path: str, field: bytes) -> None:
    assert sent(path, b' {"model":"m"%s}' % field) == {"stream": False, "model": "m"}


def test_a_body_with_defaults_says_so_too() -> None:
    assert sent(CHAT_PATH, b'{"model":"m"}', {"top_k": 1}) == {"model": "m", "top_k": 1, "stream": False}


def test_all_other_bytes_stay_the_clients_own() -> None:
    raw = '{ "model":"m",  "x": 1.50, "y":"\\u00e4ä"}'.encode()
    request = parse_request(CHAT_PATH, b"\n" + raw, ["m"])
    assert to_backend(request, request.body, {}, {}) == b'{"stream":false,' + raw[1:]


def test_other_routes_get_the_clients_bytes() -> None:
    raw = b'{"model":"m","input":["x"]}'
    request = parse_request("/v1/embeddings", raw, ["m"])
    assert to_backend(request, request.body, {}, {}) is request.raw
