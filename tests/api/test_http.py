"""The contract over HTTP: every route, error and header, as a client on the wire sees them."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.stack import Answer, Proxy, Stack, chat, wait_for
from systemd_llm_switch.setup.user_manager import UserManager

CHAT = "/v1/chat/completions"
FORWARDED = (CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank")
LIMIT = 1_000_000  # bytes of a body, as this module's config has it
SLOW_S = 30  # how long the server lets a sender pause


class Wire:
    """One connection, byte by byte."""

    def __init__(self, proxy: Proxy) -> None:
        self.sock = socket.create_connection(("127.0.0.1", proxy.port), timeout=60)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(self, method: str, path: str, body: bytes = b"", *headers: str) -> None:
        sized = [f"Content-Length: {len(body)}"] if body and "Transfer-Encoding: chunked" not in headers else []
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *sized, *headers, "", ""]
        self.send("\r\n".join(lines).encode() + body)

    def head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers of the next answer."""
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 "), f"no answer: {line!r}"
        headers = {}
        while (header := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode().partition(":")
            headers[name.lower()] = value.strip()
        return int(line.split()[1]), headers

    def answer(self, method: str = "GET") -> Answer:
        """The next answer, whole."""
        status, headers = self.head()
        if method == "HEAD" or status < 200:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, b"".join(chunk for _, chunk in self.chunks()))
        length = headers.get("content-length")
        return Answer(status, headers, self.file.read(int(length)) if length else self.file.read())

    def chunks(self) -> Iterator[tuple[float, bytes]]:
        """The chunks of a body, each with the seconds since the first call."""
        began = time.monotonic()
        while size := int(self.file.readline(), 16):
            yield time.monotonic() - began, self.file.read(size)
            self.file.read(2)
        self.file.readline()

    def is_closed(self) -> bool:
        """Whether the server ends the connection, with nothing more to say."""
        self.sock.settimeout(5)
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def is_in_step(self) -> bool:
        """Whether the next request is read as one."""
        self.request("GET", "/health")
        answer = self.answer()
        return (answer.status, answer.json) == (200, {"status": "ok"})


@pytest.fixture(scope="module")
def stack(manager: UserManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One for all tests here: none of them needs a proxy of its own."""
    stack = Stack(manager.env, tmp_path_factory.mktemp("http"), "http")
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def proxy(stack: Stack) -> Proxy:
    unit = stack.standin("a")
    models = {
        "a": {"unit": unit, "aliases": ["gpt-4o"]},
        "org/name": unit,
        "broken": stack.standin("broken", "--exit", "3"),
        "late": stack.standin("late", "--exit", "3", "--load-s", "2.5"),
    }
    return stack.run(models, max_body_mb=LIMIT / 1e6)


@pytest.fixture(scope="module")
def slow_senders(proxy: Proxy) -> Iterator[list[Wire]]:
    """Who stops in the middle: of the request line, of a body, of a chunked body. Begun before all other tests."""
    begun = (
        b"POST /v1/chat/comple",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    )
    wires = [Wire(proxy) for _ in begun]
    for wire, data in zip(wires, begun, strict=True):
        wire.send(data)
    yield wires
    for wire in wires:
        wire.__exit__()


@pytest.fixture(autouse=True, scope="module")
def _begin_slowly(slow_senders: list[Wire]) -> None:
    """The slow senders' time runs from the first test on."""


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1", "/v1/nope", "/v1/models/", "/static", "/docs", "/%ff%fe", "/..%2f"])
def test_an_unknown_path_is_a_404_that_lists_the_routes(proxy: Proxy, path: str) -> None:
    answer = proxy.get(path)
    assert answer.status == 404
    assert (answer.error["type"], answer.error["code"]) == ("invalid_request_error", "unknown_url")
    for route in (*FORWARDED, "/v1/models", "/health", "/api/status", "/api/load", "/api/unload"):
        assert route in answer.error["message"]


def test_an_unknown_path_suggests_what_was_meant(proxy: Proxy) -> None:
    """Most often the base URL has /v1 twice. A path that is like no route gets no suggestion."""
    for path, meant in (("/v1/chat/completion", CHAT), ("/v1/v1/models", "/v1/models"), ("/api/holt", "/api/hold")):
        assert f"; did you mean {meant}? " in proxy.post(path, {}).error["message"]
    assert "did you mean" not in proxy.post("/api/chat", {}).error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *(("GET", path, "POST") for path in (*FORWARDED, "/api/load", "/api/unload")),
        *(("POST", path, "GET") for path in ("/v1/models", "/models", "/v1/models/a", "/health", "/api/status")),
        *((method, CHAT, "POST") for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "BREW")),
    ],
)
def test_a_wrong_method_is_a_405_that_allows_the_right_one(proxy: Proxy, method: str, path: str, allowed: str) -> None:
    answer = proxy.request(method, path, b"{}")
    assert answer.status == 405
    assert answer.headers["allow"] == allowed
    assert (answer.error["type"], answer.error["code"]) == ("invalid_request_error", "method_not_allowed")


NO_JSON = {
    "empty": b"", "blank": b" \r\n", "cut": b'{"model": "a"', "text": b"model=a", "nan": b'{"model": "a", "x": NaN}',
    "infinity": b'{"model": "a", "x": -Infinity}', "trailing": b'{"model": "a"} x', "comma": b'{"model": "a",}',
    "latin-1": '{"model": "a", "x": "\xe9"}'.encode("latin-1"), "control": b'{"model": "a", "x": "\n"}',
    "utf-16": '{"model": "a"}'.encode("utf-16"), "surrogate": b'{"model": "a", "x": "\xed\xa0\x80"}',
    "deep": b'{"model": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_JSON)
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
def test_an_invalid_body_is_a_400_invalid_json(proxy: Proxy, path: str, kind: str) -> None:
    """Also what is JSON only for Python; nothing of it may reach a backend, which reads more strictly."""
    answer = proxy.post(path, NO_JSON[kind])
    assert answer.status == 400
    assert (answer.error["type"], answer.error["code"]) == ("invalid_request_error", "invalid_json")
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize("stream", [False, True])
def test_no_depth_of_nesting_breaks_the_proxy(proxy: Proxy, stream: bool) -> None:
    """Neither at the depth that can just be read, nor at the one that can just not be written; a 500 would be a fault
    of ours."""
    for depth in range(900, 1000):
        nested = b"[" * depth + b"]" * depth
        body = b'{"model": "a", "stream": %s, "x": %s}' % (encode(stream), nested)
        assert proxy.post(CHAT, body).status in (200, 400), depth


@pytest.mark.parametrize("path", FORWARDED)
@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ([], 400, "invalid_request", None),
        ("a", 400, "invalid_request", None),
        (None, 400, "invalid_request", None),
        ({}, 400, "missing_model", "model"),
        ({"model": None}, 400, "missing_model", "model"),
        ({"model": ""}, 400, "missing_model", "model"),
        ({"model": 5}, 400, "invalid_request", "model"),
        ({"model": ["a"]}, 400, "invalid_request", "model"),
        ({"model": "a", "stream": "true"}, 400, "invalid_request", "stream"),
        ({"model": "a", "stream": 1}, 400, "invalid_request", "stream"),
        ({"model": "nope"}, 404, "model_not_found", "model"),
        ({"model": "AA"}, 404, "model_not_found", "model"),
    ],
)
def test_a_wrong_request_is_reported_with_its_code_and_field(
    proxy: Proxy, path: str, body: object, status: int, code: str, param: str | None
) -> None:
    answer = proxy.post(path, encode(body))
    error = answer.error
    assert (answer.status, error["type"], error["code"], error["param"]) == (
        status, "invalid_request_error", code, param,
    )  # fmt: skip
    if param == "model" and code != "invalid_request":
        assert all(name in error["message"] for name in ("a", "org/name", "broken"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_quick_error_has_its_own_status_for_a_stream_too(proxy: Proxy, stream: bool) -> None:
    """It is not hidden in a 200, as long as the client has heard nothing."""
    assert proxy.chat("nope", stream=stream).status == 404
    assert proxy.chat("a", stream=stream, standin={"status": 422}).status == 422
    # On a busy machine, the first starts may fail so late that the client had to be sent a sign of life. After three
    # failures, the next is refused at once.
    answers = (proxy.chat("broken", stream=stream) for _ in range(4))
    failed = next(answer for answer in answers if not answer.body.startswith(b":"))
    assert (failed.status, failed.error["code"], failed.error["type"]) == (503, "model_start_failed", "server_error")
    assert failed.headers["x-should-retry"] == "false"


def test_errors_of_load_and_unload(proxy: Proxy) -> None:
    cases = [
        ("/api/load", b"", 400, "missing_model"),
        ("/api/load", b"{}", 400, "missing_model"),
        ("/api/load", b"{", 400, "invalid_json"),
        ("/api/load", b"[]", 400, "invalid_request"),
        ("/api/load", b'{"model": 5}', 400, "invalid_request"),
        ("/api/load", b'{"model": "nope"}', 404, "model_not_found"),
        ("/api/load", b'{"model": "broken"}', 503, "model_start_failed"),
        ("/api/unload", b"{", 400, "invalid_json"),
        ("/api/unload", b'{"model": "nope"}', 404, "model_not_found"),
        ("/api/unload", b'{"model": ""}', 400, "missing_model"),
        ("/api/unload", b'{"model": 5}', 400, "invalid_request"),
        ("/api/unload", b'{"force": "yes"}', 400, "invalid_request"),
        ("/api/unload", b'{"modle": "a"}', 400, "invalid_request"),
        ("/api/load", b'{"model": "a", "force": true}', 400, "invalid_request"),
        ("/api/release", b'{"model": "a"}', 400, "invalid_request"),
    ]
    for path, body, status, code in cases:
        answer = proxy.post(path, body)
        assert (answer.status, answer.error["code"]) == (status, code), (path, body)


# --- sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/api/load"])
def test_a_too_large_body_is_refused_before_it_is_sent(proxy: Proxy, path: str) -> None:
    """Its Content-Length is enough; the connection ends, since what follows is no request."""
    with Wire(proxy) as wire:
        wire.request("POST", path, b"", f"Content-Length: {LIMIT + 1}")
        answer = wire.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert answer.error["type"] == "invalid_request_error"
        assert "1 MB (server.max_body_mb)" in answer.error["message"]
        assert wire.is_closed()


@pytest.mark.parametrize("size", [1000, LIMIT + 1])
def test_a_too_large_chunked_body_is_refused_without_its_end(proxy: Proxy, size: int) -> None:
    """In small chunks, or in one whose size alone is too much."""
    with Wire(proxy) as wire:
        wire.request("POST", CHAT, b"", "Transfer-Encoding: chunked")
        if size > LIMIT:
            wire.send(b"%x\r\n" % size)
        else:
            wire.send(chunked(*[b" " * size] * (LIMIT // size + 1)))
        answer = wire.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert wire.is_closed()


@pytest.mark.parametrize("kind", ["extensions", "trailers"])
def test_chunk_extensions_and_trailers_are_bounded_too(proxy: Proxy, kind: str) -> None:
    """Nobody reads the extensions of chunks, nor their trailers; they may not go on for ever."""
    line = b"1;" + b"x" * 8000 + b"\r\n \r\n" if kind == "extensions" else b"X: " + b"x" * 8000 + b"\r\n"
    with Wire(proxy) as wire:
        wire.request("POST", CHAT, b"", "Transfer-Encoding: chunked")
        wire.send((b"0\r\n" if kind == "trailers" else b"") + line * 9)
        answer = wire.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_a_body_of_exactly_the_limit_is_taken(proxy: Proxy) -> None:
    body = encode(chat("a"))
    assert proxy.post(CHAT, body + b" " * (LIMIT - len(body))).status == 200
    assert proxy.post(CHAT, body + b" " * (LIMIT - len(body) + 1)).status == 413


# --- the wire ---------------------------------------------------------------------------------------

MALFORMED = {
    "no method": (b"\r\n\r\nx\r\n\r\n", 400),
    "no target": (b"GET\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "small letters": (b"get /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "no slash": (b"GET health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "fragment": (b"GET /health#x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "line feeds": (b"GET /health HTTP/1.1\nHost: localhost\n\n", 400),
    "header": (b"GET /health HTTP/1.1\r\nHost localhost\r\n\r\n", 400),
    "long target": (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    "long header": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 413),
    "length": (b"POST /api/load HTTP/1.1\r\nHost: localhost\r\nContent-Length: five\r\n\r\n", 400),
    "negative length": (b"POST /api/load HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400),
    "signed length": (b"POST /api/load HTTP/1.1\r\nHost: localhost\r\nContent-Length: +2\r\n\r\n{}", 400),
    "encoding": (b"POST /api/load HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "chunk": (b"POST /api/load HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "negative chunk": (b"POST /api/load HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
    "signed chunk": (b"POST /api/load HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\n{}", 400),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_invalid_http_is_refused_in_openais_shape(proxy: Proxy, kind: str) -> None:
    """With an answer and the end of the connection: where the next request would begin, nobody knows."""
    data, status = MALFORMED[kind]
    with Wire(proxy) as wire:
        wire.send(data)
        answer = wire.answer()
        assert answer.status == status
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        assert answer.error["type"] == "invalid_request_error"
        assert wire.is_closed()


def test_a_connection_serves_many_requests_errors_among_them(proxy: Proxy) -> None:
    with Wire(proxy) as wire:
        for number in range(25):
            wire.request("POST", CHAT, encode(chat("a", str(number))))
            assert wire.answer().text == "hello from a"
            wire.request("POST", CHAT, encode(chat("nope")))
            assert wire.answer().status == 404
            wire.request("POST", "/nope", b"x" * 1000)
            assert wire.answer().status == 404
            wire.request("POST", CHAT, encode(chat("a", stream=True)))
            assert wire.answer().events[-1] == "[DONE]"
        assert wire.is_in_step()


def test_requests_sent_at_once_are_answered_in_order(proxy: Proxy) -> None:
    with Wire(proxy) as wire:
        wire.request("POST", CHAT, encode(chat("a")))
        wire.request("GET", "/nope")
        wire.request("GET", "/v1/models/a")
        assert [wire.answer().status for _ in range(3)] == [200, 404, 200]


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/v1/models", 200), ("/v1/models/a", 200), ("/nope", 404), (CHAT, 405)]
)
def test_head_has_the_headers_and_no_body(proxy: Proxy, path: str, status: int) -> None:
    """The connection stays in step."""
    with Wire(proxy) as wire:
        wire.request("HEAD", path)
        answer = wire.answer("HEAD")
        assert answer.status == status
        assert int(answer.headers["content-length"]) > 0
        assert wire.is_in_step()


def test_a_client_may_ask_before_it_sends_a_body(proxy: Proxy) -> None:
    """`Expect: 100-continue`, curl's habit with bodies above 1 MiB."""
    body = encode(chat("a"))
    with Wire(proxy) as wire:
        wire.request("POST", CHAT, b"", "Expect: 100-continue", f"Content-Length: {len(body)}")
        assert wire.answer().status == 100
        wire.send(body)
        assert wire.answer().text == "hello from a"
        assert wire.is_in_step()
        wire.request("POST", CHAT, b"", "Expect: 100-continue", f"Content-Length: {LIMIT + 1}")
        assert wire.answer().status == 413


def test_a_chunked_body_is_read_like_any_other(proxy: Proxy) -> None:
    body = encode(chat("a"))
    with Wire(proxy) as wire:
        wire.request("POST", CHAT, chunked(body[:10], body[10:]) + b"0\r\n\r\n", "Transfer-Encoding: chunked")
        assert wire.answer().text == "hello from a"


@pytest.mark.parametrize(
    ("path", "end"), [("/nope", b"0\r\n\r\n"), ("/v1/models", b"0\r\n\r\n"), (CHAT, b"0\r\nX-Trailer: 1\r\n\r\n")]
)
def test_a_chunked_body_is_never_taken_for_the_next_request(proxy: Proxy, path: str, end: bytes) -> None:
    """Nor what follows its end: after the answer the connection is in step, or closed."""
    smuggled = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Wire(proxy) as wire:
        wire.request("POST", path, chunked(smuggled) + end, "Transfer-Encoding: chunked")
        answer = wire.answer()
        assert answer.status in (400, 404, 405)
        assert answer.headers.get("connection") == "close" or wire.is_in_step()


def test_an_http_1_0_client_is_served(proxy: Proxy) -> None:
    """It knows no chunks: the end of the connection is the end of the answer."""
    for body in (encode(chat("a")), encode(chat("a", stream=True, standin={"delay_s": 2.2}))):
        with Wire(proxy) as wire:
            wire.send(b"POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body))
            answer = wire.answer()
            assert answer.status == 200
            assert "transfer-encoding" not in answer.headers
            assert b"hello from a" in answer.body
            assert wire.is_closed()


def test_a_path_cannot_write_lines_into_the_journal(proxy: Proxy) -> None:
    proxy.get("/x%0arequest%20model=forged%0d")
    wait_for(lambda: "model=forged" in proxy.log)
    assert not [line for line in proxy.log.splitlines() if line.startswith("request model=forged")]


# --- what is forwarded ------------------------------------------------------------------------------


def last_request(stack: Stack) -> tuple[dict[str, Any], dict[str, str]]:
    """The body and the headers of the last request that a stand-in saw."""
    seen = stack.seen()
    return seen["bodies"][-1], {name.lower(): value for name, value in seen["headers"][-1].items()}


def test_a_request_is_forwarded_byte_for_byte(proxy: Proxy, stack: Stack) -> None:
    """Nothing is parsed and written again that need not be: blanks, escapes and doubled keys stay. `stream` is set."""
    body = b'{"model" : "a",  "caf\\u00e9": 1.50, "x":1, "x":2, "big": 123456789012345678901234567890}\n'
    assert proxy.post(CHAT, body).status == 200
    seen, headers = last_request(stack)
    assert headers["content-length"] == str(len(body) + len(b'"stream":false,'))
    assert seen == {**json.loads(body), "stream": False}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_stream_is_not_asked_of_the_backend(proxy: Proxy, stack: Stack, path: str) -> None:
    """`stream` is forced to false and `stream_options` dropped; every other field passes, known or not."""
    fields: dict[str, Any] = {
        "temperature": 0.1, "cache_prompt": True, "grammar": 'root ::= "é😀"', "seed": 2**63,
        "logit_bias": {"15": -1e22}, "nested": [{"deep": [None]}], "stream_option": 1,
    }  # fmt: skip
    sent = {**chat("a"), **fields, "stream": True, "stream_options": {"include_usage": True}}
    assert proxy.post(path, sent).events[-1] == "[DONE]"
    assert last_request(stack)[0] == {**chat("a"), **fields, "stream": False}


def test_stream_options_never_reach_the_backend(proxy: Proxy, stack: Stack) -> None:
    """Without a stream a backend may refuse them."""
    assert proxy.chat("a", stream_options={"include_usage": True}).status == 200
    assert "stream_options" not in last_request(stack)[0]


def test_the_clients_headers_stay_here(proxy: Proxy, stack: Stack) -> None:
    """Keys and cookies are the proxy's business; llama-server wants to read JSON, whatever the client calls it."""
    headers = {"Authorization": "Bearer sk-1", "Cookie": "a=b", "X-Api-Key": "sk-2", "Content-Type": "text/plain"}
    assert proxy.post(CHAT, chat("a"), headers=headers).status == 200
    seen = last_request(stack)[1]
    assert set(seen) == {"host", "content-type", "content-length"}
    assert seen["content-type"] == "application/json"


# --- what comes back --------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}


def call_with(arguments: str) -> dict[str, Any]:
    function = {"name": "read", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


def test_a_sound_reply_is_the_backends_own_bytes(proxy: Proxy) -> None:
    message = '{"role":"assistant","content":"caf\\u00e9 {\\"a\\": 1,}"}'
    raw = '{ "choices":[ {"message":' + message + ', "finish_reason":"stop"} ]}\n'
    answer = proxy.chat("a", tools=[TOOL], standin={"raw": raw})
    assert answer.body == raw.encode()
    assert "x-llm-switch-repaired" not in answer.headers
    sound = proxy.chat("a", tools=[TOOL], standin={"message": call_with('{"a":  1}'), "finish": "tool_calls"})
    assert sound.json["choices"][0]["message"] == call_with('{"a":  1}')
    assert "x-llm-switch-repaired" not in sound.headers


def test_a_repaired_reply_says_so(proxy: Proxy) -> None:
    """In a header, and in the status; the arguments are a string that holds a JSON object."""
    before = sum(proxy.status()["repairs"].values())
    orders = {"message": call_with("{'path': 'a.py',}"), "finish": "tool_calls"}
    answer = proxy.chat("a", tools=[TOOL], standin=orders)
    call = answer.json["choices"][0]["message"]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"path": "a.py"}
    repaired = int(answer.headers["x-llm-switch-repaired"])
    assert repaired >= 1
    wait_for(lambda: sum(proxy.status()["repairs"].values()) == before + repaired)  # counted after the answer
    streamed = proxy.chat("a", tools=[TOOL], stream=True, standin=orders)
    assert streamed.headers["x-llm-switch-repaired"] == str(repaired)


def test_a_malformed_body_is_repaired_as_a_whole(proxy: Proxy) -> None:
    raw = '{"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"},],}'
    answer = proxy.chat("a", standin={"raw": raw})
    assert answer.text == "hi"
    assert answer.headers["x-llm-switch-repaired"] == "1"
    hopeless = proxy.chat("a", standin={"raw": "<html>"})
    assert (hopeless.status, hopeless.error["code"]) == (502, "backend_error")


def test_server_timing_comes_with_the_proxys_own_errors(proxy: Proxy) -> None:
    assert proxy.chat("nope").headers["server-timing"] == "queue;dur=0.0, switch;dur=0.0, backend;dur=0.0"


@pytest.mark.parametrize("orders", [{}, {"status": 400}, {"status": 500}])
@pytest.mark.parametrize("stream", [False, True])
def test_server_timing_comes_with_every_reply_of_a_model(proxy: Proxy, orders: dict[str, Any], stream: bool) -> None:
    answer = proxy.chat("a", stream=stream, standin={"delay_s": 0.05, **orders})
    assert re.fullmatch(r"queue;dur=\d+\.\d, switch;dur=\d+\.\d, backend;dur=\d+\.\d", answer.headers["server-timing"])
    assert answer.timing("backend") >= 50


# --- streams ----------------------------------------------------------------------------------------


def deltas(answer: Answer) -> list[dict[str, Any]]:
    return [event["choices"][0]["delta"] for event in answer.events[:-1] if event["choices"]]


def test_a_stream_sends_one_thing_per_chunk_in_order(proxy: Proxy) -> None:
    """role, reasoning, content, tool calls, finish_reason, [DONE]: some clients read only one thing of a chunk."""
    message = {**call_with('{"a": 1}'), "content": "text", "reasoning_content": "thought"}
    answer = proxy.chat("a", tools=[TOOL], stream=True, standin={"message": message, "finish": "tool_calls"})
    seen = deltas(answer)
    assert [next(iter(delta), None) for delta in seen] == ["role", "reasoning_content", "content", "tool_calls", None]
    assert all(len(delta) <= 1 for delta in seen)
    call = seen[3]["tool_calls"][0]
    assert call == {"index": 0, "id": "1", "type": "function", "function": {"name": "read", "arguments": '{"a": 1}'}}
    reasons = [event["choices"][0]["finish_reason"] for event in answer.events[:-1]]
    assert reasons == [None, None, None, None, "tool_calls"]
    assert answer.events[-1] == "[DONE]"
    assert {event["object"] for event in answer.events[:-1]} == {"chat.completion.chunk"}
    assert {event["id"] for event in answer.events[:-1]} == {"standin-1"}


def test_a_streams_headers(proxy: Proxy) -> None:
    """The request's body decides, never Accept; and nobody on the way may hold it back or compress it."""
    headers = {"Accept": "application/json", "Accept-Encoding": "gzip"}
    for orders in ({}, {"delay_s": 2.2}):
        answer = proxy.post(CHAT, chat("a", stream=True, standin=orders), headers=headers)
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in answer.headers
    plain = proxy.post(CHAT, chat("a"), headers={"Accept": "text/event-stream"})
    assert plain.headers["content-type"] == "application/json; charset=utf-8"


def test_usage_comes_when_asked_for_in_a_last_chunk_of_its_own(proxy: Proxy) -> None:
    without = proxy.chat("a", stream=True)
    assert all("usage" not in event and event["choices"] for event in without.events[:-1])
    for options in ({"include_usage": False}, {}):
        assert all("usage" not in event for event in proxy.chat("a", stream=True, stream_options=options).events[:-1])
    *others, last, done = proxy.chat("a", stream=True, stream_options={"include_usage": True}).events
    assert (last["choices"], last["usage"]["total_tokens"], done) == ([], 8, "[DONE]")
    assert all("usage" not in event for event in others)


def test_a_text_completion_streams_too(proxy: Proxy) -> None:
    answer = proxy.post("/v1/completions", {"model": "a", "prompt": "x", "stream": True})
    *chunks, done = answer.events
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "text from a"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert done == "[DONE]"


def test_a_long_wait_is_filled_with_comments(proxy: Proxy) -> None:
    """The first byte after a grace of about 2 s, a comment every 10 s, nothing else but data; then the answer."""
    proxy.chat("a")
    with Wire(proxy) as wire:
        began = time.monotonic()
        wire.request("POST", CHAT, encode(chat("a", stream=True, standin={"delay_s": 13})))
        status, headers = wire.head()
        assert time.monotonic() - began > 1.5
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        chunks = list(wire.chunks())
    comments = [after for after, chunk in chunks if chunk == b": keep-alive\n\n"]
    assert len(comments) == 2
    assert comments[1] - comments[0] > 9
    lines = b"".join(chunk for _, chunk in chunks).split(b"\n")
    assert {line.split(b" ")[0] for line in lines} == {b"", b":", b"data:"}
    assert lines[-3] == b"data: [DONE]"


def late_error(proxy: Proxy, model: str = "a", **orders: Any) -> dict[str, Any]:
    """What a client that waited beyond the grace is told in the stream."""
    answer = proxy.chat(model, stream=True, standin={"delay_s": 2.3, **orders})
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    last = answer.events[-1]
    assert set(last) == {"error"}
    assert set(last["error"]) >= {"message", "type", "param", "code"}
    error: dict[str, Any] = last["error"]
    return error


def test_a_late_error_comes_in_the_stream(proxy: Proxy) -> None:
    """An error object and no choices. One that a retry cannot mend says so in the words that litellm looks for."""
    refused = late_error(proxy, status=400)
    assert refused["message"] == "invalid_request_error: the stand-in says 400"
    assert (refused["type"], refused["code"]) == ("standin_error", 77)
    failed = late_error(proxy, model="late")
    assert failed["message"].startswith("invalid_request_error: model 'late' failed to start")
    assert (failed["type"], failed["code"]) == ("server_error", "model_start_failed")


def test_a_late_error_that_may_pass_is_worth_a_retry(proxy: Proxy) -> None:
    for status in (429, 500, 503):
        assert late_error(proxy, status=status)["message"] == f"the stand-in says {status}"
    crashed = late_error(proxy, crash=7)
    assert crashed["code"] == "backend_crashed"
    assert "invalid_request_error" not in crashed["message"]


# --- models, status, load and unload ----------------------------------------------------------------


def test_the_models_are_listed_as_clients_expect_them(proxy: Proxy) -> None:
    listed = proxy.get("/v1/models").json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["a", "org/name", "broken", "late"]
    for model in listed["data"]:
        assert set(model) == {"id", "object", "created", "owned_by", "aliases", "status"}
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
        assert model["status"]["value"] in ("loaded", "loading", "unloaded")
    assert proxy.get("/models").json == listed


@pytest.mark.parametrize(
    ("asked", "found"), [("a", "a"), ("gpt-4o", "a"), ("org/name", "org/name"), ("org%2Fname", "org/name")]
)
@pytest.mark.parametrize("prefix", ["/v1", ""])
def test_one_model_is_found_by_id_or_alias(proxy: Proxy, prefix: str, asked: str, found: str) -> None:
    """With a slash in it, too: the openai SDK sends it as %2F."""
    answer = proxy.get(f"{prefix}/models/{asked}")
    assert answer.status == 200
    assert answer.json["id"] == found


@pytest.mark.parametrize("name", ["nope", "a/b", "org", "AA"])
def test_an_unknown_model_of_the_list_is_a_404(proxy: Proxy, name: str) -> None:
    answer = proxy.get(f"/v1/models/{name}")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


def test_the_status_shows_what_is_loaded_and_what_happened(proxy: Proxy, stack: Stack) -> None:
    proxy.chat("broken")
    proxy.chat("a")
    status = proxy.status()
    assert set(status) == {
        *("models", "waiting", "queue", "on_hold", "hold_until", "switches", "contexts", "repairs", "config"),
    }
    assert (status["waiting"], status["on_hold"]) == (0, False)
    assert status["config"] == {"path": str(stack.config_path), "error": None}
    loaded, broken = status["models"]["a"], status["models"]["broken"]
    assert set(loaded) == {
        *("state", "unit", "in_flight", "waiting", "loaded_since", "loading_since", "last_load_s", "last_error"),
        "contexts",
    }
    assert (loaded["state"], loaded["in_flight"], loaded["waiting"]) == ("ready", 0, 0)
    assert loaded["unit"] == f"{stack.prefix}-a.service"
    assert abs(loaded["loaded_since"] - time.time()) < 30
    assert 0 < loaded["last_load_s"] < 30
    assert (broken["state"], broken["loaded_since"]) == ("failed", None)
    assert "exit status 3" in broken["last_error"]
    *_, failed, done = status["switches"]
    assert set(done) == {"at", "from", "to", "stop_ms", "load_ms", "error"}
    assert failed["to"] == "broken"
    assert failed["error"] == broken["last_error"]
    assert done["error"] is None


@pytest.mark.parametrize(("load", "unload"), [("/api/load", "/api/unload"), ("/models/load", "/models/unload")])
def test_a_model_is_loaded_and_unloaded_by_hand(proxy: Proxy, load: str, unload: str) -> None:
    """Also as Open WebUI's llama.cpp management asks for it."""
    loaded = proxy.post(load, {"model": "gpt-4o"})
    assert loaded.status == 200
    assert (loaded.json["success"], loaded.json["model"], loaded.json["state"]) == (True, "a", "ready")
    assert proxy.get("/v1/models/a").json["status"]["value"] == "loaded"
    unloaded = proxy.post(unload, {"model": "a"})
    assert (unloaded.status, unloaded.json["success"]) == (200, True)
    assert proxy.get("/v1/models/a").json["status"]["value"] == "unloaded"


def test_unload_returns_what_it_unloaded(proxy: Proxy) -> None:
    """Not all that there is; of models that share a unit, each."""
    proxy.post("/api/load", {"model": "a"})
    assert proxy.post("/api/unload", {}).json == {"success": True, "models": ["a", "org/name"]}
    assert proxy.post("/api/unload", {}).json == {"success": True, "models": []}


def test_llama_servers_own_routes_take_more_than_we_know(proxy: Proxy) -> None:
    """A client that manages its router may send what we do not understand."""
    for path in ("/models/load", "/models/unload"):
        assert proxy.post(path, {"model": "a", "extra_args": ["--jinja"]}).status == 200


# --- last, since it takes the longest ---------------------------------------------------------------


def test_a_slow_sender_is_a_408(proxy: Proxy, slow_senders: list[Wire]) -> None:
    """In the middle of whatever; it is told so, in the journal without a traceback, and the connection ends."""
    for wire in slow_senders:
        wire.sock.settimeout(SLOW_S + 10)
        answer = wire.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert wire.is_closed()
    assert "Traceback" not in proxy.log


# --- foreign text -----------------------------------------------------------------------------------

LONG = "x\n\x1b[2Jrequest model=FORGED" + "y" * 60_000
FOREIGN = {
    "model": ("POST", CHAT, encode({"model": LONG}), ()),
    "key of an order": ("POST", "/api/load", encode({LONG: 1}), ()),
    "origin": ("GET", "/v1/models", b"", (f"Origin: {'o' * 60_000}",)),
    "host": ("GET", "/v1/models", b"", (f"Host: {'h' * 60_000}",)),
    "path": ("GET", "/%0arequest" + "p" * 60_000, b"", ()),
    "model in a path": ("GET", "/v1/models/%0arequest" + "p" * 60_000, b"", ()),
    "upstream": ("GET", "/upstream/%0arequest" + "p" * 60_000, b"", ()),
    "method": ("X" * 60_000, "/v1/models", b"", ()),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_text_is_cut_in_the_answer_and_in_the_log(proxy: Proxy, kind: str) -> None:
    """What a client sent is named in an error, but neither whole nor raw; and it begins no line of the log."""
    method, path, body, headers = FOREIGN[kind]
    logged = len(proxy.log)
    with Wire(proxy) as wire:
        has_host = any(header.startswith("Host:") for header in headers)
        lines = [f"{method} {path} HTTP/1.1", *([] if has_host else ["Host: localhost"]), *headers]
        wire.send("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        answer = wire.answer()
    assert 400 <= answer.status < 500
    assert len(answer.body) < 2_500
    assert answer.error["message"].isprintable()
    lines = proxy.log[logged:].splitlines()
    assert not [line for line in lines if line.startswith("request model=FORGED")]
    assert all(len(line.encode()) < 2_000 for line in lines)


def test_an_error_of_a_backend_is_cut(proxy: Proxy) -> None:
    answer = proxy.chat("a", standin={"status": 422, "raw": json.dumps({"error": {"message": "e" * 50_000}})})
    assert answer.status == 422
    assert len(answer.body) < 5_000
    assert answer.error["message"].startswith("eee")
