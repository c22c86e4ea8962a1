"""Cheroot's own parser of requests, which the proxy does not use: to compare with."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from cheroot.server import HTTPRequest


class _Refused(Exception):
    """The parser refused a request."""


class _Reading(HTTPRequest):
    def simple_response(self, status: str, msg: str = "") -> None:
        raise _Refused(f"{status} {msg}")


def read_by_cheroot(data: bytes) -> Any:
    """What cheroot's parser understands of a head; None if it refuses it."""
    server = SimpleNamespace(
        max_request_header_size=1 << 16, max_request_body_size=10**9, protocol="HTTP/1.1", ssl_adapter=None
    )
    connection = SimpleNamespace(rfile=io.BytesIO(data), wfile=io.BytesIO())
    request = _Reading(server, connection)
    try:
        request.parse_request()
    except _Refused:
        return None
    return request
