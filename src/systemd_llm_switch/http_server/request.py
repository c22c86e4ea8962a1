"""A request as cheroot serves it: read whole and bounded, handed to the application, answered or refused.

Knows HTTP's wire and nothing of routes or models. What most requests look like is read and answered here, in few
steps; what looks otherwise in any way is left to cheroot's parser.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import socket
import time
from collections.abc import Mapping
from email.utils import formatdate

from cheroot import server as cheroot_server

from systemd_llm_switch.errors import InvalidRequest, MethodNotAllowed, ProxyError, RequestTimeout, RequestTooLarge
from systemd_llm_switch.http_server.reading import (
    HEAD_TIMEOUT_S,
    Malformed,
    TooLarge,
    TooSlow,
    Truncated,
    read_body,
    read_chunked,
)

log = logging.getLogger(__name__)

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# The usual head: a path without query or escapes, and fields (RFC 9112, 5) without folding, control characters or an
# underscore in a name. Every part ends at a byte that it cannot hold, so that a match takes one pass.
_USUAL_HEAD = re.compile(
    rb"(GET|POST) ((?:/[0-9A-Za-z_.-]+)+) HTTP/1\.1\r\n((?:[!#$%&'*+.^`|~0-9A-Za-z-]+:[^\0-\x08\n-\x1f\x7f]*\r\n)*)\r\n"
)
_FIELD = re.compile(rb"([^:]+):([^\r]*)\r\n")
# Fields that ask for more than to be read.
_UNUSUAL_FIELDS = frozenset((b"Transfer-Encoding", b"Expect"))
# More digits are no length that anybody has, and Python refuses to read very many.
_LONGEST_LENGTH = 18
_WITHOUT_BODY = frozenset((204, 205, 304))
_LINGER_S = 2.0
_LINGER_BYTES = 1 << 20


class ServedRequest(cheroot_server.HTTPRequest):
    """One request: read as a whole before it is served, refused in OpenAI's shape."""

    body = b""
    _is_whole = False  # its body came with its head

    def parse_request(self) -> None:
        """Reads the request line and headers, bounded."""
        reader = self.conn.rfile
        arrived = reader.arrived()
        if self._take_usual_head(arrived):
            return
        if b"\r\n\r\n" in arrived:
            super().parse_request()
            return
        try:
            with self.server.slow_reads.patience(reader, HEAD_TIMEOUT_S):
                super().parse_request()
        except TooSlow:
            self.simple_response("408 Request Timeout")

    def _take_usual_head(self, arrived: bytes) -> bool:
        """Understands a head as cheroot would, if it is here as a whole and is a usual one."""
        head = _USUAL_HEAD.match(arrived)
        if head is None:
            return False
        fields = _FIELD.findall(head[3])
        self.inheaders = {name.title(): value.strip(b" \t") for name, value in fields}
        digits = self.inheaders.get(b"Content-Length", b"0")
        is_usual = len(self.inheaders) == len(fields) and digits.isdigit() and len(digits) <= _LONGEST_LENGTH
        if (
            not is_usual
            or not _UNUSUAL_FIELDS.isdisjoint(self.inheaders)
            or (length := int(digits)) > self.server.max_request_body_size
        ):
            self.inheaders = {}
            return False
        begin, end = head.end(), head.end() + length
        self._is_whole = len(arrived) >= end
        if self._is_whole:
            self.body = arrived[begin:end]
        self.conn.rfile.read(end if self._is_whole else begin)
        self.method, self.uri, self.path, self.qs = head[1], head[2], head[2], b""
        self.request_protocol, self.response_protocol = b"HTTP/1.1", "HTTP/1.1"
        self.close_connection = _asks_to_close(self.inheaders)
        self.started_request = self.ready = True
        return True

    def respond(self) -> None:
        """Reads the body, bounded, and serves."""
        self.rfile = None  # nothing is left to read for cheroot
        if self._is_whole:
            self._serve()
            return
        length = int(self.inheaders.get(b"Content-Length", 0))
        if not self.chunked_read and self.conn.rfile.has_bytes(length):
            self.body = self.conn.rfile.read(length)
            self._serve()
        else:
            self._respond_to_slow(length)

    def _respond_to_slow(self, length: int) -> None:
        """The same where not all of the body is here."""
        if not self.server.admits(self):
            # The application refuses it too. Whoever may not come in cannot make us wait for a body, nor hold it.
            self.close_connection = True
            self._serve()
            self._let_it_arrive()
            return
        try:
            self.body = self._read_body(length)
        except TooLarge:
            self.simple_response("413 Request Entity Too Large")
        except TooSlow:
            self.simple_response("408 Request Timeout")
        except Malformed as error:
            self.simple_response("400 Bad Request", f"malformed chunked body: {error}")
        except Truncated:
            self.close_connection = True
        else:
            self._serve()

    def _serve(self) -> None:
        self.server.gateway(self).respond()
        self.ensure_headers_sent()
        if self.chunked_write:
            self.conn.wfile.write(b"0\r\n\r\n")
        self.conn.wfile.flush()

    def start_response(self, status: str, headers: list[tuple[str, str]]) -> None:
        """What WSGI's application calls with the head of its answer; it leaves with what follows."""
        self.status, self.outheaders = status, headers

    def send_headers(self) -> None:
        """Makes the head, as cheroot does; it leaves together with what follows it."""
        code = int(self.status[:3])
        fields = {name.lower(): f"{name}: {value}\r\n" for name, value in self.outheaders}
        is_old = self.response_protocol != "HTTP/1.1"
        if code == 413:
            self.close_connection = True
        elif "content-length" not in fields and code not in _WITHOUT_BODY:
            if is_old or self.method == b"HEAD":
                self.close_connection = True  # only its end tells where the body ends
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

    def _read_body(self, length: int) -> bytes:
        server, reader = self.server, self.conn.rfile
        if self.chunked_read:
            return read_chunked(reader, server.max_request_body_size, server.slow_reads)
        return read_body(reader, length, server.slow_reads)

    def read_request_line(self) -> bool:
        """As cheroot does, with a method that is a token (RFC 9110, 9.1): web.py refuses others in words of its own."""
        understood: bool = super().read_request_line()  # type: ignore[no-untyped-call]
        if understood and not _TOKEN.fullmatch(self.method):
            self.simple_response("400 Bad Request", "Malformed Request-Line: bad method")
            return False
        return understood

    def read_request_headers(self) -> bool:
        """As cheroot does, with a stricter idea of a length: digits only (RFC 9110, 8.6)."""
        understood: bool = super().read_request_headers()  # type: ignore[no-untyped-call]
        if understood and not self.inheaders.get(b"Content-Length", b"0").isdigit():
            self.simple_response("400 Bad Request", "Malformed Content-Length Header.")
            return False
        self.close_connection = self.close_connection or _asks_to_close(self.inheaders)
        return understood

    def simple_response(self, status: str, msg: str = "") -> None:
        code = int(str(status)[:3])
        error = self._error(code, msg or str(status)[4:])
        body = json.dumps(error.body()).encode()
        self.close_connection = True
        self.sent_headers = True
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n"
        origin = self.inheaders.get(b"Origin")
        for name, value in self.server.cors_headers(None if origin is None else origin.decode("latin-1")):
            head += f"{name}: {value}\r\n"
        log.warning("request_refused status=%d reason=%r", code, error.message)
        try:
            self.conn.wfile.write(f"{head}\r\n".encode("latin-1") + body)
        except OSError:
            return  # the client did not wait for it
        self._let_it_arrive()

    def _let_it_arrive(self) -> None:
        """Takes in what the client still sends: closed with bytes unread, the connection would be reset, and the
        client would see that instead of the answer. That holds a thread, so only a part of them does it."""
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

    def _error(self, code: int, message: str) -> ProxyError:
        if code == 413:
            limit = self.server.max_request_body_size
            return RequestTooLarge(None if "headers" in message else limit / 1e6)
        if code == 405:
            return MethodNotAllowed(self.method.decode("latin-1"), self.uri.decode("latin-1"), ("GET", "POST"))
        if code == 408:
            return RequestTimeout("the request came too slowly")
        return InvalidRequest(message)


def _asks_to_close(fields: Mapping[bytes, bytes]) -> bool:
    """Options are words in any letters, with commas between them (RFC 9110, 7.6.1)."""
    return any(option.strip().lower() == b"close" for option in fields.get(b"Connection", b"").split(b","))


@functools.lru_cache(maxsize=1)
def _date_and_server(now_s: int) -> str:
    """What is the same in all answers of a second."""
    return f"Date: {formatdate(now_s, usegmt=True)}\r\nServer: systemd-llm-switch\r\n"
