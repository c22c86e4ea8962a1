"""A backend whose `/health` is hostile or wedged. Run as a real unit: `python odd_health.py PORT KIND`.

drip      a head that never ends, a byte every 50 ms
body      200 in time, and a body that never ends
mute      accepts, and says nothing
hang-up   accepts, reads the question and closes
bomb      503 with a body of 256 MiB, gzipped
bomb-302  the same as a redirect
redirect  302 to a server that says 200
odd       404
"""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
import sys
import threading
import time

HEAD = "HTTP/1.1 {}\r\nContent-Length: {}\r\n{}\r\n"


def bomb() -> bytes:
    """256 MiB, gzipped."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        for _ in range(16):
            file.write(bytes(1 << 24))
    return packed.getvalue()


def pour(peer: socket.socket, data: bytes, step_s: float) -> None:
    """The same bytes for ever."""
    while True:
        peer.sendall(data)
        time.sleep(step_s)


def answer(peer: socket.socket, kind: str, packed: bytes, elsewhere: int) -> None:
    """One connection."""
    with contextlib.suppress(OSError), peer:
        if not peer.recv(4096):
            return
        if kind == "drip":
            peer.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            pour(peer, b"x", 0.05)
        if kind == "body":
            peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            pour(peer, bytes(1 << 16), 0)
        if kind == "mute":
            time.sleep(3600)
        if kind.startswith("bomb"):
            status = "302 Found" if kind == "bomb-302" else "503 Loading"
            fields = "Content-Encoding: gzip\r\nLocation: /ready\r\n"
            peer.sendall(HEAD.format(status, len(packed), fields).encode() + packed)
        if kind == "redirect":
            peer.sendall(HEAD.format("302 Found", 0, f"Location: http://127.0.0.1:{elsewhere}/\r\n").encode())
        if kind == "odd":
            peer.sendall(HEAD.format("404 Not Found", 0, "").encode())
        if kind == "ready":
            peer.sendall(HEAD.format("200 OK", 0, "").encode())


def serve(port: int, kind: str, packed: bytes = b"", elsewhere: int = 0) -> None:
    """Answers for ever."""
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=answer, args=(peer, kind, packed, elsewhere), daemon=True).start()


def main() -> None:
    """Serves one kind."""
    port, kind = int(sys.argv[1]), sys.argv[2]
    packed = bomb() if kind.startswith("bomb") else b""
    with socket.create_server(("127.0.0.1", 0)) as free:
        elsewhere = free.getsockname()[1]
    threading.Thread(target=serve, args=(elsewhere, "ready"), daemon=True).start()
    serve(port, kind, packed, elsewhere)


if __name__ == "__main__":
    main()
