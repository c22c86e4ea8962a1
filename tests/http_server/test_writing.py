"""An answer's bytes and its reader: what fits leaves at once, a slow one waits only where a permit is free."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator

import pytest

from systemd_llm_switch.http_server.writing import ReplyWriter, SlowWrites, TooSlowReader

LARGE = b"x" * 8_000_000  # more than the buffers of a connection hold
PATIENCE_S = 120


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE_S)
    with ours, theirs:
        yield ours, theirs


def has_bytes(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def read(sock: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count and (piece := sock.recv(1 << 20)):
        received += piece
    return received


def test_what_is_held_leaves_with_what_follows(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    writer = ReplyWriter(ours, SlowWrites(1))
    writer.hold()
    writer.write(b"head ")
    assert not has_bytes(theirs)
    writer.write(b"body")
    assert theirs.recv(100) == b"head body"
    writer.flush()
    assert not has_bytes(theirs)
    assert writer.sent_bytes == 9


def test_what_is_held_leaves_with_a_flush(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    writer = ReplyWriter(ours, SlowWrites(1))
    writer.hold()
    writer.write(b"head")
    writer.flush()
    assert theirs.recv(100) == b"head"


def test_a_large_answer_comes_whole_and_gives_its_permit_back(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    slow = SlowWrites(1)
    writer = ReplyWriter(ours, slow)
    writer.hold()
    writer.write(b"head")
    writing = threading.Thread(target=writer.write, args=(LARGE,), daemon=True)
    writing.start()
    assert read(theirs, len(LARGE) + 4) == b"head" + LARGE
    writing.join(PATIENCE_S)
    assert writer.sent_bytes == len(LARGE) + 4
    assert slow.begin()


def test_a_reader_waits_only_a_moment_where_too_many_wait(ends: tuple[socket.socket, socket.socket]) -> None:
    """Without a permit it would wait for half a minute; nobody reads here at all."""
    slow = SlowWrites(1)
    assert slow.begin()
    with pytest.raises(TooSlowReader):
        ReplyWriter(ends[0], slow).write(LARGE)
    slow.end()
    assert slow.begin()  # and it gave none back that it did not have
    assert not slow.begin()


def test_a_reader_that_is_gone_gives_its_permit_back(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    slow = SlowWrites(1)
    closing = threading.Timer(1.0, theirs.close)
    closing.start()
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        ReplyWriter(ours, slow).write(LARGE)
    closing.join()
    assert slow.begin()


def test_the_time_that_an_answer_has_grows_with_what_is_taken(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    writer = ReplyWriter(ours, SlowWrites(1))
    before = writer._left_s
    writer.write(b"x" * 40_000)
    assert writer._left_s == pytest.approx(before + 2)
    read(theirs, 40_000)
    writer.begin_answer()
    assert (writer._left_s, writer.sent_bytes) == (before, 0)
