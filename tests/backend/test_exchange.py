"""Replies as odd as HTTP allows, from a peer that speaks bytes: no request ever gets another one's answer."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from support.stack import free_port
from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.backend.exchange import BackendLost, Bounds, Exchange, Message, Reply
from systemd_llm_switch.backend.incoming import Incoming
from systemd_llm_switch.waiting import Client

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nContent-Length: 2\r\n\r\nok"
NEXT = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"


@contextlib.contextmanager
def peer(*replies: Sequence[bytes]) -> Iterator[Backend]:
    """A backend that answers each request, in whatever connection, with the next one's pieces; b"" hangs up."""
    port, left = free_port(), list(replies)

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while left and sock.recv(65536):
                for piece in left.pop(0):
                    if not piece:
                        return
                    sock.sendall(piece)
                    time.sleep(0.05)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield Backend(f"http://127.0.0.1:{port}")
        listener.shutdown(socket.SHUT_RDWR)


POST = Message("POST", "/x", b"{}", "application/json")


def bounds(seconds: float = 5, max_bytes: int = 1_000_000) -> Bounds:
    return Bounds(time.monotonic() + seconds, max_bytes)


def ask(backend: Backend, within: Bounds | None = None, sent: list[Exchange] | None = None) -> Reply:
    """The whole reply; `sent` gets the exchange of each request that was sent for it."""
    on_sent = (lambda _: None) if sent is None else sent.append
    with contextlib.closing(backend.ask(POST, Client(None), within or bounds(), on_sent)) as exchange:
        return exchange.read()


def has_kept_one(backend: Backend) -> bool:
    """Whether the next request would go out on a connection that was kept."""
    sent: list[Exchange] = []
    ask(backend, sent=sent)
    return not sent[0].is_new


@pytest.mark.parametrize(
    "pieces",
    [[b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK], [b"HTTP/1.1 103 Early Hints\r\n\r\n", OK]],
    ids=["at once", "one after the other"],
)
def test_an_interim_reply_is_not_the_answer(pieces: list[bytes]) -> None:
    with peer(pieces, [NEXT]) as backend:
        assert ask(backend) == Reply(200, "text/x", b"ok")
        assert ask(backend).body == b"next"


@pytest.mark.parametrize(
    "surplus", [b"HTTP/1.1 500 No\r\nContent-Type: a/b\r\nContent-Length: 3\r\n\r\nbad", b"junk\r\n\r\n"]
)
def test_what_follows_a_reply_is_no_part_of_it(surplus: bytes) -> None:
    """And the connection is not used again."""
    with peer([OK + surplus], [NEXT]) as backend:
        assert ask(backend) == Reply(200, "text/x", b"ok")
        assert not has_kept_one(backend)


@pytest.mark.parametrize(
    "head", ["Connection: close\r\n", "Connection: Keep-Alive, Close\r\n"], ids=["close", "in a list"]
)
def test_a_connection_that_the_backend_will_close_is_not_kept(head: str) -> None:
    with peer([OK.replace(b"Content-Type", head.encode() + b"Content-Type")], [NEXT]) as backend:
        assert ask(backend).body == b"ok"
        assert not has_kept_one(backend)


def test_a_kept_connection_is_used_again() -> None:
    with peer([OK], [NEXT]) as backend:
        ask(backend)
        assert has_kept_one(backend)


def test_a_body_may_end_with_its_connection() -> None:
    with peer([b"HTTP/1.1 200 OK\r\n\r\nall of ", b"it", b""], [NEXT]) as backend:
        assert ask(backend).body == b"all of it"
        assert not has_kept_one(backend)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"], "not valid HTTP"),
        ([b"SSH-2.0-OpenSSH\r\n"], "not valid HTTP"),
        ([OK[:-1], b""], "ended early"),
        ([OK[:20], b""], "ended early"),
        ([b""], "without an answer"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokx"], "not valid HTTP"),
    ],
    ids=["another protocol", "no HTTP", "cut in the body", "cut in the head", "nothing", "a bad chunk"],
)
def test_a_reply_that_is_none_is_a_lost_backend(pieces: list[bytes], words: str) -> None:
    with peer(pieces) as backend, pytest.raises(BackendLost, match=words):
        ask(backend)


def test_an_exchange_leaves_nothing_to_the_collector() -> None:
    """Its parser and what that fills name each other while they work."""
    gc.collect()
    gc.disable()
    try:
        with peer([OK], [OK[:-1], b""]) as backend:
            ask(backend)
            with contextlib.suppress(BackendLost):
                ask(backend)
        assert [it for it in gc.get_objects() if isinstance(it, Incoming)] == []
    finally:
        gc.enable()
