"""The body of a request: reads it whole, with a bound on its size, and decodes it. httptools checks its chunks."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus

from httptools import HttpParserError, HttpRequestParser

from systemd_llm_switch import zipped
from systemd_llm_switch.errors import QueueFull, RequestTooLarge
from systemd_llm_switch.http_server.head import MalformedRequest
from systemd_llm_switch.http_server.reading import RequestReader, Truncated
from systemd_llm_switch.quoting import printable, quoted

# A body up to this size is not charged to the budget: the number of threads bounds all such bodies together.
SMALL_BYTES = 64 * 1024
_LEAST_BUDGET_BYTES = 128_000_000
_LARGEST_BODIES_AT_ONCE = 2
_RETRY_AFTER_S = 5
_MAX_LINE_BYTES = 8192
# Chunk extensions and trailers are not part of the body, and could go on for ever.
_MAX_EXTRA_BYTES = 64 * 1024
_SIZE_LINE_BYTES = len("00000000\r\n")
_CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
_READ_BYTES = 256 * 1024
GZIP = ("gzip", "x-gzip")
IDENTITY = ("", "identity")

Charge = Callable[[int], None]


class BodyBudget:
    """How many bytes of large bodies all requests together may hold. (A parsed body takes a multiple of its bytes.)
    Thread-safe.

    A request takes bytes from the budget while it reads them, and gives them back when it is answered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, count: int, max_body_bytes: int) -> None:
        """
        Raises:
            QueueFull: the current requests hold too much already.
        """
        limit = max(_LEAST_BUDGET_BYTES, _LARGEST_BODIES_AT_ONCE * max_body_bytes)
        with self._lock:
            if self._taken + count > limit:
                raise QueueFull(
                    f"the requests under way hold {self._taken / 1e6:.0f} MB of bodies already; try again later",
                    retry_after_s=_RETRY_AFTER_S,
                )
            self._taken += count

    def give_back(self, count: int) -> None:
        """Returns bytes that were taken."""
        with self._lock:
            self._taken -= count


def read_sized(reader: RequestReader, length: int, charge: Charge) -> bytes:
    """A body of known length. A large one is charged as it arrives, so announcing one takes nothing of the budget.

    Raises:
        TooSlow, Truncated, and what `charge` raises.
    """
    if length <= SMALL_BYTES:
        return _read_exactly(reader, length)
    body = io.BytesIO()
    for piece in _pieces(reader, length, charge):
        body.write(piece)
    return body.getvalue()


def _pieces(reader: RequestReader, length: int, charge: Charge) -> Iterator[bytes]:
    """Reads `length` bytes in pieces, and charges each."""
    while length:
        piece = _read_exactly(reader, min(length, _READ_BYTES))
        length -= len(piece)
        charge(len(piece))
        yield piece


def _read_exactly(reader: RequestReader, length: int) -> bytes:
    data = reader.read(length)
    if len(data) < length:
        raise Truncated
    return data


class _Chunks:
    """What the parser finds in a chunked body; it calls these methods."""

    __slots__ = ("has_size", "is_complete")

    def __init__(self) -> None:
        self.has_size = self.is_complete = False

    def on_chunk_header(self) -> None:
        self.has_size = True

    def on_message_complete(self) -> None:
        self.is_complete = True


def read_chunked(reader: RequestReader, limit: int, charge: Charge) -> bytes:
    """A chunked body with its trailers (RFC 9112, 7.1). Reads no byte beyond it.

    Raises:
        TooSlow, Truncated, RequestTooLarge, MalformedRequest, and what `charge` raises.
    """
    chunks = _Chunks()
    parser = HttpRequestParser(chunks)
    _feed(parser, _CHUNKED_HEAD)
    body = io.BytesIO()
    extra = _MAX_EXTRA_BYTES
    while not chunks.is_complete:
        line = _read_line(reader)
        extra -= max(0, len(line) - _SIZE_LINE_BYTES)
        if extra < 0:
            raise RequestTooLarge(limit / 1e6)
        _feed(parser, line)
        if chunks.has_size:
            chunks.has_size = False
            size = int(line.partition(b";")[0], 16)  # the parser has checked it
            if size > limit - body.tell():
                raise RequestTooLarge(limit / 1e6)
            if size > 0:  # the last one has no data
                for piece in _pieces(reader, size, charge):
                    _feed(parser, piece)
                    body.write(piece)
                _feed(parser, _read_exactly(reader, len(b"\r\n")))
    return body.getvalue()


def _read_line(reader: RequestReader) -> bytes:
    line = reader.readline(_MAX_LINE_BYTES)
    if line.endswith(b"\n"):
        return line
    if len(line) < _MAX_LINE_BYTES:
        raise Truncated
    raise _malformed("a line is too long")


def _feed(parser: HttpRequestParser, data: bytes) -> None:
    try:
        parser.feed_data(data)
    except HttpParserError as error:
        raise _malformed(printable(str(error))) from error


def _malformed(reason: str) -> MalformedRequest:
    return MalformedRequest(HTTPStatus.BAD_REQUEST, f"malformed chunked body: {reason}")


def check_encoding(encoding: str) -> None:
    """
    Raises:
        MalformedRequest: the body's Content-Encoding is not supported.
    """
    if encoding not in GZIP and encoding not in IDENTITY:
        message = f"the Content-Encoding {quoted(encoding)} is not supported; send the body as it is, or with gzip"
        raise MalformedRequest(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, ("Accept-Encoding", "gzip"))


def unzip(raw: bytes, limit: int, charge: Charge) -> bytes:
    """The decompressed gzip body.

    Raises:
        MalformedRequest, RequestTooLarge, and what `charge` raises, which is called for each piece.
    """
    try:
        return zipped.unzip(raw, limit, charge)
    except zipped.TooLargeUnzipped as error:
        raise RequestTooLarge(limit / 1e6) from error
    except zipped.NotGzip as error:
        message = f"the body is not valid gzip: {printable(str(error))}"
        raise MalformedRequest(HTTPStatus.BAD_REQUEST, message) from error
