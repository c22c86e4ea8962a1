"""The usual request is read in few steps; cheroot's own parser, which reads every other, would say the same of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from cheroot.server import HTTPRequest
from hypothesis import example, given
from hypothesis import strategies as st

from support.stack import Proxy, Stack, chat, wait_for
from systemd_llm_switch.http_server.reading import RequestReader, SlowReads
from systemd_llm_switch.http_server.request import ServedRequest

LIMIT = 1000
# What both must agree on.
UNDERSTOOD = (
    "ready", "method", "uri", "path", "qs", "request_protocol", "response_protocol", "close_connection",
    "chunked_read", "inheaders",
)  # fmt: skip
FEW_BYTES = st.text("ab/.%?#_-~ \t\r\n:;=\0\x0b\x7f\xe9", max_size=12)
NAMES = st.sampled_from(
    ["Host", "host", "Content-Length", "Content-Type", "Connection", "Transfer-Encoding", "Expect", "X-a", "X_a", "Te",
     "X a", "Accept", "accept", ""]
)  # fmt: skip
VALUES = st.sampled_from(
    ["", " 5", " 5 ", "0", " 12, 12", " +5", " 1001", "close", " close", " Close", " keep-alive", "\tx", " x y ",
     " a:b", " chunked", " gzip", " 100-continue", " é", " a\rb", " a\x0bb", "\x0b7"]
) | FEW_BYTES  # fmt: skip
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=5)
LINES = st.sampled_from(
    ["POST /v1/chat/completions HTTP/1.1", "GET /health HTTP/1.1", "POST /a?b=c HTTP/1.1", "POST /a%2Fb HTTP/1.1",
     "POST //a/b HTTP/1.1", "POST /a/ HTTP/1.1", "POST / HTTP/1.1", "POST /a HTTP/1.0", "POST /a HTTP/2.0",
     "post /a HTTP/1.1", "POST  /a HTTP/1.1", "POST http://h/a HTTP/1.1", "HEAD /a HTTP/1.1", "POST /a/../b HTTP/1.1"]
) | st.builds("POST /{} HTTP/1.1".format, FEW_BYTES)  # fmt: skip


class Told(Exception):
    """cheroot's parser refused it."""


@contextlib.contextmanager
def arrived(data: bytes) -> Iterator[Any]:
    """A connection on which these bytes came."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        yield SimpleNamespace(rfile=RequestReader(ours, 5), wfile=SimpleNamespace(write=len), socket=ours)


def read(kind: type[HTTPRequest], data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """What a parser understood, and the bytes after the head; None where it refused."""

    class Reading(kind):  # type: ignore[misc, valid-type]
        def simple_response(self, status: str, msg: str = "") -> None:
            raise Told

    server = SimpleNamespace(
        max_request_header_size=1 << 16, max_request_body_size=LIMIT, protocol="HTTP/1.1", ssl_adapter=None,
        slow_reads=SlowReads(1),
    )  # fmt: skip
    with arrived(data) as connection:
        request = Reading(server, connection)
        try:
            request.parse_request()
        except Told:
            return None
        body = getattr(request, "body", b"")  # ours has it already, if it came with the head
        return {name: getattr(request, name) for name in UNDERSTOOD}, body + connection.rfile.read()


@example("POST /a HTTP/1.1", [("Content-Length", " 5")], b"12345")
@example("POST /a HTTP/1.1", [("Content-Length", " 5")], b"12345GET /b HTTP/1.1\r\n\r\n")
@example("POST /a HTTP/1.1", [("Host", "a"), ("host", "b")], b"")
@example("POST /a HTTP/1.1", [("Content-Length", " 5"), ("Content-Length", "0")], b"12345")
@example("POST /a HTTP/1.1", [("Content-Length", "1" * 4301)], b"")
@example("POST /a HTTP/1.1", [("Accept", " a"), ("accept", " b")], b"")
@example("POST /a HTTP/1.1", [("Content-Length", " 1001")], b"")
@example("POST /a HTTP/1.1", [("Content-Length", "0"), ("Transfer-Encoding", " chunked")], b"0\r\n\r\n")
@example("POST /a HTTP/1.1", [("Content-Length", " 5"), ("Expect", " 100-continue")], b"")
@example("GET /a HTTP/1.1", [("Connection", " close")], b"")
@given(LINES, FIELDS, st.sampled_from([b"", b"12345", b"GET /b HTTP/1.1\r\n\r\n"]))
def test_cheroots_parser_would_say_the_same(line: str, fields: list[tuple[str, str]], rest: bytes) -> None:
    head = "".join([f"{line}\r\n", *(f"{name}:{value}\r\n" for name, value in fields), "\r\n"])
    data = head.encode("latin-1") + rest
    theirs = read(HTTPRequest, data)
    ours = read(ServedRequest, data)
    if ours is not None:  # it refuses some more: a method that is none, a length that is no number
        assert ours == theirs


class WithoutCheroots(ServedRequest):
    """Fails where cheroot's parser begins."""

    def read_request_line(self) -> bool:
        pytest.fail("cheroot's parser was asked")


def test_the_usual_head_is_read_without_it() -> None:
    """So what the property above compares are two parsers, not one."""
    data = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a:1\r\nContent-Length:  2 \r\nX-A:\r\n\r\n{}"
    understood, rest = read(WithoutCheroots, data) or ({}, b"")
    assert understood["inheaders"] == {b"Host": b"a:1", b"Content-Length": b"2", b"X-A": b""}
    assert rest == b"{}"


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    proxy = stack.run({"a": stack.standin("a")})
    proxy.chat("a")
    return proxy


def test_requests_that_come_in_one_piece_are_answered_in_turn(proxy: Proxy) -> None:
    """The second is in the buffer already when the first is answered: nothing more comes that could be waited for."""
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=1.5) as sock:
        sock.sendall(request * 3)
        received = b""
        while received.count(b'{"status":"ok"}') < 3 and (piece := sock.recv(65536)):
            received += piece
    assert received.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize(
    ("version", "sent", "told"),
    [
        ("1.1", "", None), ("1.1", "close", "close"), ("1.1", "TE, Close", "close"), ("1.0", "", "close"),
        ("1.0", "Keep-Alive", "Keep-Alive"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("query", ["", "?read=by-cheroot"])
def test_an_answer_says_whether_its_connection_stays(
    proxy: Proxy, query: str, version: str, sent: str, told: str | None
) -> None:
    line = f"Connection: {sent}\r\n" if sent else ""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as sock:
        sock.sendall(f"GET /health{query} HTTP/{version}\r\nHost: localhost\r\n{line}\r\n".encode())
        reply = http.client.HTTPResponse(sock)
        reply.begin()
        assert reply.read() == b'{"status":"ok"}'
        assert reply.getheader("Connection") == told
        assert reply.getheader("Server") == "systemd-llm-switch"
        assert abs(parsedate_to_datetime(reply.getheader("Date", "")).timestamp() - time.time()) < 5
        if told == "close":
            assert sock.recv(1) == b""


def test_the_last_answer_of_a_proxy_that_ends_says_so(proxy: Proxy, stack: Stack) -> None:
    """Its client need not find out by sending the next request."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(chat("a", standin={"delay_s": 1})))
        wait_for(lambda: stack.seen()["running"] == 1)
        proxy.process.send_signal(signal.SIGTERM)
        reply = connection.getresponse()
        assert (reply.status, reply.getheader("Connection")) == (200, "close")


def test_a_stream_to_an_old_client_ends_with_its_connection(proxy: Proxy) -> None:
    """HTTP/1.0 knows no chunks, and of a stream that has begun nobody knows the length."""
    body = b'{"model": "a", "stream": true, "messages": [], "standin": {"delay_s": 2.5}}'
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        received = b""
        while piece := sock.recv(65536):
            received += piece
    head, _, events = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"Connection: close" in head
    assert events.startswith(b": keep-alive\n\n")
    assert events.endswith(b"data: [DONE]\n\n")
