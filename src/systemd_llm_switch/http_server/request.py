"""One request as cheroot serves it: reads it whole, with bounds, and has the application answer it, or refuses it.

Must not know routes or models.
"""

from __future__ import annotations

import functools
import json
import logging
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

from cheroot import server as cheroot_server

from systemd_llm_switch.errors import InternalError, ProxyError, RequestTimeout, RequestTooLarge, unexpected
from systemd_llm_switch.http_server.body import (
    GZIP,
    SMALL_BYTES,
    check_encoding,
    read_chunked,
    read_sized,
    unzip,
)
from systemd_llm_switch.http_server.head import Head, MalformedRequest, parse_head
from systemd_llm_switch.http_server.reading import BODY_TIMEOUT_S, HEAD_TIMEOUT_S, TooSlow, Truncated
from systemd_llm_switch.openai.json_cost import parsed_bytes
from systemd_llm_switch.quoting import quoted
from systemd_llm_switch.throttle import Throttle
from systemd_llm_switch.wsgi import SERVER_NAME

log = logging.getLogger(__name__)

_END_OF_HEAD = b"\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_WITHOUT_BODY = frozenset((204, 205, 304))
_FORM = "multipart/"  # holds files, which are not parsed
_LINGER_S = 2.0
_LINGER_BYTES = 1 << 16


def _log_unlogged(kind: str, count: int) -> None:
    """How many refusals of a burst had no line."""
    log.warning("more_refused kind=%s unlogged=%d", quoted(kind), count)


_refusals = Throttle(_log_unlogged)


class ServedRequest(cheroot_server.HTTPRequest):
    """One request: read as a whole before it is served, refused in OpenAI's shape. cheroot calls `parse_request`, then
    `respond` if that left it `ready`."""

    head: Head | None = None
    body = b""
    _taken_bytes = 0  # of the budget for large bodies

    def parse_request(self) -> None:
        """Reads the request line and the fields, with bounds on size and time."""
        self.conn.wfile.begin_answer()
        try:
            data = self._read_head()
            if data:
                self.started_request = True
                self.head = parse_head(data)
                self.close_connection = not self.head.keeps_connection
                self._check_size(self.head)
                self.ready = True
        except TooSlow:
            self._refuse(RequestTimeout("the request came too slowly"))
        except ProxyError as error:
            self._refuse(error)
        except Truncated:
            self.close_connection = True

    def _read_head(self) -> bytes:
        """The head's bytes, the empty line at its end included; none if the client closed its connection.

        Raises:
            TooSlow, Truncated, MalformedRequest, RequestTooLarge
        """
        reader = self.conn.rfile
        arrived: bytes = reader.arrived()
        end = arrived.find(_END_OF_HEAD)
        if end > 0:
            head: bytes = reader.read(end + len(_END_OF_HEAD))
            return head.removeprefix(b"\r\n")
        with self.server.slow_reads.patience(reader, HEAD_TIMEOUT_S):
            return self._read_lines()

    def _read_lines(self) -> bytes:
        """The head's bytes, line by line as they arrive. Skips an empty line before it (RFC 9112, 2.2)."""
        reader, limit = self.conn.rfile, self.server.max_request_header_size
        head: bytes = reader.readline(limit + 1)
        line = head
        if line == b"\r\n":
            head = line = reader.readline(limit + 1)
        while line not in (b"\r\n", b""):
            if len(head) > limit:
                raise self._too_long(head)
            if line.endswith(b"\n") and not line.endswith(b"\r\n"):
                raise MalformedRequest(HTTPStatus.BAD_REQUEST, "malformed request: a line must end in CR LF")
            line = reader.readline(limit + 1 - len(head))
            head += line
        if head and not line:
            raise Truncated
        return head

    def _too_long(self, head: bytes) -> ProxyError:
        if b"\n" in head:
            return RequestTooLarge(None)
        return MalformedRequest(HTTPStatus.REQUEST_URI_TOO_LONG, "the request's target is too long")

    def _check_size(self, head: Head) -> None:
        """
        Raises:
            RequestTooLarge, MalformedRequest: the body must not even be read.
        """
        limit: int = self.server.max_request_body_size  # asked for each request: the config may have changed
        if head.length > limit:
            raise RequestTooLarge(limit / 1e6)
        if "HTTP_CONTENT_ENCODING" in head.fields:
            check_encoding(head.fields["HTTP_CONTENT_ENCODING"].lower())

    def respond(self) -> None:
        """Reads the body, with bounds, and serves the request."""
        self.rfile = None  # nothing is left to read for cheroot
        head = self.head
        assert head is not None
        refusal: ProxyError | None = None
        try:
            if head.is_chunked or not self.conn.rfile.has_bytes(head.length):
                if not self._may_wait():
                    return
                self.body = self._wait_for_body(head)
            elif head.length:
                self.body = read_sized(self.conn.rfile, head.length, self._charge)
            if "HTTP_CONTENT_ENCODING" in head.fields and head.fields["HTTP_CONTENT_ENCODING"].lower() in GZIP:
                self.body = unzip(self.body, self.server.max_request_body_size, self._charge)
            if len(self.body) > SMALL_BYTES and not head.fields.get("CONTENT_TYPE", "").lower().startswith(_FORM):
                self._charge(parsed_bytes(self.body))
        except TooSlow:
            refusal = RequestTimeout("the request came too slowly")
        except (ProxyError, MemoryError) as error:
            refusal = unexpected(error)
        except Truncated:
            self.close_connection = True
        else:
            self._serve()
        finally:
            if self._taken_bytes:
                self.server.budget.give_back(self._taken_bytes)
            self.server.trimmer.note(max(len(self.body), self.conn.wfile.sent_bytes))
        if refusal is not None:  # only now, when nothing holds what was read of the body
            self._refuse(refusal)

    def _may_wait(self) -> bool:
        """Whether the application allows the request. If not, it is refused now, so that such a client cannot make us
        wait for a body or hold it."""
        if self.server.admits(self):
            return True
        self.close_connection = True
        self._serve()
        self._let_it_arrive()
        return False

    def _wait_for_body(self, head: Head) -> bytes:
        """
        Raises:
            TooSlow, Truncated, ProxyError
        """
        reader, server = self.conn.rfile, self.server
        if head.fields.get("HTTP_EXPECT", "").lower() == "100-continue" and head.version == "HTTP/1.1":
            self.conn.wfile.write(_CONTINUE)
        with server.slow_reads.patience(reader, BODY_TIMEOUT_S):
            if head.is_chunked:
                return read_chunked(reader, server.max_request_body_size, self._charge)
            return read_sized(reader, head.length, self._charge)

    def _charge(self, count: int) -> None:
        """Takes bytes of the budget, until the request is answered.

        Raises:
            QueueFull
        """
        self.server.budget.take(count, self.server.max_request_body_size)
        self._taken_bytes += count

    def _serve(self) -> None:
        self.server.gateway(self).respond()
        self.ensure_headers_sent()
        if self.chunked_write:
            self.conn.wfile.write(b"0\r\n\r\n")
        self.conn.wfile.flush()

    def start_response(self, status: str, headers: list[tuple[str, str]]) -> Callable[[bytes], None]:
        """Takes the head of an answer, which leaves with the first part of the body. Returns what writes the body."""
        self.status, self.outheaders = status, headers
        return self._write_body

    def _write_body(self, data: bytes) -> None:
        self.ensure_headers_sent()
        self.write(data)

    def send_headers(self) -> None:
        """Makes the head of the answer; it leaves together with what follows it."""
        assert self.head is not None
        code = int(self.status[:3])
        fields = {name.lower(): f"{name}: {value}\r\n" for name, value in self.outheaders}
        is_old = self.head.version != "HTTP/1.1"
        if code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            self.close_connection = True
        elif "content-length" not in fields and code not in _WITHOUT_BODY:
            if is_old or self.head.method == "HEAD":
                self.close_connection = True  # the body ends where the connection does
            else:
                self.chunked_write = True
                fields["transfer-encoding"] = "Transfer-Encoding: chunked\r\n"
        if not self.server.can_add_keepalive_connection:  # nor while it is being stopped
            self.close_connection = True
        if self.close_connection:
            fields["connection"] = "Connection: close\r\n"
        elif is_old:
            fields["connection"] = f"Connection: Keep-Alive\r\nKeep-Alive: timeout={self.server.timeout}\r\n"
        head = f"HTTP/1.1 {self.status}\r\n{''.join(fields.values())}{_date_and_server(int(time.time()))}\r\n"
        self.conn.wfile.hold()
        self.conn.wfile.write(head.encode("latin-1"))

    def simple_response(self, status: str, msg: str = "") -> None:
        """Answers an error of cheroot's own; cheroot calls it."""
        code = int(str(status)[:3])
        self._refuse(
            RequestTimeout("the request came too slowly")
            if code == HTTPStatus.REQUEST_TIMEOUT
            else InternalError("the proxy failed; its journal has the reason")
        )

    def _refuse(self, error: ProxyError) -> None:
        """Answers with an error and ends the connection, because it is unknown where the next request would begin."""
        self.close_connection = True
        self.sent_headers = True
        unlogged = _refusals.admit(f"{error.status} {error.code}")
        if unlogged is not None:
            log.warning(
                "request_refused status=%d reason=%s unlogged=%d", error.status, quoted(error.message, 500), unlogged
            )
        try:
            self.conn.wfile.write(self._error_answer(error))
        except OSError:
            return  # the client did not wait for it
        self._let_it_arrive()

    def _error_answer(self, error: ProxyError) -> bytes:
        body = json.dumps(error.body()).encode()
        origin = None if self.head is None else self.head.fields.get("HTTP_ORIGIN")
        headers = [
            ("Content-Type", "application/json; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *error.headers(),
            *self.server.cors_headers(origin),
        ]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers) + _date_and_server(int(time.time()))
        return f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{lines}\r\n".encode("latin-1") + body

    def _let_it_arrive(self) -> None:
        """Reads what the client still sends. If the connection were closed with unread bytes, it would be reset, and
        the client would see the reset instead of the answer. This holds a thread, so only some threads may do it."""
        if not self.server.lingering.acquire(blocking=False):
            return
        sock = self.conn.socket
        try:
            sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + _LINGER_S
            while (left_s := deadline - time.monotonic()) > 0:
                sock.settimeout(left_s)
                if not sock.recv(_LINGER_BYTES):
                    return
        except OSError:
            return  # the client did not wait for it
        finally:
            self.server.lingering.release()


@functools.lru_cache(maxsize=1)
def _date_and_server(now_s: int) -> str:
    """The headers that are the same in all answers of one second."""
    return f"Date: {formatdate(now_s, usegmt=True)}\r\nServer: {SERVER_NAME}\r\n"
