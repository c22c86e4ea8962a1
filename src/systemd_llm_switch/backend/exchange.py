"""One request in progress at a backend: send it, wait for the reply, read it, abort it. Owns one HTTP/1.1 connection.

It is httptools' parser over a plain socket, because a wait must watch the client's connection together with the
backend's (`waiting.Client`), and nothing may block while a reply comes in pieces.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from systemd_llm_switch.backend.incoming import Incoming, NotHttp
from systemd_llm_switch.waiting import Client

_RECV_BYTES = 64 * 1024
# A longer head is refused: the parser copies a header that comes in pieces once more for each piece.
_MAX_HEAD_BYTES = 256 * 1024


class BackendLost(Exception):
    """The connection broke or could not be made: the process died, was stopped, or refuses connections.

    `was_unread`: the kernel says that the backend never read the request.
    `was_idle`: a kept connection ended before one byte of the reply. The backend had closed it as idle, or died.
    """

    def __init__(self, reason: BaseException | str, *, was_unread: bool = False, was_idle: bool = False) -> None:
        super().__init__(str(reason) or type(reason).__name__)
        self.was_unread = was_unread
        self.was_idle = was_idle


class BackendDeadline(Exception):
    """The reply was not complete within the request's time. A message says if a shorter time was over (no
    connection)."""


class ReplyTooLarge(Exception):
    """The reply is larger than allowed."""


class Message(NamedTuple):
    """What is sent to a backend."""

    method: str
    path: str
    body: bytes
    content_type: str
    more: tuple[tuple[str, str], ...] = ()  # further fields

    def head(self, fields: Mapping[str, str]) -> bytes:
        """The request line and the headers: `fields` and those of the body."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
        if self.more:
            lines += "".join([f"{name}: {value}\r\n" for name, value in self.more])
        return (
            f"{self.method} {self.path} HTTP/1.1\r\n{lines}Content-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n\r\n"
        ).encode("latin-1", "replace")


class Bounds(NamedTuple):
    """How long a reply may take (`deadline`, a `time.monotonic`) and how many bytes it may have on the wire."""

    deadline: float
    max_bytes: int


class Reply(NamedTuple):
    """A whole reply of the backend."""

    status: int
    content_type: str
    body: bytes


class Exchange:
    """One request in progress at the backend. One thread uses it; another one may call `abort`, and nothing else.

    `is_new`: the connection was made for this request. `keep` takes a connection that may serve another request.

    What the backend does not read at once is sent while the reply is awaited. So a backend that reads nothing does not
    delay the client's keep-alives, its disconnect or `abort`. The deadline and the client are checked before each read.
    So a backend that never stops sending does not delay them either.

    The owner must always close it. If that happens before the end of the reply, llama-server stops generating.

    Raises, from every method that waits: ClientGone, BackendLost, BackendDeadline, ReplyTooLarge.
    """

    def __init__(
        self,
        keep: Callable[[socket.socket], None],
        sock: socket.socket,
        client: Client,
        bounds: Bounds,
        pieces: tuple[bytes, bytes],
        is_new: bool,
    ) -> None:
        """`pieces`: the head and the body of the request."""
        self._keep = keep
        self.is_new = is_new
        self._sock: socket.socket | None = sock
        # Another thread calls `abort`: it must not close a socket that serves another request by then.
        self._sock_lock = threading.Lock()
        self._is_aborted = False
        self._client = client
        self._deadline, self._max_bytes = bounds
        self._head, self._body = memoryview(pieces[0]), memoryview(pieces[1])
        self._reply = Incoming()
        self._received = 0  # bytes

    # --- the request ----------------------------------------------------------------------------------

    def send_some(self) -> None:
        """Sends what the connection takes now; the waits for the reply send the rest. Does not block."""
        try:
            sent = self._open_socket.sendmsg((self._head, self._body), (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            # An incomplete request is never acted on.
            raise self._lost(error, was_unread=isinstance(error, ConnectionError)) from error
        of_head = min(sent, len(self._head))
        self._head, self._body = self._head[of_head:], self._body[sent - of_head :]

    @property
    def _is_unsent(self) -> bool:
        return bool(self._head or self._body)

    # --- the reply ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Waits for the reply's status line and headers."""
        while not self._reply.has_head:
            self._take_in()

    @property
    def status(self) -> int:
        return self._reply.status

    @property
    def content_type(self) -> str:
        """The client gets this header and `content_encoding`. The others are for this connection, or llama-server's own
        CORS."""
        return self._reply.content_type

    @property
    def content_encoding(self) -> str:
        """Empty unless the request allowed an encoding."""
        return self._reply.content_encoding

    @property
    def is_event_stream(self) -> bool:
        """Whether the reply is a stream of events."""
        return self.status == 200 and self._reply.is_of_events

    def read(self) -> Reply:
        """Waits for the rest of the reply, and releases the connection."""
        while not self._reply.is_complete:
            self._take_in()
        self._release()
        return Reply(self.status, self.content_type, self._reply.take())

    def read_some(self) -> bytes:
        """Waits for the next bytes of the reply's body; b"" at its end."""
        reply = self._reply
        while not reply.has_body and not reply.is_complete:
            self._take_in()
        data = reply.take()
        if not data:
            self._release()
        return data

    def _take_in(self) -> None:
        """Waits until bytes of the reply can be read, and reads them."""
        self._wait()
        try:
            received = self._open_socket.recv(_RECV_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            was_unread = not self._received and (self._is_unsent or isinstance(error, ConnectionError))
            raise self._lost(error, was_unread=was_unread) from error
        if received:
            self._feed(received)
        else:
            self._end()

    def _wait(self) -> None:
        """Blocks until bytes of the reply can be read; sends the rest of the request meanwhile."""
        fd = self._open_socket.fileno()
        while self._is_unsent:
            is_readable, is_writable = self._client.wait_either(fd, self._left_s())
            if is_readable:
                return  # a reply to an incomplete request is valid: the request may be too large
            if is_writable:
                self.send_some()
        if not self._client.wait_readable(fd, self._left_s()):
            raise BackendDeadline

    def _left_s(self) -> float:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise BackendDeadline
        return left_s

    def _feed(self, received: bytes) -> None:
        self._received += len(received)
        if self._received > self._max_bytes:
            raise ReplyTooLarge
        try:
            self._reply.feed(received)
        except NotHttp as error:
            raise BackendLost(f"its reply is not valid HTTP: {error}") from error
        if not self._reply.has_head and self._received > _MAX_HEAD_BYTES:
            raise BackendLost(f"the head of its reply is longer than {_MAX_HEAD_BYTES // 1024} KiB")

    def _end(self) -> None:
        """The connection ended: the reply is complete, or it is lost."""
        if self._reply.ends_with_connection:
            self._reply.end()
        elif self._received:
            raise BackendLost("the reply ended early")
        else:
            raise self._lost("it closed the connection without an answer", was_unread=self._was_unread())

    def _was_unread(self) -> bool:
        """Whether the peer's kernel reported that bytes of the request were not read. If a process ends with unread
        bytes, or bytes come after its end, the kernel sends a reset. If all were read, it closes in order (RFC 1122,
        4.2.2.13). A reset that follows such a close is pending on the socket (tcp(7): EPIPE)."""
        return self._is_unsent or self._open_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def _lost(self, reason: BaseException | str, was_unread: bool) -> BackendLost:
        was_idle = not (self.is_new or self._received or self._is_aborted)
        return BackendLost(reason, was_unread=was_unread, was_idle=was_idle)

    # --- the connection -------------------------------------------------------------------------------

    def close(self) -> None:
        """Drops the connection unless the reply was read to its end. Idempotent."""
        self._reply.close()
        sock = self._take_socket()
        if sock is not None:
            sock.close()

    def abort(self) -> None:
        """Ends the exchange from another thread: its own thread gets BackendLost."""
        with self._sock_lock:
            self._is_aborted = True
            if self._sock is not None:
                try:
                    self._sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return  # the connection ended by itself meanwhile

    @property
    def _open_socket(self) -> socket.socket:
        if self._sock is None:
            raise BackendLost("the connection is closed")
        return self._sock

    def _take_socket(self) -> socket.socket | None:
        with self._sock_lock:
            sock, self._sock = self._sock, None
            return sock

    def _release(self) -> None:
        """Keeps the connection if it may serve another request. A connection that carried events is never kept:
        llama-server closes it a moment after the stream, although it sent `Keep-Alive`, and the next request would be
        lost."""
        sock = self._take_socket()
        if sock is not None:
            if self._reply.leaves_connection and not self._is_unsent and not self._reply.is_of_events:
                self._keep(sock)
            else:
                sock.close()
