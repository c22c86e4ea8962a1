"""Whatever arrives, and whatever a backend replies: a documented answer, soon, and the server lives.

More, and other ones each time: FUZZ_EXAMPLES=5000 pytest tests/product/test_fuzz.py
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.stack import Proxy, Stack
from systemd_llm_switch import errors
from systemd_llm_switch.openai.endpoints import FORWARDED
from systemd_llm_switch.setup.user_manager import UserManager

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
HANGS_AFTER_S = 15  # a head may take 10 s to come


Test = TypeVar("Test", bound=Callable[..., None])


def tried(examples: int) -> Callable[[Test], Test]:
    """The same examples each time, unless more are asked for."""
    return settings(
        max_examples=EXAMPLES or examples, derandomize=not EXAMPLES, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def _documented(root: type[errors.ProxyError]) -> Iterator[tuple[int, str]]:
    yield root.status, root.code
    for child in root.__subclasses__():
        yield from _documented(child)


# HTTP's own, for what no client of this proxy sends: too long a target, an unknown coding or version.
OF_HTTP = {(status, "invalid_request") for status in (414, 415, 501, 505)}
DOCUMENTED = set(_documented(errors.ProxyError)) - {(500, "internal_error")} | OF_HTTP


@pytest.fixture(scope="module")
def proxy(manager: UserManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """One proxy for all examples, with a model in each way of streaming."""
    stack = Stack(manager.env, tmp_path_factory.mktemp("fuzz"), "fuzz")
    unit = stack.standin("a")
    models = {
        "a": {"unit": unit, "aliases": ["x/y", "ü"]},
        "live": {"unit": unit, "streaming": "live"},
        "none": "no-such-unit.service",
    }
    proxy = stack.run(models, max_body_mb=0.05)
    try:
        yield proxy
        proxy.post("/api/release", {})
        assert proxy.chat("a").text == "hello from a"
        assert proxy.stop() == 0
        assert "Traceback" not in proxy.log
    finally:
        stack.close()


class _Received(io.BytesIO):
    """Bytes as a socket, for http.client's parser."""

    def makefile(self, *_: object) -> io.BytesIO:
        return self


def send(proxy: Proxy, data: bytes) -> bytes:
    """All that comes back until the server closes the connection; TimeoutError if it does not."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=HANGS_AFTER_S) as sock:
        received = b""
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(1 << 20):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass  # it was refused before it was all sent
        return received


def check(proxy: Proxy, received: bytes, method: str) -> int:
    """The status of the first answer, which must be documented; 0 if there is none."""
    assert b"Traceback" not in received
    assert proxy.get("/health").status == 200
    if not received:
        return 0
    reply = http.client.HTTPResponse(_Received(received), method=method)  # type: ignore[arg-type]
    reply.begin()
    body = reply.read()
    if reply.status >= 400 and method != "HEAD":
        _check_error(reply.status, json.loads(body))
    return reply.status


def _check_error(status: int, body: Any) -> None:
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert (status, error["code"]) in DOCUMENTED, (status, error)
    assert isinstance(error["message"], str)


# --- requests as bytes ----------------------------------------------------------------------------------

METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "BREW")
ROUTES = (
    *FORWARDED, "/v1/models", "/models", "/v1/models/a", "/health", "/api/status", "/api/load", "/api/unload",
    "/models/load", "/models/unload", "/api/hold", "/api/release", "/upstream/a/props", "/upstream/x/y/slots", "/",
)  # fmt: skip
odd_bytes = st.binary(max_size=30)
pieces = st.sampled_from(
    [b"GET ", b"POST ", b"/health", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/9.9", b"\r\n", b"\n", b"\r", b": ", b"\0",
     b" ", b"\t", b"Host: localhost", b"Content-Length: ", b"5", b"-1", b"99999999999999999999",
     b"Transfer-Encoding: chunked", b"0\r\n\r\n", b"ffffffff\r\n",
     b"Connection: close", b"Expect: 100-continue", b"{}", b"\xff\xfe", b"http://x/",
     b"/v1/chat/completions", b'{"model": "a"}', b"A" * 9000, b";", b"%", b"%ff", b"#", b"?", b"*", b"//", b"\\"]
)  # fmt: skip

SOUND = (
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 31\r\n\r\n"
    b'{"model":"none", "messages":[]}',
    b"POST /api/load HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5;x=y\r\n{"mod\r\n9\r\nel":"none"\r\n1\r\n}\r\n0\r\nX: y\r\n\r\n',
)


def _edited(edits: tuple[bytes, list[tuple[float, int, bytes]]]) -> bytes:
    """A sound request with some places overwritten."""
    data, changes = edits
    for place, length, piece in changes:
        at = int(place * len(data))
        data = data[:at] + piece + data[at + length :]
    return data


changes = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), pieces | odd_bytes), min_size=1, max_size=3)


@tried(1000)
@given(
    st.lists(pieces | odd_bytes, max_size=14).map(b"".join) | st.tuples(st.sampled_from(SOUND), changes).map(_edited)
)
@example(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n")
@example(b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n")
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS
@example(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
def test_no_bytes_break_the_server(proxy: Proxy, data: bytes) -> None:
    """Whatever is sent instead of a request is refused in OpenAI's shape, or the connection ends."""
    check(proxy, send(proxy, data), data.partition(b" ")[0].decode("latin-1"))


@tried(1000)
@given(
    method=st.sampled_from(METHODS),
    route=st.sampled_from(ROUTES),
    suffix=st.sampled_from(
        ["", "/", "//", "/..", "?", "?a=b", "?a=%ff&&=", "%2F", "%", "%00", "#x", ";", "/é", "/\xff"])
    | st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f\x85\xa0"), max_size=20),
    headers=st.lists(
        st.tuples(
            st.sampled_from(["Content-Type", "Content-Length", "Accept", "Origin", "Host", "Authorization", "Expect",
                             "Transfer-Encoding", "Connection", "Cookie", "X-Forwarded-For", "Range", "Upgrade",
                             "Access-Control-Request-Headers", "Content-Encoding", "Te", "X_Odd"]),
            st.sampled_from(["", "x", "a, b", "chunked", "gzip", "0", "7", "-7", "1e3", "http://x", "null",
                             "localhost:1", "[::1]:9", "[", "multipart/form-data; boundary=x",
                             "multipart/form-data", "text/\xff",
                             "100-continue", "close", "keep-alive", "Bearer \xff", "bytes=0-"])
            | st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=12),
        ),
        max_size=4,
    ),
    body=st.sampled_from([b"", b"{}", b"[]", b'{"model": "a"}', b'{"model": "none"}', b"\xff", b"null",
                          b'{"model":"live","stream":true}',
                          b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--x--\r\n'])
    | odd_bytes,
)  # fmt: skip
def test_no_odd_request_breaks_the_server(
    proxy: Proxy, method: str, route: str, suffix: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    """Any method, path, headers and body that HTTP's grammar has room for."""
    names = {name.lower() for name, _ in headers}
    lines = [f"{method} {route}{suffix} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    lines += [] if "host" in names else ["Host: localhost"]
    lines += [] if names & {"content-length", "transfer-encoding"} else [f"Content-Length: {len(body)}"]
    check(proxy, send(proxy, "\r\n".join([*lines, "", ""]).encode("latin-1") + body), method)


# --- requests as JSON -----------------------------------------------------------------------------------

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
    | st.sampled_from(["", "a", "user", "tool", "assistant", "{", '{"a": ', "\ud800", "\0", "1e999", "[" * 50])
)  # fmt: skip
names = st.sampled_from(
    ["role", "content", "tool_calls", "function", "arguments", "name", "id", "type", "index", "parameters",
     "properties", "text", "required", "json_schema", "schema", "items", "enum", "tool_call_id", "function_call",
     "include_usage"]
) | st.text(max_size=3)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
functions = st.fixed_dictionaries({}, optional={"name": values, "arguments": values | st.text(max_size=20)})
calls = st.fixed_dictionaries(
    {}, optional={"id": values, "type": values, "index": values, "function": values | functions}
)
messages = st.fixed_dictionaries(
    {}, optional={"role": values, "content": values, "tool_calls": values | st.lists(values | calls, max_size=3),
                  "function_call": values, "reasoning_content": values})  # fmt: skip
tools = st.fixed_dictionaries({}, optional={"type": values, "function": values | st.fixed_dictionaries(
    {}, optional={"name": values, "parameters": values})})  # fmt: skip


@tried(700)
@given(
    path=st.sampled_from([*FORWARDED, "/api/load", "/api/unload", "/api/hold", "/api/release"]),
    body=values
    | st.fixed_dictionaries(
        {"model": st.sampled_from(["a", "live", "x/y"]) | scalars},
        optional={
            "messages": values | st.lists(values | messages, max_size=3),
            "tools": values | st.lists(values | tools, max_size=2),
            "stream": st.booleans() | scalars, "response_format": values, "tool_choice": values, "functions": values,
            "prompt": values, "input": values, "stream_options": values, "force": scalars, "minutes": scalars,
        },
    ),
)  # fmt: skip
def test_no_odd_json_breaks_a_route(proxy: Proxy, path: str, body: Any) -> None:
    """Every field of any type: the route refuses it, or its model answers."""
    data = json.dumps(body).encode()
    status = check(proxy, post(proxy, path, data), "POST")
    assert status != 0
    if path == "/api/hold" and status == 200:
        assert proxy.post("/api/release", {}).status == 200


def post(proxy: Proxy, path: str, body: bytes) -> bytes:
    """The answer as it came, from a connection that stays open meanwhile."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=HANGS_AFTER_S) as sock:
        sock.sendall(head.encode() + body)
        received = b""
        while piece := sock.recv(1 << 20):
            received += piece
        return received


# --- what a backend replies -----------------------------------------------------------------------------

choices = st.fixed_dictionaries(
    {}, optional={"index": values, "message": values | messages, "finish_reason": values, "text": values,
                  "logprobs": values, "delta": values | messages})  # fmt: skip
replies = values | st.fixed_dictionaries(
    {}, optional={"choices": values | st.lists(values | choices, max_size=3), "usage": values, "error": values,
                  "model": values, "id": values})  # fmt: skip


@tried(700)
@given(
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]),
    stream=st.booleans(),
    status=st.sampled_from([200, 200, 200, 400, 500]),
    raw=replies.map(json.dumps) | st.text(max_size=40) | st.just(""),
)
def test_no_odd_reply_of_a_backend_is_the_proxys_own_error(
    proxy: Proxy, path: str, stream: bool, status: int, raw: str
) -> None:
    """It is repaired, passed on, or a 502; in any case in a form that clients can read."""
    body = {"model": "a", "messages": [], "tools": [TOOL], "stream": stream, "standin": {"raw": raw, "status": status}}
    received = post(proxy, path, json.dumps(body | {"stream": stream and path != "/v1/embeddings"}).encode())
    assert b"Traceback" not in received
    reply = http.client.HTTPResponse(_Received(received), method="POST")  # type: ignore[arg-type]
    reply.begin()
    told = reply.read()
    assert reply.status in (status, 502), told
    if reply.status >= 400:
        assert set(json.loads(told)["error"]) >= {"message", "type", "param", "code"}


@tried(400)
@given(deltas=st.lists(values | messages, max_size=4), finish=values)
def test_no_odd_stream_of_a_backend_breaks_the_proxy(proxy: Proxy, deltas: list[Any], finish: Any) -> None:
    """A live stream ends with `[DONE]`, or with an error in OpenAI's shape."""
    orders = {"deltas": deltas, "finish": finish}
    body = {"model": "live", "messages": [], "tools": [TOOL], "stream": True, "standin": orders}
    received = post(proxy, "/v1/chat/completions", json.dumps(body).encode())
    reply = http.client.HTTPResponse(_Received(received))  # type: ignore[arg-type]
    reply.begin()
    told = reply.read()
    if reply.status != 200:
        assert reply.status == 502, told
        return
    events = [line[6:] for line in told.decode().split("\n") if line.startswith("data: ")]
    if events[-1] != "[DONE]":
        error = json.loads(events[-1])["error"]
        assert error["code"] == "backend_error", error


TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


def test_the_examples_left_nothing_behind(proxy: Proxy) -> None:
    """After all of them: nothing waits, nothing runs, and the log tells of no crash."""
    status = proxy.status()
    assert status["waiting"] == 0
    assert all(model["in_flight"] == 0 for model in status["models"].values())
    for word in ("Traceback", "route_crashed", "request_crashed", "connection_lost"):
        assert word not in proxy.log, _around(proxy.log_path, word)


def _around(path: Path, word: str) -> str:
    text = path.read_text()
    return text[max(0, text.index(word) - 500) : text.index(word) + 2500]
