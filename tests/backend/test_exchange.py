"""Replies as odd as HTTP allows, from a peer that speaks bytes: no request ever gets another one's answer."""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from support.stack import free_port
from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.backend.exchange import (
    BackendDeadline,
    BackendLost,
    Bounds,
    Exchange,
    Message,
    Reply,
    ReplyTooLarge,
)
from systemd_llm_switch.backend.incoming import Incoming
from systemd_llm_switch.errors import ClientGone
from systemd_llm_switch.waiting import Client

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nContent-Length: 2\r\n\r\nok"
RESET = b"a reset"
NEXT = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"


@contextlib.contextmanager
def peer(*replies: Sequence[bytes]) -> Iterator[Backend]:
    """A backend that answers each request, in whatever connection, with the next one's pieces; b"" closes the
    connection, RESET resets it."""
    port, left = free_port(), list(replies)

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while left and sock.recv(65536):
                for piece in left.pop(0):
                    if not piece:
                        return
                    if piece is RESET:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
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
def test_bytes_after_a_reply_are_not_part_of_it(surplus: bytes) -> None:
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


def test_a_connection_whose_request_was_not_read_whole_is_not_kept() -> None:
    """The rest of the request would be read as the next one."""
    large = Message("POST", "/x", b"x" * 30_000_000, "application/json")
    with peer([OK], [NEXT]) as backend:
        with contextlib.closing(backend.ask(large, Client(None), bounds(60), lambda _: None)) as exchange:
            assert exchange.read().body == b"ok"
        assert not has_kept_one(backend)


def test_a_kept_connection_is_used_again() -> None:
    with peer([OK], [NEXT]) as backend:
        ask(backend)
        assert has_kept_one(backend)


def test_a_connection_that_llama_server_is_about_to_close_is_not_used() -> None:
    """It closes those that were idle for five seconds; a request in that moment would be lost."""
    with peer([OK], [NEXT]) as backend:
        ask(backend)
        time.sleep(4.1)
        assert not has_kept_one(backend)


def test_bytes_that_nobody_asked_for_answer_nothing() -> None:
    """A process may send them on a kept connection at any time. The next request would take them for its answer."""
    may_send, are_sent = threading.Event(), threading.Event()

    def serve() -> None:
        with listener.accept()[0] as first:
            first.recv(65536)
            first.sendall(OK)
            may_send.wait(30)
            first.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")
            are_sent.set()
            with listener.accept()[0] as second:
                second.recv(65536)
                second.sendall(NEXT)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        backend = Backend(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert ask(backend).body == b"ok"
        may_send.set()
        assert are_sent.wait(30)
        assert ask(backend).body == b"next"


def test_a_content_type_that_no_client_takes_is_left_out() -> None:
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: 2\r\n\r\nok" % (b"x" * 70_000)
    with peer([reply], [NEXT]) as backend:
        assert ask(backend) == Reply(200, "application/json", b"ok")


def test_a_body_may_end_with_its_connection() -> None:
    with peer([b"HTTP/1.1 200 OK\r\n\r\nall of ", b"it", b""], [NEXT]) as backend:
        assert ask(backend).body == b"all of it"
        assert not has_kept_one(backend)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"], "in another protocol"),
        ([b"SSH-2.0-OpenSSH\r\n"], "not valid HTTP"),
        ([OK[:-1], b""], "ended early"),
        ([OK[:20], b""], "ended early"),
        ([b""], "without an answer"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokx"], "not valid HTTP"),
    ],
    ids=["another protocol", "no HTTP", "cut in the body", "cut in the head", "nothing", "a bad chunk"],
)
def test_an_invalid_reply_is_a_lost_backend(pieces: list[bytes], words: str) -> None:
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


EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata: 1\n\n"


def test_a_connection_that_carried_events_is_not_kept() -> None:
    """llama-server closes it a moment later, in spite of what its headers say."""
    with peer([EVENTS], [NEXT]) as backend:
        ask(backend)
        assert not has_kept_one(backend)


def test_a_kept_connection_that_ends_without_a_byte_is_asked_again_on_a_new_one() -> None:
    """Though the peer read the request, and closed in order: no error says that it was unread."""
    with peer([OK], [b""], [NEXT]) as backend:
        ask(backend)
        sent: list[Exchange] = []
        assert ask(backend, sent=sent).body == b"next"
        assert [exchange.is_new for exchange in sent] == [False, True]


def test_it_is_asked_again_once_only() -> None:
    with peer([OK], [b""], [b""], [NEXT]) as backend:
        ask(backend)
        with pytest.raises(BackendLost, match="without an answer") as lost:
            ask(backend)
        assert not lost.value.was_unread


def test_a_request_that_a_new_connection_lost_is_not_asked_again() -> None:
    with peer([b""], [NEXT]) as backend, pytest.raises(BackendLost, match="without an answer"):
        ask(backend)


def test_a_kept_connection_that_ends_within_the_reply_is_not_asked_again() -> None:
    with peer([OK], [OK[:20], b""], [NEXT]) as backend:
        ask(backend)
        with pytest.raises(BackendLost, match="ended early"):
            ask(backend)


def test_a_kept_connection_that_is_reset_within_the_reply_is_not_asked_again() -> None:
    with peer([OK], [OK[:20], RESET], [NEXT]) as backend:
        ask(backend)
        with pytest.raises(BackendLost) as lost:
            ask(backend)
        assert not lost.value.was_unread


def test_an_aborted_request_is_not_asked_again() -> None:
    with peer([OK], [], [NEXT]) as backend:
        ask(backend)
        sent: list[Exchange] = []

        def abort(exchange: Exchange) -> None:
            sent.append(exchange)
            exchange.abort()

        with pytest.raises(BackendLost):
            backend.ask(POST, Client(None), bounds(), abort)
        assert len(sent) == 1


def test_a_request_that_nobody_is_known_to_have_read_stays_so_on_the_second_connection() -> None:
    """The first connection ended in order: its request may have been read, whatever became of the second."""
    with peer([OK], [b""]) as backend:
        ask(backend)
        sent: list[Exchange] = []

        def refuse(exchange: Exchange) -> None:
            sent.append(exchange)
            if exchange.is_new:
                raise BackendLost("the process ended", was_unread=True)

        with pytest.raises(BackendLost) as lost:
            backend.ask(POST, Client(None), bounds(), refuse)
        assert len(sent) == 2
        assert not lost.value.was_unread


# --- a backend that never stops ------------------------------------------------------------------

ENDLESS = {
    "interim replies": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
    "the headers": (b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"a" * 1000 + b"\r\n"),
    "one header": (b"HTTP/1.1 200 OK\r\nX-A: ", b"a" * 1000),
    "the body": (b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 1000),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nab\r\n" * 100),
}


@contextlib.contextmanager
def pouring(case: str, pause_s: float = 0.0) -> Iterator[Backend]:
    """A backend that sends without an end, until its peer has enough."""
    start, more = ENDLESS[case]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pour() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as sock:
                sock.sendall(start)
                while True:
                    sock.sendall(more)
                    time.sleep(pause_s)

        thread = threading.Thread(target=pour, daemon=True)
        thread.start()
        yield Backend(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(30)
        assert not thread.is_alive(), "the connection was closed"


@pytest.mark.parametrize("case", ENDLESS)
def test_an_endless_reply_ends_at_the_deadline(case: str) -> None:
    """Bytes come all the time, so no wait for them ever ends by itself."""
    expected = (BackendLost, BackendDeadline) if "header" in case or "interim" in case else BackendDeadline
    with pouring(case) as backend, pytest.raises(expected):
        ask(backend, bounds(0.2, 10**12))


def test_the_deadline_holds_while_there_is_always_something_to_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(OK)
        exchange = Exchange(lambda _: None, ours, Client(None), bounds(-1), (b"", b""), is_new=True)
        with pytest.raises(BackendDeadline):
            exchange.begin()
        exchange.close()


@pytest.mark.parametrize("case", ENDLESS)
def test_an_endless_reply_ends_with_its_client(case: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, pouring(case, pause_s=0.005) as backend:
        threading.Timer(0.1, theirs.close).start()
        with pytest.raises(ClientGone):
            backend.ask(POST, Client(ours.fileno()), bounds(30, 10**12)).read()


@pytest.mark.parametrize("case", ENDLESS)
def test_an_endless_reply_is_bounded_in_bytes(case: str) -> None:
    """A head is bounded before: it is copied once more for each of its pieces."""
    is_head = "header" in case or "interim" in case
    with pouring(case) as backend, pytest.raises(BackendLost if is_head else ReplyTooLarge):
        ask(backend, bounds(60, 3_000_000))


def test_many_small_chunks_take_little_more_than_their_bytes() -> None:
    """Each would be an object of its own, of some forty bytes."""
    incoming = Incoming()
    incoming.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        incoming.feed(b"2\r\nab\r\n" * 1000)
    assert len(incoming._body) == 100
    assert incoming.take() == b"ab" * 100_000
