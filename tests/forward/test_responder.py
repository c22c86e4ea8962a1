"""A client of one request: its head goes once, keep-alives break no event, and a client that is gone is seen."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from systemd_llm_switch.errors import ClientGone
from systemd_llm_switch.forward.answer import Answer
from systemd_llm_switch.forward.record import Record
from systemd_llm_switch.forward.responder import Responder
from systemd_llm_switch.openai.sse import KEEP_ALIVE
from systemd_llm_switch.wsgi import Headers


class Sent:
    """What a client got."""

    def __init__(self) -> None:
        self.heads: list[int] = []
        self.body = b""
        self.error: OSError | None = None

    def start(self, status: int, headers: Headers) -> Callable[[bytes], object]:
        self.heads.append(status)
        return self.write

    def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.body += data


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def wait_until_sent(responder: Responder, fd: int, sent: Sent) -> None:
    while not sent.body:
        responder.wait_readable(fd, 0.5)


def test_the_head_of_a_stream_is_sent_once() -> None:
    sent = Sent()
    responder = Responder(None, sent.start, Record("/"))
    assert not responder.has_started
    responder.stream(b"a")
    responder.stream(b"b")
    assert (sent.heads, sent.body, responder.has_started) == ([200], b"ab", True)


def test_a_client_of_a_stream_hears_something_while_it_waits(ends: tuple[socket.socket, socket.socket]) -> None:
    sent = Sent()
    responder = Responder(None, sent.start, Record("/"))
    responder.expect_stream()
    wait_until_sent(responder, ends[0].fileno(), sent)
    assert (sent.heads, sent.body) == ([200], KEEP_ALIVE)


def test_a_client_of_a_whole_answer_hears_nothing_before_it(ends: tuple[socket.socket, socket.socket]) -> None:
    sent = Sent()
    responder = Responder(None, sent.start, Record("/"))
    assert not responder.wait_readable(ends[0].fileno(), 3)
    assert not sent.heads


def test_no_comment_is_sent_within_an_event(ends: tuple[socket.socket, socket.socket]) -> None:
    sent = Sent()
    responder = Responder(None, sent.start, Record("/"))
    responder.expect_stream()
    responder.is_mid_event = True
    assert not responder.wait_readable(ends[0].fileno(), 3)
    assert not sent.body


@pytest.mark.parametrize("is_mid_event", [False, True])
def test_an_error_ends_the_event_that_it_cuts(is_mid_event: bool) -> None:
    sent = Sent()
    responder = Responder(None, sent.start, Record("/"))
    responder.is_mid_event = is_mid_event
    responder.stream_error(502, {"error": {"message": "x", "code": "y"}}, may_get_better=True)
    assert sent.body.startswith(b"\n\ndata: " if is_mid_event else b"data: ")


def test_a_client_that_takes_nothing_is_gone() -> None:
    sent = Sent()
    sent.error = BrokenPipeError()
    responder = Responder(None, sent.start, Record("/"))
    with pytest.raises(ClientGone):
        responder.stream(b"a")
    with pytest.raises(ClientGone):
        responder.answer(Answer(200, (), b"a"))
