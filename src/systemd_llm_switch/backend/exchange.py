"""One request under way at a backend: sent, waited for, read, cancelled. Knows HTTP/1.1 and one connection.

httptools' parser over a socket of our own: a wait must watch the client's connection together with the backend's
(`waiting.Client`), and nothing may block inside a reply that comes in pieces.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from systemd_llm_switch.waiting import Client, remaining_s

_RECV_BYTES = 64 * 1024


class BackendLost(Exception):
    """The connection broke, or could not be made: the process died, was stopped, or refuses.

    `was_unread` says that the backend never read the request.
    """

    def __init__(self, reason: BaseException | str, *, was_unread: bool = False) -> None:
        super().__init__(str(reason) or type(reason).__name__)
        self.was_unread = was_unread


class BackendDeadline(Exception):
    """No (whole) reply within the request's time; or, told in the message, no connection within a shorter one."""


class Reply(NamedTuple):
    """A whole reply of the backend."""

    status: int
    content_type: str
    body: bytes


class _Incoming:
    """What the parser found of a reply so far. Interim replies (1xx) are passed over."""

    __slots__ = (
        "_has_length",
        "_is_closing",
        "body",
        "content_type",
        "has_head",
        "has_surplus",
        "is_complete",
        "parser",
        "status",
    )

    def __init__(self) -> None:
        self.parser: HttpResponseParser | None = None  # until all is read: they name each other
        self.status = 0
        self.body: list[bytes] = []
        self.has_head = False
        self.is_complete = False
        self.has_surplus = False

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the connection's end tells the body's (RFC 9112, 6.3)."""
        return self.has_head and not self._has_length

    @property
    def leaves_connection(self) -> bool:
        """Whether another request may follow on the connection."""
        return self.is_complete and not self.has_surplus and not self._is_closing

    # What the parser calls; also for what follows a whole reply, which is no part of it.

    def on_message_begin(self) -> None:
        self.has_surplus = self.is_complete
        if not self.is_complete:
            self.content_type = "application/json"
            self._has_length = False
            self._is_closing = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_complete:
            return
        name = name.lower()
        if name == b"content-type":
            self.content_type = value.decode("latin-1")
        elif name in (b"content-length", b"transfer-encoding"):
            self._has_length = True
        elif name == b"connection":
            self._is_closing = b"close" in value.lower()

    def on_headers_complete(self) -> None:
        if self.parser is not None:
            self.status = self.parser.get_status_code()
            self.has_head = self.status >= 200
            self._is_closing = self._is_closing or self.parser.get_http_version() != "1.1"

    def on_body(self, data: bytes) -> None:
        if not self.is_complete:
            self.body.append(data)

    def on_message_complete(self) -> None:
        if self.has_head:
            self.is_complete = True
            self.parser = None


class Exchange:
    """One request that is under way at the backend. Used by one thread, but for `abort`. `is_new` tells that its
    connection was made for it; `give_back` takes a connection that may serve another.

    What of the request the backend does not take at once is sent while the reply is waited for: a backend that reads
    nothing holds up neither the client's keep-alives, nor its disconnect, nor `abort`.

    Whoever has one closes it, whatever comes of it: before the end of the reply, that is what makes llama-server stop
    generating.

    Raises, from every method that waits: ClientGone, BackendLost, BackendDeadline.
    """

    def __init__(
        self,
        give_back: Callable[[socket.socket], None],
        sock: socket.socket,
        client: Client,
        deadline: float,
        message: bytes,
        is_new: bool,
    ) -> None:
        self._keep = give_back
        self.is_new = is_new
        self._sock: socket.socket | None = sock
        # `abort` comes from another thread: it must not meet a socket that is another request's by then.
        self._sock_lock = threading.Lock()
        self._client = client
        self._deadline = deadline
        self._unsent = memoryview(message)
        self._reply = _Incoming()
        self._parser = self._reply.parser = HttpResponseParser(self._reply)
        self._has_begun = False  # anything of the reply came

    def send_some(self) -> None:
        """Sends what the connection takes now; `wait` sends the rest. Does not block."""
        try:
            sent = self._open_socket.send(self._unsent, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            # Half a request is none: nobody acts on it.
            raise BackendLost(error, was_unread=isinstance(error, ConnectionError)) from error
        self._unsent = self._unsent[sent:]

    def wait(self, timeout_s: float) -> bool:
        """Blocks until bytes of the reply can be read (True) or the time is over (False)."""
        fd = self._open_socket.fileno()
        if self._unsent:
            until = time.monotonic() + timeout_s
            while self._unsent:
                is_readable, is_writable = self._client.wait_either(fd, remaining_s(until))
                if not is_writable:
                    return is_readable  # an answer to half a request is one, too: it may be too large
                self.send_some()
            timeout_s = remaining_s(until)
        return self._client.wait_readable(fd, timeout_s)

    def begin(self) -> None:
        """Reads the status line and the headers."""
        if self._unsent and not self.wait(remaining_s(self._deadline)):
            raise BackendDeadline
        while not self._reply.has_head:
            self._take_in()

    @property
    def status(self) -> int:
        return self._reply.status

    @property
    def content_type(self) -> str:
        """The only header of a reply that is handed on: the others are about this hop, or llama-server's own
        idea of CORS."""
        return self._reply.content_type

    @property
    def is_event_stream(self) -> bool:
        """Whether the reply comes as events, while it is written."""
        return self.status == 200 and self.content_type.startswith("text/event-stream")

    def read(self) -> Reply:
        """Reads the rest of the reply and gives the connection back."""
        while not self._reply.is_complete:
            self._take_in()
        self._give_back()
        return Reply(self.status, self.content_type, b"".join(self._reply.body))

    def read_some(self, patience_s: float) -> bytes | None:
        """Reads what has come of the reply's body: b"" at its end, None when nothing came for `patience_s`."""
        reply, until = self._reply, time.monotonic() + patience_s
        while not reply.body and not reply.is_complete:
            received = self._receive()
            if received is not None:
                self._feed(received)
            elif not self.wait(remaining_s(until)):
                return None
        data = b"".join(reply.body)
        reply.body.clear()
        if not data:
            self._give_back()
        return data

    def _take_in(self) -> None:
        """Reads what came; waits for it until the deadline."""
        while (received := self._receive()) is None:
            if not self._client.wait_readable(self._open_socket.fileno(), remaining_s(self._deadline)):
                raise BackendDeadline
        self._feed(received)

    def _receive(self) -> bytes | None:
        """What came: b"" at the connection's end, None while nothing has. Does not block."""
        try:
            return self._open_socket.recv(_RECV_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            was_unread = not self._has_begun and (bool(self._unsent) or isinstance(error, ConnectionError))
            raise BackendLost(error, was_unread=was_unread) from error

    def _feed(self, received: bytes) -> None:
        if not received:
            self._note_end()
            return
        self._has_begun = True
        try:
            self._parser.feed_data(received)
        except (HttpParserError, HttpParserUpgrade) as error:
            # Whatever follows a whole reply is no part of it; the connection is not used again.
            if not self._reply.is_complete:
                raise BackendLost(f"its reply is no HTTP: {error}") from error

    def _note_end(self) -> None:
        """The connection ended: so did the reply, or it is lost."""
        if self._reply.ends_with_connection:
            self._reply.is_complete = self._reply.has_surplus = True
        elif self._has_begun:
            raise BackendLost("the reply ended early")
        else:
            raise BackendLost("it closed the connection without an answer", was_unread=self._was_unread())

    def _was_unread(self) -> bool:
        """Whether the kernel behind an ended connection said that bytes were not read: it answers with a reset where
        a process ends and leaves some, or where they come after its end, and with an orderly close where all were
        read (RFC 1122, 4.2.2.13). A reset that follows such a close is pending behind it (tcp(7): EPIPE)."""
        return bool(self._unsent) or self._open_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def close(self) -> None:
        """Drops the connection unless the reply was read to its end. Idempotent."""
        self._reply.parser = None
        sock = self._take_socket()
        if sock is not None:
            sock.close()

    def abort(self) -> None:
        """Ends the exchange from another thread: whoever waits for it gets BackendLost."""
        with self._sock_lock:
            if self._sock is not None:
                try:
                    self._sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return  # it ended by itself meanwhile

    @property
    def _open_socket(self) -> socket.socket:
        if self._sock is None:
            raise BackendLost("the connection is closed")
        return self._sock

    def _take_socket(self) -> socket.socket | None:
        with self._sock_lock:
            sock, self._sock = self._sock, None
            return sock

    def _give_back(self) -> None:
        sock = self._take_socket()
        if sock is not None:
            if self._reply.leaves_connection and not self._unsent:
                self._keep(sock)
            else:
                sock.close()
