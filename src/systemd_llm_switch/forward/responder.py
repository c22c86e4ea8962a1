"""The client of one request while it is served: sends its answer and its keep-alives.

Every wait of the request goes through here. So a wait sends keep-alives, and ends if the client hangs up.
"""

from __future__ import annotations

import math
import time

from systemd_llm_switch.dialects.dialect import Dialect
from systemd_llm_switch.errors import ClientGone
from systemd_llm_switch.forward.answer import Answer, Start
from systemd_llm_switch.forward.record import Record
from systemd_llm_switch.openai.shapes import Json
from systemd_llm_switch.openai.sse import KEEP_ALIVE, SSE_HEADERS
from systemd_llm_switch.waiting import Client
from systemd_llm_switch.wsgi import Write

# How long the 200 of a stream is delayed, so that an early error can have its own status.
GRACE_S = 2.0
# The longest silence after that. Node's fetch gives up after 300 s without a byte, proxies sooner.
KEEP_ALIVE_S = 10.0


class Responder(Client):
    """Sends one client a whole answer or a stream of events. Used by the request's thread.

    Raises, from every method that waits or sends: ClientGone.
    """

    __slots__ = ("_due", "_record", "_start", "_write", "dialect", "is_mid_event")

    def __init__(self, fd: int | None, start: Start, record: Record) -> None:
        super().__init__(fd)
        self._start = start
        self._record = record
        self._write: Write | None = None
        self._due = math.inf  # when the next keep-alive is due
        self.dialect = Dialect()  # the client's API
        self.is_mid_event = False  # half an event was sent, which a comment would break

    @property
    def has_started(self) -> bool:
        """Whether a stream has begun. Its status was sent, so an error can only be sent in the stream."""
        return self._write is not None

    def expect_stream(self) -> None:
        """The client asked for a stream: waits send keep-alives after the grace period."""
        self._due = time.monotonic() + GRACE_S

    def answer(self, answer: Answer) -> None:
        """Sends a whole answer."""
        try:
            answer.send(self._start)
        except OSError as error:
            raise ClientGone("the client closed its connection, or reads nothing") from error

    def stream(self, frames: bytes) -> None:
        """Sends a part of a stream in the client's dialect, and its head before the first part."""
        if events := self.dialect.events(frames):
            self._send(events)

    def stream_error(self, status: int, body: Json, *, may_get_better: bool) -> None:
        """Sends an error, which has OpenAI's shape, as the last event of a stream. Ends an incomplete event first."""
        events = self.dialect.error_events(status, body["error"], may_get_better=may_get_better)
        self._send(b"\n\n" + events if self.is_mid_event else events)

    def _send(self, data: bytes) -> None:
        try:
            if self._write is None:
                self._write = self._start(200, (*SSE_HEADERS, *self._record.headers()))
            self._write(data)
        except OSError as error:
            raise ClientGone("the client closed its connection, or reads nothing") from error
        self._due = time.monotonic() + KEEP_ALIVE_S

    def _wait(self, fd: int, events: int, timeout_s: float) -> int:
        if self._due == math.inf:
            return super()._wait(fd, events, timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            if now >= self._due:
                self._keep_alive()
            found = super()._wait(fd, events, min(deadline, self._due) - now)
            if found or time.monotonic() >= deadline:
                return found

    def _keep_alive(self) -> None:
        if self.is_mid_event:
            self._due = time.monotonic() + KEEP_ALIVE_S
        else:
            self._send(KEEP_ALIVE)
