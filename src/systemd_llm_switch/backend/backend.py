"""A backend: one llama-server's HTTP side. Owns its readiness and its connections.

Knows nothing of units, scheduling or repair. Readiness uses `requests`. Forwarded requests use sockets of our own
(`exchange`), which is also faster (docs/performance.md).
"""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from systemd_llm_switch.backend.exchange import BackendDeadline, BackendLost, Bounds, Exchange, Message
from systemd_llm_switch.backend.health import HealthCheck, HealthReply
from systemd_llm_switch.waiting import Client, remaining_s

# llama-server closes an idle connection after 5 s. A connection that is reused at that moment would lose the race.
_MAX_IDLE_S = 4.0
_CONNECT_TIMEOUT_S = 5.0
_PEEK_NOW = int(socket.MSG_DONTWAIT | socket.MSG_PEEK)


class Backend:
    """The HTTP side of the llama-server at one URL, with its idle connections. Thread-safe."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """`key` is the API key that it needs. It is sent with each request, and never logged or shown."""
        self.url = url
        self._authorization = {} if key is None else {"Authorization": f"Bearer {key}"}
        parts = urlsplit(url)
        self.port = parts.port or 80
        self._address = (parts.hostname or "127.0.0.1", self.port)
        self._host = parts.netloc
        self._idle: deque[tuple[socket.socket, float]] = deque()
        self._health = HealthCheck(url)

    def readiness(self, timeout_s: float = 2.0) -> HealthReply:
        """Asks `/health` once. Never raises."""
        return self._health.ask(timeout_s, self._authorization)

    def ask(
        self,
        message: Message,
        client: Client,
        bounds: Bounds,
        on_sent: Callable[[Exchange], None] = lambda _: None,
    ) -> Exchange:
        """Sends a request and waits until its reply begins. The caller must close the exchange.

        `on_sent` is called with each exchange after its request was sent. There may be two exchanges: if a kept
        connection ends before the first byte of the reply, it was closed as idle, and the request is sent again on a
        new one.

        Raises:
            BackendLost, BackendDeadline, ReplyTooLarge, ClientGone
        """
        was_unread = True
        sock = self._take_idle()
        if sock is not None:
            try:
                return self._ask_on(sock, message, client, bounds, on_sent, is_new=False)
            except BackendLost as lost:
                if not lost.was_idle:
                    raise
                was_unread = lost.was_unread
        try:
            sock = self._connect(bounds.deadline)
            return self._ask_on(sock, message, client, bounds, on_sent, is_new=True)
        except BackendLost as lost:
            lost.was_unread = lost.was_unread and was_unread  # a process that died may have read the first one
            raise

    def _ask_on(
        self,
        sock: socket.socket,
        message: Message,
        client: Client,
        bounds: Bounds,
        on_sent: Callable[[Exchange], None],
        *,
        is_new: bool,
    ) -> Exchange:
        pieces = (message.head({"Host": self._host, **self._authorization}), message.body)
        exchange = Exchange(self.keep, sock, client, bounds, pieces, is_new)
        try:
            exchange.send_some()
            on_sent(exchange)
            exchange.begin()
        except BaseException:
            exchange.close()
            raise
        return exchange

    def keep(self, sock: socket.socket) -> None:
        """Keeps a connection whose reply was read to its end, and closes those that are too old by now."""
        now = time.monotonic()
        self._idle.append((sock, now))
        try:
            while self._idle[0][1] < now - _MAX_IDLE_S:
                self._idle.popleft()[0].close()
        except IndexError:
            return  # other threads took them meanwhile

    def drop_idle(self) -> None:
        """Closes the idle connections, because their process has ended or is about to."""
        while self._idle:
            try:
                self._idle.pop()[0].close()
            except IndexError:
                return

    def is_silent(self) -> bool:
        """Whether nothing listens at the URL. A listener that is too busy to accept counts as listening.

        Raises:
            OSError: no file descriptor is left, so it cannot be checked.
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
        """A blocking socket: with a timeout of Python's, MSG_DONTWAIT would wait."""
        left_s = remaining_s(deadline)
        timeout_s = min(_CONNECT_TIMEOUT_S, left_s)
        if timeout_s == 0:
            raise BackendDeadline
        try:
            sock = socket.create_connection(self._address, timeout=timeout_s)
        except TimeoutError as error:
            # It listens, but its queue of connections stays full: it hangs.
            reason = "" if timeout_s == left_s else f"did not accept a connection within {timeout_s:g} s"
            raise BackendDeadline(reason) from error
        except OSError as error:
            raise BackendLost(error, was_unread=isinstance(error, ConnectionError)) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(None)
        return sock

    def _take_idle(self) -> socket.socket | None:
        oldest_good = time.monotonic() - _MAX_IDLE_S
        while self._idle:
            try:
                sock, idle_since = self._idle.pop()  # the youngest, so that the others may age out
            except IndexError:
                return None
            if idle_since >= oldest_good and _is_quiet(sock):
                return sock
            sock.close()
        return None


def _is_quiet(sock: socket.socket) -> bool:
    """Whether the peer neither closed an idle connection nor sent unrequested bytes on it."""
    try:
        sock.recv(1, _PEEK_NOW)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
