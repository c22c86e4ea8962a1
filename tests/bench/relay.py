"""A bare relay: the least that a proxy in Python must do, to separate our own cost from Python's.

    python tests/bench/relay.py PORT BACKEND_PORT

It parses each request and each reply (httptools for HTTP, the json module for JSON), watches the client while it
waits, and does nothing else: no route, no queue, no model, no repair, no journal. A thread a connection.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import threading

from httptools import HttpRequestParser, HttpResponseParser

_RECV_BYTES = 64 * 1024


class _Message:
    """What a parser found."""

    def __init__(self) -> None:
        self.path = ""
        self.fields: dict[bytes, bytes] = {}
        self.pieces: list[bytes] = []
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.path = url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        self.is_complete = True

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def _some(sock: socket.socket) -> bytes:
    """The next bytes. Raises ConnectionError at the connection's end."""
    received = sock.recv(_RECV_BYTES)
    if not received:
        raise ConnectionResetError
    return received


class _Backend:
    """The backend's connection. Made anew when it was closed, as llama-server does after a hundred requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sock = self._connect()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def ask(self, message: bytes, client: socket.socket) -> tuple[int, bytes]:
        """Status and body."""
        while True:
            self.sock.send(message)
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            poll.register(client, select.POLLRDHUP)
            poll.poll()
            received = self.sock.recv(_RECV_BYTES)
            if received:
                break
            self.sock.close()
            self.sock = self._connect()
        reply = _Message()
        parser = HttpResponseParser(reply)
        parser.feed_data(received)
        while not reply.is_complete:
            parser.feed_data(_some(self.sock))
        return parser.get_status_code(), reply.body


def serve(client: socket.socket, backend: _Backend) -> None:
    """One connection, until its client closes it."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client:
        while received := client.recv(_RECV_BYTES):
            request = _Message()
            parser = HttpRequestParser(request)
            parser.feed_data(received)
            while not request.is_complete:
                parser.feed_data(_some(client))
            body = request.body
            if body:
                json.loads(body)
            head = f"POST {request.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            status, answer = backend.ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, client)
            json.loads(answer)
            head = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
            client.sendall(head.encode() + answer)
    backend.sock.close()


def main() -> None:
    port, backend_port = map(int, sys.argv[1:])
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client, _Backend(backend_port)), daemon=True).start()


if __name__ == "__main__":
    main()
