"""Requests on a connection: one after the other, in pieces, from old clients, and while the proxy ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import time
from email.utils import parsedate_to_datetime

import pytest

from support.stack import Proxy, Stack, chat, wait_for


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
def test_an_answer_says_whether_its_connection_stays(proxy: Proxy, version: str, sent: str, told: str | None) -> None:
    line = f"Connection: {sent}\r\n" if sent else ""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as sock:
        sock.sendall(f"GET /health HTTP/{version}\r\nHost: localhost\r\n{line}\r\n".encode())
        reply = http.client.HTTPResponse(sock)
        reply.begin()
        assert reply.read() == b'{"status":"ok"}'
        assert reply.getheader("Connection") == told
        assert reply.getheader("Server") == "systemd-llm-switch"
        assert abs(parsedate_to_datetime(reply.getheader("Date", "")).timestamp() - time.time()) < 5
        if told == "close":
            assert sock.recv(1) == b""


def test_every_refusal_reaches_a_client_that_still_sends(stack: Stack) -> None:
    """A reset would throw it away. Few threads may wait for such clients, and each of them comes free again."""
    proxy = stack.run({"a": stack.standin("a")}, max_body_mb=0.1)
    for _ in range(12):
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as sock:
            sock.sendall(b"POST /api/load HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n\r\n")
            sock.sendall(b" " * 3_000_000)
            reply = http.client.HTTPResponse(sock)
            reply.begin()
            assert (reply.status, json.loads(reply.read())["error"]["code"]) == (413, "request_too_large")


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
