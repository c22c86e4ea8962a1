"""One connection as cheroot holds it, and the idle connections. `request` serves the requests on them."""

from __future__ import annotations

import errno
import logging
import math
import select
import socket
import time
from typing import Any

from cheroot import connections
from cheroot import server as cheroot_server

from systemd_llm_switch.http_server.reading import RequestReader
from systemd_llm_switch.http_server.request import ServedRequest
from systemd_llm_switch.http_server.writing import ReplyWriter

log = logging.getLogger(__name__)

# The errors of accept(2) when there are too many open files or too little memory.
_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_NO_ROOM_PAUSE_S = 0.05
_NO_ROOM_QUIET_S = 10.0


class Connection(cheroot_server.HTTPConnection):
    RequestHandlerClass = ServedRequest
    is_fresh = True  # not yet looked at since it was accepted

    def __init__(self, server: Any, sock: socket.socket, makefile: object = None) -> None:
        super().__init__(server, sock, lambda *_: None)
        del self.resolve_peer_creds, self.get_peer_creds  # caches that hold the connection itself; not for TCP
        sock.settimeout(None)
        self.rfile = RequestReader(sock, server.timeout)
        self.wfile = ReplyWriter(sock, server.slow_writes)

    def close(self) -> None:
        """Never raises, for the same reason as `Server.put_conn`."""
        try:
            super().close()
        except OSError as error:
            log.info("connection_lost reason=%r", str(error))


class IdleConnections(connections.ConnectionManager):
    """The idle connections, which hold no thread. A new one beyond the limit closes the one that was idle longest, so a
    client that opens many and sends nothing does not keep others out. Used by the selector's thread."""

    _quiet_until = -math.inf

    def _from_server_socket(self, server_socket: socket.socket) -> Any:
        if not self.can_add_keepalive_connection:
            self._close_longest_idle()
        try:
            return super()._from_server_socket(server_socket)  # type: ignore[misc]
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._log_no_room(error)
            if not self._close_longest_idle():
                time.sleep(_NO_ROOM_PAUSE_S)  # without it, accept() would fail a hundred thousand times a second
            return None

    def _log_no_room(self, error: OSError) -> None:
        if time.monotonic() > self._quiet_until:
            log.warning("no_room_for_a_connection reason=%r", error.strerror)
            self._quiet_until = time.monotonic() + _NO_ROOM_QUIET_S

    def _close_longest_idle(self) -> bool:
        selector = self._selector  # type: ignore[attr-defined]
        idle = [(conn.last_used, fd, conn) for fd, conn in selector.connections if conn is not self.server]
        for _, fd, conn in sorted(idle, key=lambda it: it[0]):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(0):  # a readable connection may be about to be served
                selector.unregister(fd)
                conn.close()
                return True
        return False
