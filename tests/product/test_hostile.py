"""Hostile clients, byte by byte on a socket: each gets an honest answer within bounds, and all others are served on."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import os
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from support.hostile_clients import FRAMING, HOST, POST
from support.stack import (
    Answer,
    Proxy,
    Stack,
    address_space,
    chat,
    descriptors_of,
    in_background,
    rss_mib,
    run_all,
    wait_for,
)
from systemd_llm_switch.setup.user_manager import UserManager

CHAT = "/v1/chat/completions"
MAX_LINE_BYTES = 2000


@pytest.fixture(scope="module")
def bed(manager: UserManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for the tests that need no proxy of their own."""
    stack = Stack(manager.env, tmp_path_factory.mktemp("hostile"), "hostile")
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def proxy(bed: Stack) -> Proxy:
    unit = bed.standin("a")
    return bed.run({"a": unit, "org/name": unit}, cors_origins=["https://chat.example.org"])


class _Received(io.BytesIO):
    """Bytes as a socket, for http.client's parser."""

    def makefile(self, *_: object) -> io.BytesIO:
        return self


def send(proxy: Proxy, data: bytes) -> tuple[list[Answer], bool]:
    """The answers to these bytes, and whether the server has closed the connection after the last one."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as sock:
        sock.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            sock.settimeout(1.5)  # an answer that keeps its connection ends with a pause
            try:
                while piece := sock.recv(1 << 20):
                    received += piece
                is_closed = True
            except TimeoutError:
                is_closed = False
    return _answers(received), is_closed


def _answers(received: bytes) -> list[Answer]:
    file, answers = _Received(received), []
    while file.tell() < len(received):
        at = file.tell()
        reply = http.client.HTTPResponse(_Received(received[at:]))  # type: ignore[arg-type]
        reply.begin()
        body = reply.read()
        head = received.index(b"\r\n\r\n", at) + 4
        answers.append(Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, body))
        if "content-length" not in answers[-1].headers:
            break
        file.seek(head + len(body))
    return answers


def ask(proxy: Proxy, line: str, *fields: bytes, body: bytes = b"") -> Answer:
    """One answer, to a request of these bytes."""
    data = line.encode("latin-1") + b"\r\n" + HOST + b"".join(it + b"\r\n" for it in fields)
    answers, _ = send(proxy, data + b"Connection: close\r\n\r\n" + body)
    assert len(answers) == 1
    return answers[0]


def post(proxy: Proxy, path: str, body: bytes, *fields: bytes) -> Answer:
    return ask(proxy, f"POST {path} HTTP/1.1", b"Content-Length: %d" % len(body), *fields, body=body)


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


# --- framing ------------------------------------------------------------------------------------------

SMUGGLED = b"GET /api/status HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.mark.parametrize("kind", FRAMING)
def test_a_request_that_two_servers_could_read_in_two_ways_is_refused(proxy: Proxy, kind: str) -> None:
    """And its connection ends: what follows is not read as a request."""
    answers, is_closed = send(proxy, FRAMING[kind] + SMUGGLED)
    assert [answer.status for answer in answers] == [400]
    assert answers[0].error["code"] == "invalid_request"
    assert is_closed


def test_a_body_ends_where_its_chunks_end(proxy: Proxy) -> None:
    """The next request begins with the next byte."""
    data = POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n"
    answers, _ = send(proxy, data + SMUGGLED)
    assert [answer.status for answer in answers] == [400, 200]
    assert answers[0].error["code"] == "missing_model"


# --- targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["http://localhost/v1/models", "HTTP://127.0.0.1:1/v1/models?x=y", "//v1/models", "///v1/models?a=//b",
     "/v1/%6dodels", "/v1%2Fmodels", "/v1/models?"],
)  # fmt: skip
def test_one_route_may_be_written_in_several_ways(proxy: Proxy, target: str) -> None:
    assert ask(proxy, f"GET {target} HTTP/1.1").json["object"] == "list"


def test_an_absolute_target_is_of_its_own_host(proxy: Proxy) -> None:
    """Not of the one in the Host field: a stranger's name stays a stranger's."""
    answer = ask(proxy, "GET http://evil.example/v1/models HTTP/1.1")
    assert (answer.status, answer.error["code"]) == (403, "forbidden_origin")


@pytest.mark.parametrize("target", ["//[::1/health", "/[::1/health", "/v1//models", "/%2e%2e/health", "/v1/models%00"])
def test_an_odd_path_is_an_honest_404(proxy: Proxy, target: str) -> None:
    answer = ask(proxy, f"GET {target} HTTP/1.1")
    assert (answer.status, answer.error["code"]) == (404, "unknown_url")


def test_a_404_suggests_the_route(proxy: Proxy) -> None:
    assert "did you mean /v1/models?" in ask(proxy, "GET /v1//models HTTP/1.1").error["message"]


@pytest.mark.parametrize(
    ("target", "passed_on"),
    [
        ("/upstream/a/lora%252Fx", "/lora%252Fx"), ("/upstream/a/x%2Fy?z=%2F%20", "/x%2Fy?z=%2F%20"),
        ("/upstream/org%2Fname/x%41", "/x%41"), ("/upstream/org/name/x//y", "/x//y"), ("/upstream/a", "/"),
        ("/upstream/a/x;y='z'", "/x;y='z'"), ("//upstream/a/", "/"), ("/%75pstream/a/x%2f", "/x%2f"),
        ("/upstream%2Fa/x", "/x"),
    ],
)  # fmt: skip
def test_a_path_is_passed_on_as_its_bytes_came(proxy: Proxy, target: str, passed_on: str) -> None:
    proxy.chat("a")
    assert ask(proxy, f"GET {target} HTTP/1.1").json["path"] == passed_on


@pytest.mark.parametrize("target", ["/upstream/nope/x", "/upstream/" + "/" * 20_000, "/upstream/org/x" + "%2F" * 9000])
def test_a_path_to_no_model_is_a_404(proxy: Proxy, target: str) -> None:
    answer = ask(proxy, f"GET {target} HTTP/1.1")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


def test_a_query_of_too_many_fields_is_refused(proxy: Proxy) -> None:
    answer = ask(proxy, f"GET /api/requests?{'a=b&' * 17} HTTP/1.1")
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")


# --- bodies -------------------------------------------------------------------------------------------


def test_a_gzip_body_is_read(proxy: Proxy, bed: Stack) -> None:
    assert post(proxy, CHAT, gzip.compress(encode(chat("a", "zipped"))), b"Content-Encoding: gzip").status == 200
    assert bed.seen()["bodies"][-1]["messages"][0]["content"] == "zipped"


def test_a_gzip_bomb_is_refused(proxy: Proxy) -> None:
    answer = post(proxy, CHAT, gzip.compress(bytes(70_000_000)), b"Content-Encoding: gzip")
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_an_unknown_encoding_is_named(proxy: Proxy) -> None:
    answer = post(proxy, CHAT, b"{}", b"Content-Encoding: br")
    assert (answer.status, answer.headers["accept-encoding"]) == (415, "gzip")
    assert "'br'" in answer.error["message"]


@pytest.mark.parametrize("path", [CHAT, "/api/load"])
def test_a_byte_order_mark_is_skipped(proxy: Proxy, path: str) -> None:
    assert post(proxy, path, b"\xef\xbb\xbf" + encode({"model": "a"})).status == 200


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400 + ".0"])
def test_a_number_that_is_too_large_reaches_no_backend(proxy: Proxy, bed: Stack, number: str) -> None:
    assert post(proxy, CHAT, encode(chat("a"))).status == 200  # it is loaded
    before = bed.seen()["requests"]
    for stream in (b"true", b"false"):
        body = b'{"model": "a", "messages": [], "stream": %b, "temperature": %b}' % (stream, number.encode())
        answer = post(proxy, CHAT, body)
        assert (answer.status, answer.error["code"]) == (400, "invalid_json")
    assert bed.seen()["requests"] == before


def test_a_form_in_an_unknown_charset_is_refused(proxy: Proxy) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="model"\r\n'
    part += b"Content-Type: text/plain; charset=xyz\r\n\r\na\r\n--x--\r\n"
    answer = post(proxy, "/v1/audio/transcriptions", part, b"Content-Type: multipart/form-data; boundary=x")
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("name", [b"Content-Type", b"Access-Control-Request-Headers", b"Origin"])
@pytest.mark.parametrize("text", [b"text/x\rX: y", b"text/x\0", b"a\x1b[2J"])
def test_control_characters_reach_neither_a_backend_nor_an_answer(proxy: Proxy, name: bytes, text: bytes) -> None:
    assert ask(proxy, "OPTIONS /health HTTP/1.1", name + b": " + text).status == 400


# --- the log ------------------------------------------------------------------------------------------


def test_refusals_say_and_log_little(bed: Stack, proxy: Proxy) -> None:
    """Five hundred with an Origin of 60 kB: no answer repeats it, and the log has ten lines a second of them."""
    own = bed.start_proxy()
    origin = b"Origin: " + b"\xff" * 60_000
    began = time.monotonic()
    for answer in run_all(*[lambda: ask(own, "GET /v1/models HTTP/1.1", origin)] * 60):
        assert (answer.status, answer.error["code"]) == (403, "forbidden_origin")
        assert len(answer.body) < 3_000
    seconds = time.monotonic() - began + 2
    lines = own.log.splitlines()
    assert sum("forbidden_origin" in line or "refused" in line for line in lines) <= 10 * seconds
    assert max(len(line.encode()) for line in lines) <= MAX_LINE_BYTES


def test_refusals_of_one_kind_are_counted(bed: Stack, proxy: Proxy) -> None:
    own = bed.start_proxy()
    run_all(*[lambda: own.get("/nope")] * 100)
    seen = own.log.count("refused path=/nope")
    assert 0 < seen < 100

    def is_all_accounted_for() -> bool:
        """Without another request."""
        words = [line.rpartition(" unlogged=")[2] for line in own.log.splitlines() if " unlogged=" in line]
        return sum(map(int, words)) + own.log.count("refused path=/nope") == 100

    wait_for(is_all_accounted_for)


# --- limits -------------------------------------------------------------------------------------------


def test_slow_readers_cannot_hold_all_threads(stack: Stack) -> None:
    """Three hundred that ask a lot and read nothing: others are served, and their connections end."""
    unit = stack.standin("a")
    proxy = stack.run({"a": unit} | {f"model-{number}": unit for number in range(300)}, queue_limit=1)
    proxy.chat("a")
    question = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"  # answered with 40 kB
    with contextlib.ExitStack() as held:
        for _ in range(300):
            sock = held.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(("127.0.0.1", proxy.port))
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.send(question * 30)
        assert proxy.get("/health", timeout_s=20).status == 200
        assert proxy.chat("a").status == 200
        wait_for(lambda: descriptors_of(proxy.process.pid)["socket:[]"] < 60, timeout_s=180)
        assert proxy.get("/health").status == 200
    assert "Traceback" not in proxy.log


def test_a_reader_that_is_slow_but_reads_gets_it_all(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")})
    raw = encode(
        {"choices": [{"message": {"role": "assistant", "content": "x" * 12_000_000}, "finish_reason": "stop"}]}
    )
    body = encode(chat("a", standin={"raw": raw.decode()}))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(("127.0.0.1", proxy.port))
        sock.sendall(b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (CHAT.encode(), HOST, len(body)) + body)
        time.sleep(1)  # longer than the moment that every reader has
        reply = http.client.HTTPResponse(sock)
        reply.begin()
        assert reply.read() == raw


def test_large_bodies_share_one_budget(stack: Stack) -> None:
    """A third one is told to come later, and is served when the others are gone."""
    proxy = stack.run({"a": stack.standin("a")})
    size = 60_000_000
    head = b"POST /api/load HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size
    with contextlib.ExitStack() as held:
        for _ in range(2):
            sock = held.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=30))
            sock.sendall(head + b" " * (size - 1))
        answer = proxy.post("/api/load", b" " * size)
        assert (answer.status, answer.error["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) > 0
        assert proxy.chat("a").status == 200  # a small one is served meanwhile
    wait_for(lambda: proxy.post("/api/load", b" " * size).error["code"] == "missing_model")


def test_a_reply_of_too_many_values_goes_on_unread(stack: Stack) -> None:
    """As with the log probabilities of a very long one. A reply that must be read gets an error: for a stream, and for
    another API's client."""
    proxy = stack.run({"a": stack.standin("a")})
    members = '"":0,' * 400_001
    choice = '{"index":0,"message":{"role":"assistant","content":"hi"},"logprobs":{' + members + '"":0}}'
    raw = '{"model":"other","choices":[' + choice + "]}"
    before = proxy.status()["repairs"].get("repair_budget", 0)
    answer = proxy.chat("a", standin={"raw": raw})
    assert answer.body == raw.replace("other", "a", 1).encode()
    wait_for(lambda: proxy.status()["repairs"].get("repair_budget", 0) == before + 1)  # counted after the answer
    assert proxy.chat("a", stream=True, standin={"raw": raw}).error["code"] == "backend_error"
    answer = proxy.post("/v1/messages", chat("a", standin={"raw": raw}))
    assert (answer.status, answer.json["type"]) == (502, "error")


def test_many_small_values_count_as_the_memory_that_they_take(stack: Stack) -> None:
    """2 MB of them become 30 MB, so four such requests are too many at once."""
    proxy = stack.run({"a": stack.standin("a")})
    assert proxy.chat("a").status == 200
    values = [0] * 480_000
    with in_background(*[lambda: proxy.chat("a", x=values, standin={"until_released": True})] * 3) as results:
        wait_for(lambda: stack.seen()["running"] == 3)
        answer = proxy.chat("a", x=values)
        assert (answer.status, answer.error["code"]) == (429, "queue_full")
        assert proxy.chat("a", x=values[:1000]).status == 200
        stack.release()
    assert [it.status for it in results] == [200] * 3


def test_memory_comes_back(stack: Stack) -> None:
    """After many large answers at once the proxy is about as small as before."""
    proxy = stack.run({"a": stack.standin("a")})
    run_all(*[lambda: proxy.chat("a", standin={"delay_s": 0.3})] * 15)  # as many threads as there will be
    before = rss_mib(proxy.process.pid)
    message = {"role": "assistant", "content": "x" * 4_000_000}
    raw = encode({"choices": [{"message": message, "finish_reason": "stop"}]}).decode()
    for _ in range(4):
        run_all(*[lambda: proxy.chat("a", standin={"raw": raw})] * 15)
    wait_for(lambda: rss_mib(proxy.process.pid) < before * 1.2, 30)


def test_a_want_of_memory_is_a_503(stack: Stack) -> None:
    """While a body is read, or once it is parsed; a small request is served meanwhile."""
    stack.write_config({"a": stack.standin("a")})
    proxy = stack.start_proxy(env={"MALLOC_ARENA_MAX": "1"})  # a second arena would have room of its own
    proxy.chat("a")
    pid = proxy.process.pid
    usual = resource.prlimit(pid, resource.RLIMIT_AS)
    for room_mib, body in ((2, b" " * 20_000_000), (8, encode(chat("a", "x" * 4_000_000)))):
        resource.prlimit(pid, resource.RLIMIT_AS, (address_space(pid) + (room_mib << 20), usual[1]))
        answer = proxy.post(CHAT, body)
        assert (answer.status, answer.error["code"]) == (503, "out_of_memory")
        assert proxy.chat("a").status == 200
        resource.prlimit(pid, resource.RLIMIT_AS, usual)
    assert proxy.post(CHAT, encode(chat("a", "x" * 4_000_000))).status == 200
    assert "Traceback" not in proxy.log


def test_a_want_of_descriptors_is_a_503(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a"), "b": stack.standin("b")})
    proxy.chat("a")
    pid = proxy.process.pid
    kept = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    with contextlib.closing(kept):
        kept.request("GET", "/health")
        kept.getresponse().read()
        usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        count = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, usual[1]))
        kept.request("POST", CHAT, encode(chat("b")))
        reply = kept.getresponse()
        assert reply.status == 503, reply.read()
        reply.read()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
    assert proxy.chat("b").status == 200
    assert "Traceback" not in proxy.log
