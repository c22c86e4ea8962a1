"""cheroot: the listening socket, the threads, an orderly end; and what systemd wants to know of it.

Knows HTTP's wire and nothing of routes or models. A request that waits holds a thread, so there are as many as
requests may wait and run, and a reserve that keeps /health and /v1/models answering.
"""

from __future__ import annotations

import errno
import http.client
import io
import json
import logging
import math
import re
import resource
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from cheroot import connections, wsgi
from cheroot import server as cheroot_server

from systemd_llm_switch.errors import InvalidRequest, MethodNotAllowed, ProxyError, RequestTimeout, RequestTooLarge
from systemd_llm_switch.handlers import CLIENT_FD, Wsgi
from systemd_llm_switch.notify import notify, watchdog_interval_s
from systemd_llm_switch.reading import (
    HEAD_TIMEOUT_S,
    Malformed,
    RequestReader,
    SlowReads,
    TooLarge,
    TooSlow,
    Truncated,
    read_body,
    read_chunked,
)
from systemd_llm_switch.threads import GrowingPool

log = logging.getLogger(__name__)

RESERVE_THREADS = 48
_BACKLOG = 512
_IDLE_CONNECTIONS = 512
# A client may pause for so long, between its requests and within one.
_SOCKET_TIMEOUT_S = 30
_MAX_HEADER_BYTES = 64 * 1024
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LINGER_S = 2.0
_LINGER_BYTES = 1 << 20
# Of the reserve, so many threads may wait for slow senders, and so many linger: the rest of it answers /health.
_SLOW_READS = 24
_LINGERING = 8
# What accept() fails with while there are too many open files or too little memory: accept(2).
_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_NO_ROOM_PAUSE_S = 0.05
_NO_ROOM_QUIET_S = 10.0
# Open files: a request has its client's connection, its backend's, and what it waits on. That is far fewer than
# _FILES, unless very many requests may wait.
_FILES_A_THREAD = 3
_FILES = 8192
# Running requests may take so long to end after SIGTERM; TimeoutStopSec= of the unit is longer.
SHUTDOWN_TIMEOUT_S = 25


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
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        log.warning("request_refused status=%d reason=%r", code, error.message)
        try:
            self.conn.wfile.write(head.encode("latin-1") + body)
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


class _Connection(cheroot_server.HTTPConnection):
    RequestHandlerClass = _Request
    is_fresh = True  # not yet looked at since it was accepted

    def __init__(self, server: Server, sock: socket.socket, makefile: object = None) -> None:
        super().__init__(server, sock)
        self.rfile = RequestReader(sock)

    def close(self) -> None:
        """Never raises, for the same reason as `Server.put_conn`."""
        try:
            super().close()
        except OSError as error:
            log.info("connection_lost reason=%r", str(error))


class _Connections(connections.ConnectionManager):
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


class _Gateway(wsgi.Gateway_10):
    def get_environ(self) -> dict[str, object]:  # type: ignore[override]
        environ: dict[str, object] = super().get_environ()  # type: ignore[no-untyped-call]
        environ[CLIENT_FD] = self.req.conn.socket.fileno()
        environ["wsgi.input"] = io.BytesIO(self.req.body)
        return environ


class Server(wsgi.Server):
    """cheroot with our sizes, our errors and our log.

    `max_body_bytes` is asked for each request: the config may change. `admits` tells from a request's WSGI environ
    whether the application would let it in, before its body is read.
    """

    ConnectionClass = _Connection
    keep_alive_conn_limit = _IDLE_CONNECTIONS
    max_request_header_size = _MAX_HEADER_BYTES

    def __init__(
        self,
        host: str,
        port: int,
        application: Wsgi,
        threads: int,
        max_body_bytes: Callable[[], int],
        admits: Callable[[dict[str, Any]], bool],
    ) -> None:
        """`threads` is their limit."""
        super().__init__(
            (host, port),
            application,
            server_name="systemd-llm-switch",
            request_queue_size=_BACKLOG,
            timeout=_SOCKET_TIMEOUT_S,
            shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        )
        self.requests = GrowingPool(self, threads)
        self.gateway = _Gateway
        self._max_body_bytes = max_body_bytes
        self._admits = admits
        self._is_stopping = False
        self._has_stopped = threading.Event()
        self.slow_reads = SlowReads(_SLOW_READS)
        self.lingering = threading.BoundedSemaphore(_LINGERING)

    @property
    def max_request_body_size(self) -> int:  # type: ignore[override]
        """Bytes; cheroot refuses a larger body before it reads it."""
        return self._max_body_bytes()

    def admits(self, request: _Request) -> bool:
        """Whether the application would let a request in."""
        return self._admits(self.gateway(request).env)

    def prepare(self) -> None:
        """Listens, with room for as many connections as there may be.

        Raises:
            OSError: the address cannot be had.
        """
        _allow_files(max(_FILES, self.keep_alive_conn_limit + int(self.requests.max) * _FILES_A_THREAD))
        super().prepare()
        self._connections.close()  # type: ignore[has-type]
        self._connections = _Connections(self)

    def process_conn(self, conn: _Connection) -> None:
        """Has a thread serve a connection; a new one only when it has said something."""
        if conn.is_fresh:
            conn.is_fresh = False
            self._connections.put(conn)
        else:
            super().process_conn(conn)

    def put_conn(self, conn: cheroot_server.HTTPConnection) -> None:
        """Keeps a connection for its next request. An error here would end the server (cheroot calls it in a
        `finally` of its threads); it is this connection's alone."""
        try:
            super().put_conn(conn)
        except Exception:
            log.exception("connection_lost")
            conn.close()

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        log.log(level, "server %s", msg, exc_info=traceback)

    def allow_threads(self, count: int) -> None:
        """Another limit, for a longer or shorter queue."""
        self.requests.max = count

    def stop(self) -> None:
        """Ends it in order, from another thread; also when it has not yet begun to serve."""
        self._is_stopping = True
        if self.ready:
            super().stop()
            self._has_stopped.set()

    def run(self) -> None:
        """Serves, once prepared, until `stop()` was called from another thread and has ended what runs; tells systemd
        on the way."""
        interval_s = watchdog_interval_s()
        if interval_s is not None:
            threading.Thread(target=self._watch, args=(interval_s,), name="watchdog", daemon=True).start()
        notify("READY=1")
        if self._is_stopping:  # told so while it was being prepared, when there was nothing to stop
            self.stop()
        self.serve()
        self._has_stopped.wait()

    def _watch(self, interval_s: float) -> None:
        """Tells systemd's watchdog that we live as long as /health really answers."""
        pause = threading.Event()
        host, port = self.bind_addr[:2]
        while self.ready:
            if _answers(host, port, interval_s):
                notify("WATCHDOG=1")
            pause.wait(interval_s)


def _answers(host: str, port: int, timeout_s: float) -> bool:
    connection = http.client.HTTPConnection(_reachable(host), port, timeout=timeout_s)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        log.error("watchdog /health does not answer")
        return False
    finally:
        connection.close()


def _reachable(host: str) -> str:
    """An address to reach a bind address by."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _allow_files(count: int) -> None:
    """Raises the limit of open files as far as it may be; systemd's usual one, 1024, is for select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def describe_bind_error(host: str, port: int, error: OSError) -> str:
    """Why the port cannot be had, and the next step."""
    try:
        socket.create_connection((_reachable(host), port), timeout=1).close()
        in_use = True
    except OSError:
        in_use = False
    if in_use:
        return (
            f"port {port} is taken by another program; find it with `ss -ltnp 'sport = :{port}'`, stop it, or set "
            f"server.port"
        )
    return f"cannot listen on {host}:{port}: {error}"
