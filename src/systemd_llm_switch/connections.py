"""A connection as cheroot serves it: its requests, read bounded and refused in OpenAI's shape; and the idle ones.

Knows HTTP's wire and nothing of routes or models.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import re
import select
import socket
import time
from typing import Any

from cheroot import connections
from cheroot import server as cheroot_server

from systemd_llm_switch.errors import InvalidRequest, MethodNotAllowed, ProxyError, RequestTimeout, RequestTooLarge
from systemd_llm_switch.reading import (
    HEAD_TIMEOUT_S,
    Malformed,
    RequestReader,
    TooLarge,
    TooSlow,
    Truncated,
    read_body,
    read_chunked,
)
from systemd_llm_switch.writing import ReplyWriter

log = logging.getLogger(__name__)

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LINGER_S = 2.0
_LINGER_BYTES = 1 << 20
# What accept() fails with while there are too many open files or too little memory: accept(2).
_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_NO_ROOM_PAUSE_S = 0.05
_NO_ROOM_QUIET_S = 10.0


class _Request(cheroot_server.HTTPRequest):
    """One request: read as a whole before it is served, refused in OpenAI's shape."""

    body = b""

    def parse_request(self) -> None:
        """Reads the request line and headers, bounded."""
        reader = self.conn.rfile
        if reader.has_whole_head():
            super().parse_request()
            return
        try:
            with self.server.slow_reads.patience(reader, HEAD_TIMEOUT_S):
                super().parse_request()
        except TooSlow:
            self.simple_response("408 Request Timeout")

    def respond(self) -> None:
        """Reads the body, bounded, and serves."""
        self.rfile = None  # nothing is left to read for cheroot
        if not self._has_whole_body() and not self.server.admits(self):
            # The application refuses it too. Whoever may not come in cannot make us wait for a body, nor hold it.
            self.close_connection = True
            self._serve()
            self._let_it_arrive()
            return
        try:
            self.body = self._read_body()
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

    def send_headers(self) -> None:
        """They leave together with what follows them."""
        self.conn.wfile.hold()
        super().send_headers()

    def _has_whole_body(self) -> bool:
        length = int(self.inheaders.get(b"Content-Length", 0))
        has_it: bool = not self.chunked_read and self.conn.rfile.has_bytes(length)
        return has_it

    def _read_body(self) -> bytes:
        server, reader = self.server, self.conn.rfile
        if self.chunked_read:
            return read_chunked(reader, server.max_request_body_size, server.slow_reads)
        length = int(self.inheaders.get(b"Content-Length", 0))
        return read_body(reader, length, server.slow_reads) if length else b""

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
            is_head = "headers" in message
            return InvalidRequest("the request's headers are too long") if is_head else RequestTooLarge(limit / 1e6)
        if code == 405:
            return MethodNotAllowed(self.method.decode("latin-1"), self.uri.decode("latin-1"), ("GET", "POST"))
        if code == 408:
            return RequestTimeout("the request came too slowly")
        return InvalidRequest(message)


class Connection(cheroot_server.HTTPConnection):
    RequestHandlerClass = _Request
    is_fresh = True  # not yet looked at since it was accepted

    def __init__(self, server: Any, sock: socket.socket, makefile: object = None) -> None:
        super().__init__(server, sock, lambda *_: None)
        del self.resolve_peer_creds, self.get_peer_creds  # caches that hold the connection itself; not for TCP
        sock.settimeout(None)
        self.rfile = RequestReader(sock, server.timeout)
        self.wfile = ReplyWriter(sock, server.timeout)

    def close(self) -> None:
        """Never raises, for the same reason as `Server.put_conn`."""
        try:
            super().close()
        except OSError as error:
            log.info("connection_lost reason=%r", str(error))


class IdleConnections(connections.ConnectionManager):
    """The idle connections, which hold no thread. For one more than there may be, the one that has been idle longest
    is closed: whoever opens many and says nothing keeps nobody else out. Used by the selector's thread."""

    _quiet_until = -math.inf

    def _from_server_socket(self, server_socket: socket.socket) -> Any:
        if not self.can_add_keepalive_connection:
            self._close_longest_idle()
        try:
            return super()._from_server_socket(server_socket)  # type: ignore[misc]
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._tell_no_room(error)
            if not self._close_longest_idle():
                time.sleep(_NO_ROOM_PAUSE_S)  # or it would be tried again a hundred thousand times a second
            return None

    def _tell_no_room(self, error: OSError) -> None:
        if time.monotonic() > self._quiet_until:
            log.warning("no_room_for_a_connection reason=%r", error.strerror)
            self._quiet_until = time.monotonic() + _NO_ROOM_QUIET_S

    def _close_longest_idle(self) -> bool:
        selector = self._selector  # type: ignore[attr-defined]
        idle = [(conn.last_used, fd, conn) for fd, conn in selector.connections if conn is not self.server]
        for _, fd, conn in sorted(idle, key=lambda it: it[0]):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(0):  # else the selector may have found it already, and is about to serve it
                selector.unregister(fd)
                conn.close()
                return True
        return False
