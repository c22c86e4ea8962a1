"""The body of a request: chunks just as RFC 9112 has them, gzip within bounds, and a budget for all bodies."""

from __future__ import annotations

import contextlib
import gzip
import socket
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from systemd_llm_switch.errors import ProxyError, QueueFull, RequestTooLarge
from systemd_llm_switch.http_server.body import BodyBudget, Charge, check_encoding, read_chunked, read_sized, unzip
from systemd_llm_switch.http_server.head import MalformedRequest
from systemd_llm_switch.http_server.reading import RequestReader, Truncated

LIMIT = 100_000
NEXT = b"GET /next HTTP/1.1\r\n"


@contextlib.contextmanager
def arrived(data: bytes) -> Iterator[RequestReader]:
    """A connection on which these bytes came, and then its end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        yield RequestReader(ours, 5)


def uncharged(count: int) -> None:
    """A budget without an end."""


def chunked_of(data: bytes, limit: int = LIMIT) -> tuple[bytes, bytes]:
    """The body, and what is left on the connection."""
    with arrived(data) as reader:
        return read_chunked(reader, limit, uncharged), reader.read()


def as_chunks(pieces: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    lines = [b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces if piece]
    return b"".join(lines) + b"0\r\n" + trailers + b"\r\n"


@given(
    st.lists(st.binary(max_size=40), max_size=6),
    st.sampled_from([b"", b";a", b";a=b", b';a="b c"', b";a;b=c"]),
    st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ:\r\n"]),
)
@example([b"x" * 70_000], b"", b"")
@example([b"0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"], b"", b"")
def test_chunks_are_put_together_and_what_follows_is_left(
    pieces: list[bytes], extension: bytes, trailers: bytes
) -> None:
    assert chunked_of(as_chunks(pieces, extension, trailers) + NEXT) == (b"".join(pieces), NEXT)


MALFORMED = {
    "no size": b"\r\n", "a word": b"zz\r\n", "a sign": b"+2\r\nab\r\n", "negative": b"-1\r\n",
    "prefix": b"0x2\r\nab\r\n",
    "blank before": b" 2\r\nab\r\n", "blank after": b"2 \r\nab\r\n", "line feed": b"2\nab\r\n0\r\n\r\n",
    "line feed after data": b"2\r\nab\n0\r\n\r\n", "bare CR in a size": b"2\r\rab\r\n", "underscore": b"1_0\r\n",
    "CR in an extension": b"2;a\rb\r\nab\r\n0\r\n\r\n", "NUL in an extension": b"2;a=\0\r\nab\r\n0\r\n\r\n",
    "escape in an extension": b"2;a=\x1b\r\nab\r\n0\r\n\r\n", "LF in quotes": b'2;a="\n"\r\nab\r\n0\r\n\r\n',
    "data longer than its size": b"2\r\nabc\r\n0\r\n\r\n", "size of many digits": b"1" * 17 + b"\r\n",
    "folded trailer": b"0\r\nX: a\r\n b\r\n\r\n", "blank in a trailer's name": b"0\r\nX : a\r\n\r\n",
    "length as a trailer": b"0\r\nContent-Length: 5\r\n\r\n", "NUL in a trailer": b"0\r\nX: \0\r\n\r\n",
    "long line": b"2;" + b"x" * 9000 + b"\r\n", "wide digits": "２\r\nab\r\n".encode(),
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_not_exactly_a_chunk_is_refused(kind: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        chunked_of(MALFORMED[kind] + b"0\r\n\r\n")
    assert refused.value.status == 400
    assert refused.value.message.startswith("malformed chunked body: ")


@pytest.mark.parametrize(
    "data", [b"", b"5", b"5\r\n", b"5\r\nabc", b"5\r\nabcde", b"5\r\nabcde\r\n", b"0\r\n", b"0\r\nX"]
)
def test_a_body_that_ends_early_is_not_a_body(data: bytes) -> None:
    with pytest.raises(Truncated):
        chunked_of(data)


@pytest.mark.parametrize(
    "data",
    [
        b"%x\r\n" % (LIMIT + 1), b"ffffffffffffffff\r\n", b"%x\r\n%b\r\n1\r\n" % (LIMIT, b"x" * LIMIT),
        b"1;%b\r\n \r\n" % (b"x" * 8000) * 9, b"0\r\n" + b"X: %b\r\n" % (b"x" * 8000) * 9,
    ],
    ids=["one chunk", "the largest size", "two chunks", "extensions", "trailers"],
)  # fmt: skip
def test_chunks_are_bounded_before_they_are_read(data: bytes) -> None:
    with pytest.raises(RequestTooLarge):
        chunked_of(data)


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    assert len(chunked_of(as_chunks([b"x" * (LIMIT - 1), b"x"]))[0]) == LIMIT


def test_what_comes_is_charged() -> None:
    charged: list[int] = []
    with arrived(as_chunks([b"abc", b"de"])) as reader:
        read_chunked(reader, LIMIT, charged.append)
    assert charged == [3, 2]


@pytest.mark.parametrize("read", [read_chunked, read_sized])
def test_what_is_only_announced_is_not_charged(read: Callable[[RequestReader, int, Charge], bytes]) -> None:
    """Or two slow senders of nothing would hold the budget of all."""
    charged: list[int] = []
    with arrived(b"%x\r\nabc" % LIMIT) as reader, pytest.raises(Truncated):
        read(reader, LIMIT, charged.append)
    assert charged == []


SEEDS = (as_chunks([b"abc", b"d" * 20], b";x=y", b"X: y\r\n"), as_chunks([]), as_chunks([b"x"] * 5))


def _edited(seed: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for place, length, piece in changes:
        at = int(place * len(seed))
        seed = seed[:at] + piece + seed[at + length :]
    return seed


PIECES = st.binary(max_size=5) | st.sampled_from([b"\r\n", b"\n", b"\r", b"0", b"5", b";", b"ffffffff", b" ", b":"])


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), PIECES), min_size=1, max_size=3))
def test_no_chunks_are_more_than_refused(seed: bytes, changes: list[tuple[float, int, bytes]]) -> None:
    """A body comes of them, or a refusal, or the end of the connection."""
    with contextlib.suppress(ProxyError, Truncated):
        body, _ = chunked_of(_edited(seed, changes))
        assert len(body) <= LIMIT


# --- encodings ----------------------------------------------------------------------------------------


@given(st.binary(max_size=300).map(lambda data: data * 40))
def test_gzip_is_read(data: bytes) -> None:
    assert unzip(gzip.compress(data), LIMIT, uncharged) == data


def test_a_gzip_bomb_is_refused_when_the_limit_is_reached() -> None:
    charged: list[int] = []
    bomb = gzip.compress(bytes(200_000_000))
    with pytest.raises(RequestTooLarge):
        unzip(bomb, 3_000_000, charged.append)
    assert sum(charged) <= 3_000_000


def test_what_gzip_holds_is_charged() -> None:
    charged: list[int] = []
    unzip(gzip.compress(bytes(2_500_000)), 3_000_000, charged.append)
    assert sum(charged) == 2_500_000


WHOLE = gzip.compress(b"x" * 1000, mtime=0)  # without the time, since every worker must name the cases alike


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "its end is missing"), (WHOLE[:-1], "its end is missing"), (b"{}", "incorrect header check"),
        (WHOLE + b"x", "something follows"), (WHOLE + WHOLE, "something follows"), (zlib.compress(b"x"), "header"),
        (WHOLE * 10_000, "something follows"), (WHOLE[:-8] + b"\0" * 8, "incorrect data check"),
    ],
)  # fmt: skip
def test_what_is_not_one_whole_gzip_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(MalformedRequest, match=words) as refused:
        unzip(data, LIMIT, uncharged)
    assert refused.value.status == 400


def test_what_follows_the_end_of_gzip_is_not_read() -> None:
    """It may be long, and zlib would copy all of it for each piece."""
    charged: list[int] = []
    with pytest.raises(MalformedRequest):
        unzip(WHOLE + bytes(3_000_000), LIMIT, charged.append)
    assert len(charged) <= 2


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "x" * 5000])
def test_an_encoding_that_is_not_read_is_named(encoding: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        check_encoding(encoding)
    assert refused.value.status == 415
    assert encoding[:100] in refused.value.message
    assert len(refused.value.message) < 400
    assert ("Accept-Encoding", "gzip") in refused.value.headers()


@pytest.mark.parametrize("encoding", ["", "identity", "gzip", "x-gzip"])
def test_an_encoding_that_is_read_passes(encoding: str) -> None:
    check_encoding(encoding)


# --- the budget ---------------------------------------------------------------------------------------


def test_the_bodies_of_all_requests_are_bounded_together() -> None:
    budget = BodyBudget()
    budget.take(100_000_000, 64_000_000)
    budget.take(28_000_000, 64_000_000)
    with pytest.raises(QueueFull, match="128 MB") as refused:
        budget.take(1, 64_000_000)
    assert dict(refused.value.headers())["Retry-After"] == "5"
    budget.give_back(28_000_000)
    budget.take(28_000_000, 64_000_000)


def test_the_largest_body_that_may_come_fits_twice() -> None:
    budget = BodyBudget()
    budget.take(500_000_000, 500_000_000)
    budget.take(500_000_000, 500_000_000)
    with pytest.raises(QueueFull):
        budget.take(1, 500_000_000)
