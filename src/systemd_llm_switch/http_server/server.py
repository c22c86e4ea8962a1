"""cheroot: the listening socket, the threads, the orderly shutdown, and the messages to systemd.

Must not know routes or models. A request that waits holds a thread. So there is one thread for each request that may
wait or run, and a reserve that keeps /health and /v1/models answering.
"""

from __future__ import annotations

import http.client
import logging
import resource
import socket
import threading
from http import HTTPStatus
from typing import Any

from cheroot import wsgi

from systemd_llm_switch.addresses import reachable
from systemd_llm_switch.http_server.body import BodyBudget
from systemd_llm_switch.http_server.connections import Connection, IdleConnections
from systemd_llm_switch.http_server.gateway import Gateway, ServedApplication, surroundings
from systemd_llm_switch.http_server.memory import Trimmer, return_large_blocks
from systemd_llm_switch.http_server.reading import SlowReads
from systemd_llm_switch.http_server.threadpool import GrowingPool
from systemd_llm_switch.http_server.writing import SlowWrites
from systemd_llm_switch.systemd.notify import notify, watchdog_interval_s
from systemd_llm_switch.wsgi import SERVER_NAME, Headers

log = logging.getLogger(__name__)

RESERVE_THREADS = 88
_BACKLOG = 512
_IDLE_CONNECTIONS = 512
# How long a client may pause between its requests and within one.
_SOCKET_TIMEOUT_S = 30
_MAX_HEADER_BYTES = 64 * 1024
# How many threads of the reserve may wait for slow senders and for slow readers. Others linger (_LINGERING), stay with
# their connection (`threadpool`), or serve requests that wait outside the application's queue. The rest answer /health.
_SLOW_READS = 24
_SLOW_WRITES = 24
# An answer that fits into this buffer is sent at once, and holds no thread until the client reads it.
_SEND_BUFFER_BYTES = 256 * 1024
_LINGERING = 8
# Open files: a request has its client's connection, its backend's, and the descriptor that it waits on. That is far
# fewer than _FILES, unless very many requests may wait.
_FILES_A_THREAD = 3
_FILES = 8192
# How long running requests may take to end after SIGTERM; the unit's TimeoutStopSec= must be longer.
SHUTDOWN_TIMEOUT_S = 25


class Server(wsgi.Server):
    """cheroot with our sizes, our errors and our log, for one application."""

    ConnectionClass = Connection
    keep_alive_conn_limit = _IDLE_CONNECTIONS
    max_request_header_size = _MAX_HEADER_BYTES

    def __init__(self, host: str, port: int, application: ServedApplication, threads: int) -> None:
        """`threads` is the most threads that it may have."""
        super().__init__(
            (host, port),
            application,
            server_name="systemd-llm-switch",
            request_queue_size=_BACKLOG,
            timeout=_SOCKET_TIMEOUT_S,
            shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        )
        self.requests = GrowingPool(self, threads)
        self.gateway = Gateway
        self.surroundings = surroundings(port)
        self._application = application
        self.budget = BodyBudget()
        self.trimmer = Trimmer()
        self._is_stopping = False
        self._has_stopped = threading.Event()
        self.slow_reads = SlowReads(_SLOW_READS)
        self.slow_writes = SlowWrites(_SLOW_WRITES)
        self.lingering = threading.BoundedSemaphore(_LINGERING)

    @property
    def max_request_body_size(self) -> int:  # type: ignore[override]
        """The size beyond which a body is refused before it is read."""
        return self._application.max_body_bytes()

    def admits(self, request: Any) -> bool:
        """Whether the application allows a request."""
        return self._application.admits(self.gateway(request).environ())

    def cors_headers(self, origin: str | None) -> Headers:
        """What lets a listed page read an answer of the server's own."""
        return self._application.cors_headers(origin)

    def prepare(self) -> None:
        """Listens, and makes room for as many connections as there may be.

        Raises:
            OSError: the address cannot be bound.
        """
        _allow_files(max(_FILES, self.keep_alive_conn_limit + int(self.requests.max) * _FILES_A_THREAD))
        super().prepare()
        # The accepted connections inherit this. The kernel's own buffer starts much smaller and may grow much larger.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._connections.close()  # type: ignore[has-type]
        self._connections = IdleConnections(self)

    def process_conn(self, conn: Connection) -> None:
        """Passes a connection to a thread; a new connection only after it has sent something."""
        if conn.is_fresh:
            conn.is_fresh = False
            self._connections.put(conn)
        else:
            super().process_conn(conn)

    def put_conn(self, conn: Connection) -> None:
        """Keeps a connection for its next request. An error here would end the server, because cheroot calls it in a
        `finally` of its threads. So it only ends this connection."""
        try:
            if not self.requests.stays_with(conn):
                super().put_conn(conn)
        except Exception:
            log.exception("connection_lost")
            conn.close()

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        log.log(level, "server %s", msg, exc_info=traceback)

    def allow_threads(self, count: int) -> None:
        """Sets another limit of threads, for a longer or shorter queue."""
        self.requests.max = count

    def stop(self) -> None:
        """Ends the server in order, also before it has begun to serve. Called from another thread."""
        self._is_stopping = True
        if self.ready:
            super().stop()
            self._has_stopped.set()

    def run(self) -> None:
        """Serves, after `prepare`, until another thread calls `stop()` and that has ended what runs. Keeps systemd
        informed."""
        interval_s = watchdog_interval_s()
        if interval_s is not None:
            threading.Thread(target=self._watch, args=(interval_s,), name="watchdog", daemon=True).start()
        return_large_blocks()
        self.trimmer.start()
        notify("READY=1")
        if self._is_stopping:  # `stop` was called while the server was being prepared
            self.stop()
        self.serve()
        self._has_stopped.wait()

    def _watch(self, interval_s: float) -> None:
        """Notifies systemd's watchdog as long as /health really answers."""
        pause = threading.Event()
        host, port = self.bind_addr[:2]
        while self.ready:
            status, _ = _health(host, port, interval_s)
            if status == HTTPStatus.OK:
                notify("WATCHDOG=1")
            elif not status:
                log.error("watchdog /health does not answer")
            pause.wait(interval_s)


def _health(host: str, port: int, timeout_s: float) -> tuple[int, str]:
    """The status that /health answers there, and what answers calls itself; 0 if nothing answers."""
    connection = http.client.HTTPConnection(reachable(host), port, timeout=timeout_s)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        reply = connection.getresponse()
        return reply.status, reply.getheader("Server", "")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def _allow_files(count: int) -> None:
    """Raises the limit of open files as far as allowed; systemd's default, 1024, is meant for select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def describe_bind_error(host: str, port: int, error: OSError) -> str:
    """Why the port cannot be bound, and the next step."""
    try:
        socket.create_connection((reachable(host), port), timeout=1).close()
        in_use = True
    except OSError:
        in_use = False
    if in_use:
        _, name = _health(host, port, timeout_s=1)
        if name == SERVER_NAME:
            return (
                f"port {port} is taken by a proxy that runs already (`llm-switch status` shows it); stop that one with "
                f"`systemctl --user stop llm-switch`, or set server.port"
            )
        return (
            f"port {port} is taken by another program; find it with `ss -ltnp 'sport = :{port}'`, stop it, or set "
            f"server.port"
        )
    return f"cannot listen on {host}:{port}: {error}"
