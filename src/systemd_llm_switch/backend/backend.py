"""A backend: one llama-server's HTTP side. Readiness, connections, and what is sent on them.

Knows nothing of units, scheduling or repair. Readiness uses `requests`; what is forwarded goes over sockets of our
own (`exchange`), which is also quicker (docs/performance.md).
"""

from __future__ import annotations

import enum
import errno
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests

from systemd_llm_switch.backend.exchange import BackendDeadline, BackendLost, Exchange
from systemd_llm_switch.waiting import Client, remaining_s

# llama-server closes an idle connection after 5 s; reusing one at that moment would lose the race.
_MAX_IDLE_S = 4.0
_CONNECT_TIMEOUT_S = 5.0
_PEEK_NOW = int(socket.MSG_DONTWAIT | socket.MSG_PEEK)


class Readiness(enum.Enum):
    """What `/health` says (llama-server: 503 while it loads, 200 when ready)."""

    SILENT = "silent"
    LOADING = "loading"
    READY = "ready"


class Backend:
    """The HTTP side of whatever listens at one URL, with its idle connections. Thread-safe."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self.port = parts.port or 80
        self._address = (parts.hostname or "127.0.0.1", self.port)
        self._host = parts.netloc
        self._idle: deque[tuple[socket.socket, float]] = deque()
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy variable must not send loopback traffic elsewhere
        self._session_lock = threading.Lock()

    def readiness(self, timeout_s: float = 2.0) -> Readiness:
        """Asks `/health` once. Never raises."""
        try:
            with self._session_lock, self._session:  # which closes its connections, and may be used again
                reply = self._session.get(f"{self.url}/health", timeout=timeout_s, headers={"Connection": "close"})
        except requests.RequestException as error:
            _let_go(error)
            # Otherwise something listens, but is too busy to say so in time.
            return Readiness.SILENT if isinstance(error, requests.ConnectionError) else Readiness.LOADING
        return Readiness.READY if reply.status_code == 200 else Readiness.LOADING

    def send(
        self, method: str, path: str, body: bytes, content_type: str, client: Client, deadline: float
    ) -> Iterator[Exchange]:
        """Sends a request, at most twice: an idle connection may turn out to have been closed by the backend,
        and then nothing of the request was seen by it.

        Yields the exchange to wait on; the caller asks for the next one only when `begin()` raised BackendLost.

        Raises:
            BackendLost: no connection.
            BackendDeadline: none in time.
        """
        message = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode("latin-1", "replace") + body
        sock = self._take_idle()
        if sock is not None:
            exchange = Exchange(self.give_back, sock, client, deadline, message, is_new=False)
            try:
                exchange.send_some()
            except BackendLost:
                exchange.close()
            else:
                yield exchange
        exchange = Exchange(self.give_back, self._connect(deadline), client, deadline, message, is_new=True)
        try:
            exchange.send_some()
        except BackendLost:
            exchange.close()
            raise
        yield exchange

    def give_back(self, sock: socket.socket) -> None:
        """Keeps a connection whose reply was read to its end, and none that are too old by now."""
        now = time.monotonic()
        self._idle.append((sock, now))
        try:
            while self._idle[0][1] < now - _MAX_IDLE_S:
                self._idle.popleft()[0].close()
        except IndexError:
            return  # others took them meanwhile

    def drop_idle(self) -> None:
        """Closes the idle connections: the process behind them is gone, or about to be."""
        while self._idle:
            try:
                self._idle.pop()[0].close()
            except IndexError:
                return

    def is_silent(self) -> bool:
        """Whether nothing at all listens at the URL; a listener too busy to accept does.

        Raises:
            OSError: there is no room for one more open file to see it with.
        """
        try:
            socket.create_connection(self._address, timeout=1).close()
        except ConnectionRefusedError:
            return True
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise
        return False

    def _connect(self, deadline: float) -> socket.socket:
        """A blocking socket: with a time-out of Python's, MSG_DONTWAIT would wait."""
        left_s = remaining_s(deadline)
        timeout_s = min(_CONNECT_TIMEOUT_S, left_s)
        if timeout_s == 0:
            raise BackendDeadline
        try:
            sock = socket.create_connection(self._address, timeout=timeout_s)
        except TimeoutError as error:
            # It listens, and has accepted none for so long that no more may wait: as wedged as one that is silent.
            told = "" if timeout_s == left_s else f"did not accept a connection within {timeout_s:g} s"
            raise BackendDeadline(told) from error
        except OSError as error:
            raise BackendLost(error, was_unread=isinstance(error, ConnectionError)) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(None)
        return sock

    def _take_idle(self) -> socket.socket | None:
        oldest_good = time.monotonic() - _MAX_IDLE_S
        while self._idle:
            try:
                sock, idle_since = self._idle.pop()  # the youngest: the others may age and go
            except IndexError:
                return None
            if idle_since >= oldest_good and _is_quiet(sock):
                return sock
            sock.close()
        return None


def _is_quiet(sock: socket.socket) -> bool:
    """Whether the peer neither closed an idle connection nor sent anything unasked."""
    try:
        sock.recv(1, _PEEK_NOW)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _let_go(error: BaseException | None) -> None:
    """urllib3's errors and their frames hold each other, and the callers' frames with all that is in them, until
    Python's collector comes; for a watched process that is a file descriptor."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
