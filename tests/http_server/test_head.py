"""The head of a request: what is understood of it, and every form that two readers could understand in two ways."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from support.cheroots import read_by_cheroot
from systemd_llm_switch.errors import MethodNotAllowed, ProxyError
from systemd_llm_switch.http_server.head import Head, MalformedRequest, parse_head

HOST = "Host: localhost\r\n"


def head(line: str, *fields: str) -> Head:
    return parse_head("".join(f"{it}\r\n" for it in (line, *fields, "")).encode("latin-1"))


def test_an_ordinary_head_is_understood() -> None:
    read = head("POST /v1/chat/completions?a=b HTTP/1.1", "host:a:1", "Content-Length:  2 \t", "X-A:", "X-B: c, d ")
    assert read == Head(
        method="POST", path="/v1/chat/completions", raw_path="/v1/chat/completions", query="a=b", version="HTTP/1.1",
        fields={"HTTP_HOST": "a:1", "CONTENT_LENGTH": "2", "HTTP_X_A": "", "HTTP_X_B": "c, d"}, is_chunked=False,
        length=2, keeps_connection=True,
    )  # fmt: skip


REFUSED = {
    "length twice": ("POST /a HTTP/1.1", "Host: a", "Content-Length: 5", "Content-Length: 5"),
    "lengths that differ": ("POST /a HTTP/1.1", "Host: a", "Content-Length: 5", "Content-Length: 6"),
    "lengths in a list": ("POST /a HTTP/1.1", "Host: a", "Content-Length: 5, 5"),
    "no length": ("POST /a HTTP/1.1", "Host: a", "Content-Length:"),
    "signed length": ("POST /a HTTP/1.1", "Host: a", "Content-Length: +5"),
    "hexadecimal length": ("POST /a HTTP/1.1", "Host: a", "Content-Length: 0x5"),
    "length with a blank": ("POST /a HTTP/1.1", "Host: a", "Content-Length: 5 5"),
    "huge length": ("POST /a HTTP/1.1", "Host: a", "Content-Length: " + "9" * 4301),
    "length and chunks": ("POST /a HTTP/1.1", "Host: a", "Content-Length: 5", "Transfer-Encoding: chunked"),
    "chunks and length": ("POST /a HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Content-Length: 5"),
    "chunked twice": ("POST /a HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunked in a list": ("POST /a HTTP/1.1", "Host: a", "Transfer-Encoding: chunked, chunked"),
    "chunked of HTTP/1.0": ("POST /a HTTP/1.0", "Host: a", "Transfer-Encoding: chunked"),
    "blank before the colon": ("GET /a HTTP/1.1", "Host: a", "X : a"),
    "tab before the colon": ("GET /a HTTP/1.1", "Host: a", "X\t: a"),
    "folded field": ("GET /a HTTP/1.1", "Host: a", "X: a", " b"),
    "folded first field": ("GET /a HTTP/1.1", " Host: a"),
    "no colon": ("GET /a HTTP/1.1", "Host: a", "X"),
    "no name": ("GET /a HTTP/1.1", "Host: a", ": x"),
    "NUL": ("GET /a HTTP/1.1", "Host: a", "X: a\0b"),
    "NUL in a name": ("GET /a HTTP/1.1", "Host: a", "X\0: a"),
    "escape": ("GET /a HTTP/1.1", "Host: a", "X: a\x1b[2J"),
    "DEL": ("GET /a HTTP/1.1", "Host: a", "X: a\x7f"),
    "CR": ("GET /a HTTP/1.1", "Host: a", "Content-Type: a\rb"),
    "LF": ("GET /a HTTP/1.1", "Host: a", "Content-Type: a\nX: b"),
    "CR at the end": ("GET /a HTTP/1.1", "Host: a", "Content-Type: a\r"),
    "no host": ("GET /a HTTP/1.1", "X: a"),
    "two hosts": ("GET /a HTTP/1.1", "Host: a", "Host: a"),
    "two keys": ("GET /a HTTP/1.1", "Host: a", "Authorization: Bearer a", "authorization: Bearer b"),
    "two origins": ("GET /a HTTP/1.1", "Host: a", "Origin: a", "Origin: b"),
    "two content types": ("GET /a HTTP/1.1", "Host: a", "Content-Type: a", "Content-Type: b"),
    "lower-case method": ("get /a HTTP/1.1", "Host: a"),
    "no method": (" /a HTTP/1.1", "Host: a"),
    "method with a slash": ("G/T /a HTTP/1.1", "Host: a"),
    "long method": ("G" * 33 + " /a HTTP/1.1", "Host: a"),
    "two blanks": ("GET  /a HTTP/1.1", "Host: a"),
    "blank at the end": ("GET /a HTTP/1.1 ", "Host: a"),
    "tab": ("GET\t/a HTTP/1.1", "Host: a"),
    "no target": ("GET HTTP/1.1", "Host: a"),
    "two targets": ("GET /a /b HTTP/1.1", "Host: a"),
    "no version": ("GET /a", "Host: a"),
    "HTTP/0.9": ("GET /a HTTP/0.9", "Host: a"),
    "another protocol": ("GET /a RTSP/1.0", "Host: a"),
    "streaming protocol": ("SOURCE /a ICE/1.0", "Host: a"),
    "fragment": ("GET /a#b HTTP/1.1", "Host: a"),
    "target without a slash": ("GET health HTTP/1.1", "Host: a"),
    "authority of a GET": ("GET localhost:80 HTTP/1.1", "Host: a"),
    "asterisk of a GET": ("GET * HTTP/1.1", "Host: a"),
    "target with a user": ("GET http://me@localhost/a HTTP/1.1", "Host: a"),
    "target without a host": ("GET http:///a HTTP/1.1", "Host: a"),
    "target of another scheme": ("GET ftp://localhost/a HTTP/1.1", "Host: a"),
    "control character in the target": ("GET /a\x01 HTTP/1.1", "Host: a"),
    "target that is not ASCII": ("GET /\xff HTTP/1.1", "Host: a"),
}
OTHER_STATUS = {"HTTP/0.9": 505}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_two_readers_could_read_in_two_ways_is_refused(kind: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        head(*REFUSED[kind])
    assert refused.value.status == OTHER_STATUS.get(kind, 400)
    assert len(refused.value.message) < 400


@pytest.mark.parametrize(
    ("lines", "status", "words"),
    [
        (("POST /a HTTP/1.1", "Host: a", "Transfer-Encoding: gzip"), 501, "'gzip' is not known"),
        (("POST /a HTTP/1.1", "Host: a", "Transfer-Encoding: gzip, chunked"), 501, "'gzip, chunked' is not known"),
        (("POST /a HTTP/1.1", "Host: a", "Transfer-Encoding: xchunked"), 501, "'xchunked' is not known"),
        (("PRI * HTTP/2.0",), 505, "'HTTP/2.0' is not supported"),
        (("GET /a HTTP/9.9", "Host: a"), 505, "'HTTP/9.9' is not supported"),
        (("GET /a HTTP/" + "9" * 5000, "Host: a"), 505, "characters in all"),
    ],
)
def test_what_http_has_a_status_for_gets_it(lines: tuple[str, ...], status: int, words: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        head(*lines)
    assert refused.value.status == status
    assert words.replace("characters", "bytes") in refused.value.message


def test_a_tunnel_is_not_made() -> None:
    for target in ("localhost:80", "/a"):
        with pytest.raises(MethodNotAllowed):
            head(f"CONNECT {target} HTTP/1.1", "Host: a")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "BREW", "PROPFIND", "DESCRIBE", "M-SEARCH", "SOURCE"])
def test_every_other_method_is_left_to_the_routes(method: str) -> None:
    read = head(f"{method} /a HTTP/1.1", "Host: a", "Content-Length: 7")
    assert (read.method, read.path, read.length) == (method, "/a", 7)


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        ("/", "/", "/", ""), ("/a?", "/a", "/a", ""), ("/a?b?c", "/a", "/a", "b?c"), ("//a", "/a", "/a", ""),
        ("///a//b?x=//y", "/a//b", "/a//b", "x=//y"), ("//", "/", "/", ""), ("//[::1/a", "/[::1/a", "/[::1/a", ""),
        ("/a%2Fb%252F", "/a/b%2F", "/a%2Fb%252F", ""), ("/%c3%bc", "/\xc3\xbc", "/%c3%bc", ""),
        ("/a%", "/a%", "/a%", ""), ("/%zz%00", "/%zz\0", "/%zz%00", ""), ("/a;b", "/a;b", "/a;b", ""),
        ("/a?b=%2F", "/a", "/a", "b=%2F"), ("/..", "/..", "/..", ""), ("/%2F/a", "///a", "/%2F/a", ""),
    ],
)  # fmt: skip
def test_a_target_is_a_path_and_a_query(target: str, path: str, raw_path: str, query: str) -> None:
    read = head(f"GET {target} HTTP/1.1", "Host: a")
    assert (read.path, read.raw_path, read.query) == (path, raw_path, query)


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        ("http://b/v1/models?x", "b", "/v1/models", "x"), ("HTTPS://b:80", "b:80", "/", ""),
        ("http://[::1]:1?x=/y", "[::1]:1", "/", "x=/y"), ("http://b//v1/models", "b", "/v1/models", ""),
    ],
)  # fmt: skip
def test_the_host_of_an_absolute_target_counts(target: str, host: str, path: str, query: str) -> None:
    """Whatever the Host field says (RFC 9112, 3.2.2)."""
    read = head(f"GET {target} HTTP/1.1", "Host: a")
    assert (read.fields["HTTP_HOST"], read.path, read.query) == (host, path, query)


def test_the_asterisk_is_for_options() -> None:
    assert head("OPTIONS * HTTP/1.1", "Host: a").path == "*"


def test_a_name_with_an_underscore_passes_for_no_other() -> None:
    read = head("GET /a HTTP/1.1", "X_Api_Key: b", "Content_Length: 7", "HTTP_HOST: c", "SCRIPT_NAME: d", "Host: a")
    assert (read.fields, read.length) == ({"HTTP_HOST": "a"}, 0)


def test_lists_are_joined() -> None:
    assert head("GET /a HTTP/1.1", "Host: a", "Accept: b", "accept: c").fields["HTTP_ACCEPT"] == "b, c"


def test_http_1_0_may_leave_its_host_out() -> None:
    assert "HTTP_HOST" not in head("GET /a HTTP/1.0").fields


def test_an_upgrade_is_not_made() -> None:
    read = head("POST /a HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: h2c", "Content-Length: 7")
    assert (read.length, read.keeps_connection) == (7, True)


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [
        ("1.1", "", True), ("1.1", "close", False), ("1.1", "TE, Close", False), ("1.1", "closed", True),
        ("1.0", "", False), ("1.0", "Keep-Alive", True), ("1.0", "keep-alive, close", False),
    ],
)  # fmt: skip
def test_a_connection_is_kept_as_its_client_asks(version: str, connection: str, keeps: bool) -> None:
    fields = [f"Connection: {connection}"] if connection else []
    assert head(f"GET /a HTTP/{version}", "Host: a", *fields).keeps_connection is keeps


# --- whatever comes -----------------------------------------------------------------------------------

FEW_BYTES = st.text("ab/.%?#_-~ \t\r\n:;=\0\x0b\x7f\xe9", max_size=12)
NAMES = st.sampled_from(
    ["Host", "host", "Content-Length", "Content-Type", "Connection", "Transfer-Encoding", "Expect", "X-a", "X_a", "Te",
     "X a", "Accept", "accept", ""]
)  # fmt: skip
VALUES = st.sampled_from(
    ["", " 5", " 5 ", "0", " 12, 12", " +5", " 1001", "close", " close", " Close", " keep-alive", "\tx", " x y ",
     " a:b", " chunked", " gzip", " 100-continue", " \xe9", " a\rb", " a\x0bb", "\x0b7"]
) | FEW_BYTES  # fmt: skip
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=5).map(lambda fields: [("Host", "a"), *fields])
LINES = st.sampled_from(
    ["POST /v1/chat/completions HTTP/1.1", "GET /health HTTP/1.1", "POST /a?b=c HTTP/1.1", "POST /a%2Fb HTTP/1.1",
     "POST /a/ HTTP/1.1", "POST / HTTP/1.1", "POST /a HTTP/1.0", "POST /a HTTP/2.0",
     "post /a HTTP/1.1", "POST  /a HTTP/1.1", "HEAD /a HTTP/1.1", "POST /a/../b HTTP/1.1"]
) | st.builds("POST /{} HTTP/1.1".format, FEW_BYTES)  # fmt: skip


@given(line=LINES, fields=FIELDS)
@example("POST /a HTTP/1.1", [("Host", "a"), ("Accept", " a"), ("accept", " b")])
@example("GET /a HTTP/1.1", [("Host", "a"), ("Connection", " close")])
@example("GET /a HTTP/1.1", [("Host", "a"), ("X-a", ""), ("X_a", " 5")])
def test_what_is_understood_another_parser_understands_the_same(line: str, fields: list[tuple[str, str]]) -> None:
    """Cheroot's, which is written in another way and takes more. What follows two slashes is a host to it."""
    assume(" //" not in line)
    data = "".join([f"{line}\r\n", *(f"{name}:{value}\r\n" for name, value in fields), "\r\n"]).encode("latin-1")
    ours = read_or_refuse(data)
    if ours is None:
        return
    theirs = read_by_cheroot(data)
    assert theirs is not None
    assert (ours.method, ours.query) == (theirs.method.decode(), theirs.qs.decode())
    assert ours.path == theirs.path.decode("latin-1").replace("%2F", "/").replace("%2f", "/")
    assert (ours.version, ours.is_chunked) == (theirs.request_protocol.decode(), theirs.chunked_read)
    assert ours.length == int(theirs.inheaders.get(b"Content-Length", 0))
    known = {
        name.decode("latin-1").upper().replace("-", "_"): value
        for name, value in theirs.inheaders.items()
        if b"_" not in name  # we drop these
    }
    for key, value in ours.fields.items():
        assert known[key.removeprefix("HTTP_")].decode("latin-1").split(", ")[-1] == value.split(", ")[-1]


PIECES = st.binary(max_size=8) | st.sampled_from(
    [b"GET ", b"POST ", b"/a", b" HTTP/1.1", b"\r\n", b": ", b"Host", b"a", b"\0", b"\r", b"\n", b" ", b"\t", b"http://",
     b"Content-Length", b"Transfer-Encoding", b"chunked", b"5", b",", b"%", b"//", b"*", b"#", b"Connection",
     b"Upgrade"]
)  # fmt: skip


def read_or_refuse(data: bytes) -> Head | None:
    try:
        return parse_head(data)
    except ProxyError as refused:
        return None if 400 <= refused.status < 600 else pytest.fail(str(refused))


@given(st.lists(PIECES, max_size=24).map(b"".join))
def test_no_bytes_are_more_than_refused(data: bytes) -> None:
    """Nothing but a head or a refusal comes of them, and no control character gets through."""
    read = read_or_refuse(data.replace(b"\r\n\r\n", b"\r\n") + b"\r\n\r\n")
    if read is not None:
        for text in (read.raw_path, read.query, *read.fields, *read.fields.values()):
            assert not any(letter in text for letter in "\0\r\n\x1b\x7f")
        assert read.raw_path.startswith("/") or read.raw_path == "*"
