"""Hostile clients, one function each: what they send, and whether what they get is an honest refusal.

Each takes the proxy's port and returns an `Outcome`; AssertionError says that an answer is wrong.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

HOST = b"Host: localhost\r\n"
POST = b"POST /api/load HTTP/1.1\r\n" + HOST
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
FRAMING = {
    "lengths that differ": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "one length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "length and chunks": POST + b"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 7\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked of HTTP/1.0": b"POST /api/load HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "blank before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "folded field": POST + b"Content-Length: 2\r\nX: a\r\n b\r\n\r\n{}",
    "folded first field": b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "NUL": POST + b"X: a\0b\r\n\r\n",
    "bare CR": POST + b"Content-Type: text/x\rX: y\r\n\r\n",
    "bare LF": POST + b"X: a\nContent-Length: 2\r\n\r\n{}",
    "bare LF after the head": b"GET /health HTTP/1.1\r\n" + HOST + b"\n",
    "bare CR in a chunk line": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\r{}\r\n0\r\n\r\n",
    "bare LF in a chunk line": POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
    "control character in a chunk line": POST + b"Transfer-Encoding: chunked\r\n\r\n2;\x01\r\n{}\r\n0\r\n\r\n",
    "data beyond its chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{} \r\n0\r\n\r\n",
    "a length as trailer": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 9\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
}
"""Requests that two servers could read in two ways."""

# What once made regular expressions of the repair stop everybody.
BROKEN_ARGUMENTS = (
    '{"a":1}' + "\n" * 100_000 + '"x',
    "{'a':1}" + "\n" * 32_000 + '"x',
    "[*/“'a'" * 3_000,
    '{"a":' * 20_000,
    "\\" * 50_000,
)
BROKEN_WORDS = (
    "[TOOL_CALLS]f" + "\n" * 20_000 + "x",
    "<tool_call>f<arg_key>" + " " * 50_000,
    "<tool_call>" * 5_000,
    "assistantcommentary to=functions.f" + " " * 50_000,
)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}]
_PATIENCE_S = 60
_HOLDS_S = 20.0


@dataclass(frozen=True)
class Outcome:
    """What a hostile client sent that reached a route of a model, and how often it was refused before that."""

    asked: int = 0
    refused: int = 0


def _connect(port: int, receive_bytes: int = 0) -> socket.socket:
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.settimeout(_PATIENCE_S)
    sock.connect(("127.0.0.1", port))
    return sock


def _answer(sock: socket.socket) -> tuple[int, bytes]:
    reply = HTTPResponse(sock, method="POST")
    reply.begin()
    return reply.status, reply.read()


def _refusal(sock: socket.socket, *statuses: int) -> Outcome:
    """An error of one of these statuses, in OpenAI's shape, that repeats little of what was sent."""
    status, body = _answer(sock)
    assert status in statuses, (status, body[:300])
    assert len(body) < 3_000, len(body)
    assert set(json.loads(body)["error"]) >= {"message", "type", "param", "code"}, body
    return Outcome(refused=1)


def _chat(model: str, messages: list[dict[str, Any]], **fields: Any) -> bytes:
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 8, **fields}).encode()
    return CHAT + b"Content-Length: %d\r\n\r\n" % len(body) + body


def slow_reader(port: int, rng: random.Random, model: str) -> Outcome:
    """Asks a lot and reads nothing."""
    with _connect(port, 2048) as sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.send((b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n") * 200)
        time.sleep(rng.uniform(0, _HOLDS_S))
    return Outcome()


def slow_reader_of_an_answer(port: int, rng: random.Random, model: str) -> Outcome:
    """Has a model say a lot, and reads none of it."""
    words = {"message": {"role": "assistant", "content": "x" * 500_000}}
    with _connect(port, 2048) as sock:
        sock.sendall(_chat(model, [{"role": "user", "content": "x"}], stream=rng.random() < 0.5, standin=words))
        time.sleep(rng.uniform(0, _HOLDS_S))
    return Outcome(asked=1)


def slow_sender(port: int, rng: random.Random, model: str) -> Outcome:
    """A body, byte by byte."""
    with _connect(port) as sock:
        sock.sendall(CHAT + b"Content-Length: 50000\r\n\r\n")
        until = time.monotonic() + rng.uniform(0, _HOLDS_S)
        while time.monotonic() < until:
            try:
                sock.sendall(b" ")
            except OSError:
                return Outcome()
            time.sleep(0.2)
    return Outcome()


def endless_head(port: int, rng: random.Random, model: str) -> Outcome:
    """Fields without an end."""
    with _connect(port) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\n" + HOST)
        field = b"X-%d: " % rng.randrange(1000) + b"y" * rng.randrange(1, 4000) + b"\r\n"
        until = time.monotonic() + _PATIENCE_S
        with contextlib.suppress(OSError):
            while time.monotonic() < until:
                sock.sendall(field)
                time.sleep(0.001)
        assert time.monotonic() < until, "an endless head was read on and on"
    return Outcome()


def huge_origin(port: int, rng: random.Random, model: str) -> Outcome:
    with _connect(port) as sock:
        origin = bytes(rng.choice(b"\xff\x80/:a") for _ in range(500)) * 100
        sock.sendall(b"GET /v1/models HTTP/1.1\r\n" + HOST + b"Origin: " + origin + b"\r\n\r\n")
        return _refusal(sock, 403, 413)


def bad_framing(port: int, rng: random.Random, model: str) -> Outcome:
    with _connect(port) as sock:
        sock.sendall(FRAMING[rng.choice(list(FRAMING))] + b"GET /api/status HTTP/1.1\r\n" + HOST + b"\r\n")
        return _refusal(sock, 400)


def zipped_bomb(port: int, rng: random.Random, model: str) -> Outcome:
    body = gzip.compress(b" " * 100_000_000, 1)
    with _connect(port) as sock:
        fields = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
        with contextlib.suppress(ConnectionError):
            sock.sendall(CHAT + fields + body)
        return _refusal(sock, 413, 429)


def broken_history(port: int, rng: random.Random, model: str) -> Outcome:
    """Replays a call that once stopped everybody."""
    function = {"name": "f", "arguments": rng.choice(BROKEN_ARGUMENTS)}
    call = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    result = {"role": "tool", "tool_call_id": "c", "content": "x"}
    with _connect(port) as sock:
        sock.sendall(_chat(model, [call, result], tools=TOOLS))
        _answer(sock)
    return Outcome(asked=1)


def broken_reply(port: int, rng: random.Random, model: str) -> Outcome:
    """Has a model say what once stopped everybody."""
    message: dict[str, Any] = {"role": "assistant", "content": rng.choice(BROKEN_WORDS)}
    if rng.random() < 0.5:
        function = {"name": "f", "arguments": rng.choice(BROKEN_ARGUMENTS)}
        message = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    orders = {"message": message, "deltas": [message]}
    with _connect(port) as sock:
        user = [{"role": "user", "content": "x"}]
        sock.sendall(_chat(model, user, tools=TOOLS, stream=rng.random() < 0.5, standin=orders))
        _answer(sock)
    return Outcome(asked=1)


def deaf_watcher(port: int, rng: random.Random, model: str) -> Outcome:
    """Watches the events and reads none."""
    with _connect(port, 2048) as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\n" % rng.choice((b"/api/events", b"/api/logs?follow=1")) + HOST + b"\r\n")
        time.sleep(rng.uniform(0, _HOLDS_S))
    return Outcome()


def hang_up(port: int, rng: random.Random, model: str) -> Outcome:
    """Ends at any byte of its request or at any moment after it, with or without a reset."""
    request = _chat(model, [{"role": "user", "content": "x"}], stream=True, standin={"delay_s": rng.uniform(0, 1)})
    count = len(request) if rng.random() < 0.5 else rng.randrange(len(request))
    sock = _connect(port)
    with contextlib.closing(sock):
        sock.sendall(request[:count])
        time.sleep(rng.choice((0.0, rng.uniform(0, 0.02), rng.uniform(0, 2))))
        if rng.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return Outcome(asked=1)


Hostile = Callable[[int, random.Random, str], Outcome]
CLIENTS: dict[str, tuple[Hostile, int]] = {
    client.__name__: (client, weight)
    for client, weight in (
        (slow_reader, 6), (slow_reader_of_an_answer, 6), (slow_sender, 6), (endless_head, 5), (huge_origin, 8),
        (bad_framing, 10), (zipped_bomb, 1), (broken_history, 8), (broken_reply, 8), (deaf_watcher, 5), (hang_up, 20),
    )
}  # fmt: skip
"""Each with how often it comes, beside the others."""
