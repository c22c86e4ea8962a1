"""One request under way at a backend: sent, waited for, read, cancelled. Knows HTTP/1.1 and one connection.

`http.client`'s parser over a socket of our own: a wait must watch the client's connection together with the
backend's (`waiting.Client`), and nothing may block inside a reply that comes in pieces.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from systemd_llm_switch.waiting import Client, remaining_s

_RECV_BYTES = 65536
_MAX_CHUNK_LINE = 65536


class BackendLost(Exception):
    """The connection broke, or could not be made: the process died, was stopped, or refuses.

    `was_unread` says that the backend never read the request.
    """

    def __init__(self, reason: BaseException | str, *, was_unread: bool = False) -> None:
        super().__init__(reason if isinstance(reason, str) else _describe(reason))
        self.was_unread = was_unread


class BackendDeadline(Exception):
    """No (whole) reply within the request's time; or, told in the message, no connection within a shorter one."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply of the backend."""

    status: int
    content_type: str
    body: bytes


class _CancellableSocket(io.RawIOBase):
    """The reading side of a socket: each blocking read also ends with the client, or at the deadline."""

    def __init__(self, sock: socket.socket, client: Client, deadline: float) -> None:
        self._sock = sock
        self._client = client
        self._deadline = deadline
        self.may_block = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]
        while True:
            try:
                return self._sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not self.may_block:
                    return None
            if not self._client.wait_readable(self._sock.fileno(), remaining_s(self._deadline)):
                raise BackendDeadline

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        """What `http.client.HTTPResponse` asks a socket for."""
        return io.BufferedReader(self, _RECV_BYTES)


class _Chunks:
    """Takes the frame of chunks off a body (RFC 9112, 7.1), however the pieces come. `http.client` does that only
    with a read that blocks within the frame, where no keep-alive could be sent."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._left = 0  # of the current chunk's data
        self._is_data_over = False  # the line end after it is due
        self._is_in_trailer = False
        self.is_over = False

    def feed(self, received: bytes) -> bytes:
        """The data in it.

        Raises:
            ValueError: these are no chunks.
        """
        self._rest += received
        data = bytearray()
        while self._rest and not self.is_over:
            if self._left:
                piece = self._rest[: self._left]
                data += piece
                self._left -= len(piece)
                self._is_data_over = not self._left
                del self._rest[: len(piece)]
                continue
            end = self._rest.find(b"\n") + 1
            if not end:
                if len(self._rest) > _MAX_CHUNK_LINE:
                    raise ValueError("a chunk's line is too long")
                break
            self._take_line(bytes(self._rest[:end]).strip())
            del self._rest[:end]
        return bytes(data)

    def _take_line(self, line: bytes) -> None:
        if self._is_in_trailer:
            self.is_over = not line
        elif self._is_data_over:
            if line:
                raise ValueError("a chunk is longer than it said")
            self._is_data_over = False
        else:
            self._left = int(line.partition(b";")[0], 16)
            if self._left < 0:
                raise ValueError("a chunk's length is negative")
            self._is_in_trailer = not self._left


class Exchange:
    """One request that is under way at the backend. Used by one thread, but for `abort`. `is_new` tells that its
    connection was made for it; `give_back` takes a connection that may serve another.

    What of the request the backend does not take at once is sent while the reply is waited for: a backend that reads
    nothing holds up neither the client's keep-alives, nor its disconnect, nor `abort`.

    Raises, from every method that waits: ClientGone, BackendLost, BackendDeadline. After any of them, and after
    `close()` before the end of the reply, the connection is closed: that is what makes llama-server stop
    generating.
    """

    def __init__(
        self,
        give_back: Callable[[socket.socket], None],
        sock: socket.socket,
        client: Client,
        deadline: float,
        method: str,
        message: bytes,
        is_new: bool,
    ) -> None:
        self._keep = give_back
        self.is_new = is_new
        self._sock: socket.socket | None = sock
        # `abort` comes from another thread: it must not meet a socket that is another request's by then.
        self._sock_lock = threading.Lock()
        self._raw = _CancellableSocket(sock, client, deadline)
        self._client = client
        self._deadline = deadline
        self._unsent = memoryview(message)
        self._chunks = _Chunks()
        self._response = http.client.HTTPResponse(self._raw, method=method)  # type: ignore[arg-type]

    def send_some(self) -> None:
        """Sends what the connection takes now; `wait` sends the rest. Does not block."""
        try:
            sent = self._open_socket.send(self._unsent, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self.close()
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
        try:
            if self._unsent and not self.wait(remaining_s(self._deadline)):
                raise BackendDeadline
            self._response.begin()
        except (http.client.HTTPException, OSError, ValueError) as error:
            was_unread = bool(self._unsent) or self._was_reset(error)
            self.close()
            raise BackendLost(error, was_unread=was_unread) from error
        except BaseException:
            self.close()
            raise

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def content_type(self) -> str:
        """The only header of a reply that is handed on: the others are about this hop, or llama-server's own
        idea of CORS."""
        return self._response.getheader("content-type") or "application/json"

    @property
    def is_event_stream(self) -> bool:
        """Whether the reply comes as events, while it is written."""
        return self.status == 200 and self.content_type.startswith("text/event-stream")

    def _was_reset(self, error: Exception) -> bool:
        """Whether the kernel behind the connection said that bytes were not read: it answers with a reset where a
        process ends and leaves some, or where they come after its end, and with an orderly close where all were
        read (RFC 1122, 4.2.2.13). A reset that follows such a close is pending behind it (tcp(7): EPIPE)."""
        if isinstance(error, http.client.RemoteDisconnected):
            return self._sock is not None and self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        return isinstance(error, ConnectionError)

    def read(self) -> Reply:
        """Reads the rest of the reply and gives the connection back."""
        try:
            body = self._response.read()
        except (http.client.HTTPException, OSError, ValueError) as error:
            self.close()
            raise BackendLost(error) from error
        except BaseException:
            self.close()
            raise
        self._give_back()
        return Reply(self._response.status, self.content_type, body)

    def read_some(self, patience_s: float) -> bytes | None:
        """Reads what has come of the reply's body: b"" at its end, None when nothing came for `patience_s`."""
        try:
            data = self._receive(time.monotonic() + patience_s)
        except (http.client.HTTPException, OSError, ValueError) as error:
            self.close()
            raise BackendLost(error) from error
        except BaseException:
            self.close()
            raise
        if data == b"":
            self._give_back()
        return data

    def _receive(self, until: float) -> bytes | None:
        response = self._response
        fp = response.fp
        if response.chunked:
            while not self._chunks.is_over:
                if not self._can_receive(until):
                    return None
                received = fp.read1(_RECV_BYTES)
                if not received:
                    raise http.client.IncompleteRead(b"")
                if data := self._chunks.feed(received):
                    return data
            return b""
        if fp is None or response.length == 0:
            return b""  # the connection stays open: nothing more would come
        if not self._can_receive(until):
            return None
        data = response.read1(_RECV_BYTES)
        if not data and response.length:
            raise http.client.IncompleteRead(b"")
        return data

    def close(self) -> None:
        """Drops the connection unless the reply was read to its end. Idempotent."""
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
    def is_open(self) -> bool:
        return self._sock is not None

    @property
    def _open_socket(self) -> socket.socket:
        if self._sock is None:
            raise BackendLost("the connection is closed")
        return self._sock

    def _can_receive(self, until: float) -> bool:
        """Blocks until bytes of the body, or the connection's end, can be read (True) or until then (False)."""
        self._raw.may_block = False
        try:
            if self._response.fp.peek(1):
                return True
        finally:
            self._raw.may_block = True
        return self.wait(remaining_s(until))

    def _take_socket(self) -> socket.socket | None:
        with self._sock_lock:
            sock, self._sock = self._sock, None
            return sock

    def _give_back(self) -> None:
        sock = self._take_socket()
        if sock is not None:
            if self._response.will_close or self._unsent:
                sock.close()
            else:
                self._keep(sock)


def _describe(error: BaseException) -> str:
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    if isinstance(error, http.client.IncompleteRead):
        return "the reply ended early"
    return str(error) or type(error).__name__
