"""Serving one understood request: its lease, its exchange with the backend, its answer.

A generator that runs in the request's own thread. It yields bytes only to a client that asked for a stream, and
returns the whole answer otherwise; so every wait can be watched for the client's disconnect, kept alive, and ended
by closing the generator. Knows no web framework.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from systemd_llm_switch.backend.exchange import BackendDeadline, BackendLost, Exchange, Reply
from systemd_llm_switch.config.records import Config, Model
from systemd_llm_switch.errors import (
    BackendCrashed,
    BackendError,
    BackendTimeout,
    ClientGone,
    ModelStartTimeout,
    ProxyError,
)
from systemd_llm_switch.forward import recovery
from systemd_llm_switch.forward.live_reply import BrokenStream, LiveReply, StreamError
from systemd_llm_switch.forward.recovery import Told
from systemd_llm_switch.openai.request import Request, to_backend
from systemd_llm_switch.openai.shapes import JSON_TYPE, Json, choices_of, dump, foreign_error
from systemd_llm_switch.openai.sse import (
    KEEP_ALIVE,
    SSE_HEADERS,
    EventReader,
    foreign_error_frame,
    raw_frame,
    sse_frames,
)
from systemd_llm_switch.repair import (
    Budget,
    Repair,
    RequestFacts,
    UnrepairableReply,
    parse_reply,
    repair_history,
    repair_reply,
)
from systemd_llm_switch.switching.leases import Lease
from systemd_llm_switch.switching.losses import Losses
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.waiting import Client, remaining_s

log = logging.getLogger(__name__)

# How long a streaming client waits before the 200 is committed: errors until then keep their real status.
GRACE_S = 2.0
# Then it hears something at least this often: Node's fetch gives up after 300 s of silence, proxies sooner.
KEEP_ALIVE_S = 10.0
# A killed process may still have read a request in the moment between the signal and its end.
_DYING_S = 0.02


class Answer(NamedTuple):
    """A whole answer to a client."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def of_error(cls, error: ProxyError, facts: Iterable[tuple[str, str]] = ()) -> Answer:
        """An error in OpenAI's shape; `facts` are further headers."""
        return cls(error.status, (JSON_TYPE, *error.headers(), *facts), dump(error.body()))


Steps = Generator[bytes, None, Answer]
_Fault = BackendLost | BackendDeadline | BrokenStream


class _WasEnding(Exception):
    """The backend's process was ending when the request came: no work is lost, the next process serves it."""


@dataclass(slots=True)
class Record:
    """What is told of a request afterwards, to its client and to the journal."""

    path: str
    model: str = "-"
    is_streamed: bool = False
    status: int = 500
    error: str = "-"  # its code
    lease: Lease | None = None
    backend_s: float = 0.0
    usage: Json = field(default_factory=dict)
    repairs: list[Repair] = field(default_factory=list)

    @property
    def times_ms(self) -> tuple[float, float, float]:
        """In the queue, for the switch, at the backend; so far, while it goes on."""
        queue_s, switch_s = self.lease.waited_s if self.lease else (0.0, 0.0)
        return queue_s * 1000, switch_s * 1000, self.backend_s * 1000

    def headers(self) -> Iterator[tuple[str, str]]:
        """Where the time went (https://www.w3.org/TR/server-timing/, ms), and that something was repaired."""
        yield ("Server-Timing", "queue;dur={:.1f}, switch;dur={:.1f}, backend;dur={:.1f}".format(*self.times_ms))
        if self.repairs:
            yield ("X-LLM-Switch-Repaired", str(len(self.repairs)))

    def log(self) -> None:
        """One line a request: never what was asked or answered, that is the user's."""
        is_fine = self.status < 400 or self.status == ClientGone.status
        level = logging.INFO if is_fine else logging.WARNING if self.status < 500 else logging.ERROR
        log.log(
            level,
            "request model=%s path=%s status=%d stream=%s queue_ms=%.1f switch_ms=%.1f backend_ms=%.1f "
            "prompt_tokens=%s completion_tokens=%s repaired=%d error=%s",
            self.model,
            self.path,
            self.status,
            "yes" if self.is_streamed else "no",
            *self.times_ms,
            self.usage.get("prompt_tokens", "-"),
            self.usage.get("completion_tokens", "-"),
            len(self.repairs),
            self.error,
        )


class Pace:
    """When a waiting client must hear something next; never, unless it asked for a stream."""

    def __init__(self) -> None:
        self._next = math.inf
        self.has_spoken = False

    def start(self) -> None:
        """The client asked for a stream: after a grace it hears something."""
        self._next = time.monotonic() + GRACE_S

    def left_s(self, deadline: float) -> float:
        """How long to wait at most before `speak` or the deadline is due."""
        return remaining_s(min(self._next, deadline))

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def speak(self, data: bytes = KEEP_ALIVE) -> bytes:
        """What is sent now; the next keep-alive is due that much later."""
        self.has_spoken = True
        self.pass_over()
        return data

    def pass_over(self) -> None:
        """Nothing can be sent now: the next keep-alive is due that much later all the same."""
        self._next = time.monotonic() + KEEP_ALIVE_S


@dataclass(slots=True)
class Forwarding:
    """One request on its way."""

    _switcher: Switcher
    _losses: Losses
    _config: Config
    _request: Request
    _model: Model
    _client: Client
    _record: Record
    _pace: Pace
    _known_facts: RequestFacts | None = None
    _budget: Budget = field(init=False)  # of CPU time for repair

    def __post_init__(self) -> None:
        self._budget = Budget(self._client.is_gone)

    def run(self) -> Steps:
        """From the queue to the answer.

        Raises:
            ProxyError
        """
        request = self._request
        body, repairs = repair_history(request.body, self._budget) if request.is_chat else (request.body, ())
        self._record.repairs.extend(repairs)
        message = to_backend(request, body, self._model.params, self._model.force, self._is_live)
        try:
            return (yield from self._ask(message))
        except _WasEnding:
            log.debug("asked_again model=%s", self._model.id)
        return (yield from self._ask(message))

    @property
    def _is_live(self) -> bool:
        """Whether what the model writes goes on as it comes."""
        request = self._request
        return request.is_streamed and (not request.is_repairable or self._model.streaming == "live")

    def _ask(self, message: bytes) -> Steps:
        """Waits for the model and its reply.

        Raises:
            _WasEnding: the first backend's process was on its way out when the request came.
        """
        lease = self._switcher.lease(self._model)
        is_first, self._record.lease = self._record.lease is None, lease
        try:
            yield from self._await_lease(lease)
            began = time.monotonic()
            try:
                ending = yield from self._exchange(lease, message, began + self._config.server.request_timeout)
            except (BackendLost, BackendDeadline, BrokenStream) as fault:
                raise self._explain(fault, lease, began, may_retry=is_first) from fault
            finally:
                self._record.backend_s = time.monotonic() - began
        finally:
            # As soon as the reply is in: a slow reader must not hold off a switch.
            self._switcher.release(lease)
        return (yield from ending)

    def _await_lease(self, lease: Lease) -> Generator[bytes, None, None]:
        server = self._config.server
        # Longer than the scheduler lets anybody wait (docs/scheduling.md, "The bound"), in case it does not hold.
        turn_s = 3 * server.health_timeout + (server.max_wait or 0) + (server.min_resident or 0)
        turn_s += max(server.request_timeout, server.drain_timeout or 0)
        limit_s = (len(self._config.models) + 1) * turn_s
        deadline = time.monotonic() + limit_s
        while not lease.wait(self._client, self._pace.left_s(deadline)):
            if self._pace.is_due:
                yield self._pace.speak()
            elif remaining_s(deadline) == 0:
                raise ModelStartTimeout(f"model {self._model.id!r} did not get its turn within {limit_s:g} s")

    # --- the backend ----------------------------------------------------------------------------------

    def _exchange(self, lease: Lease, message: bytes, deadline: float) -> Generator[bytes, None, Steps]:
        """The exchange with the backend; what is left to tell once that has told all."""
        exchange = yield from self._begin(lease, self._request.path, message, deadline)
        try:
            take = self._relay if self._is_live and exchange.is_event_stream else self._take_whole
            return (yield from take(lease, exchange, message, deadline))
        finally:
            exchange.close()

    def _explain(self, fault: _Fault, lease: Lease, began: float, may_retry: bool) -> Exception:
        """What a broken or late exchange means for its request: BackendCrashed, BackendError, BackendTimeout,
        _WasEnding, or what interrupted the lease."""
        name = self._model.id
        if isinstance(fault, BrokenStream):
            return BackendError(f"the reply of {name!r} is broken: {fault}")
        if isinstance(fault, BackendDeadline):
            self._switcher.distrust(lease)
            limit_s = self._config.server.request_timeout
            told = str(fault) or f"did not answer within {limit_s:g} s (server.request_timeout)"
            return BackendTimeout(f"model {name!r} {told}")
        lasted_s = time.monotonic() - began
        if lease.interruption is not None:
            return lease.interruption
        reason = self._losses.explain(lease)
        if reason is None:
            return BackendError(f"the backend of {name!r} at {self._model.llama_url} failed: {fault}")
        is_untouched = not self._pace.has_spoken and (fault.was_unread or lasted_s < _DYING_S)
        if may_retry and is_untouched:
            return _WasEnding()
        return BackendCrashed(f"model {name!r} ended while it answered: {reason}")

    def _begin(self, lease: Lease, path: str, message: bytes, deadline: float) -> Generator[bytes, None, Exchange]:
        """Sends a request and waits until the reply begins."""
        resident, content_type = lease.granted, self._request.content_type
        lost = BackendLost("no connection")
        for exchange in resident.backend.send("POST", path, message, content_type, self._client, deadline):
            lease.on_interrupt(exchange.abort)
            try:
                resident.check(exchange)
                self._facts()  # while the backend works, nobody waits for it
                while not exchange.wait(self._pace.left_s(deadline)):
                    if self._pace.is_due:
                        yield self._pace.speak()
                    elif remaining_s(deadline) == 0:
                        raise BackendDeadline
                exchange.begin()
            except BackendLost as error:
                exchange.close()
                lost = error
                if lease.interruption is not None or not lost.was_unread:
                    break
            except BaseException:
                exchange.close()
                raise
            else:
                return exchange
        try:
            raise lost
        finally:
            del lost  # an error that its own frame names keeps that frame, and what is in it, until a collection

    def _facts(self) -> RequestFacts:
        """What of the request its reply is judged by; read once."""
        if self._known_facts is None:
            self._known_facts = RequestFacts.of(self._request.body, rescue=self._config.repair.rescue)
        return self._known_facts

    def _is_refusal(self, reply: Reply) -> bool:
        return self._request.is_chat and recovery.is_refusal(reply.status, reply.body)

    def _recover(self, lease: Lease, sent: bytes, told: Told, deadline: float) -> Generator[bytes, None, Json | None]:
        """Where only the backend's own parser gave up on what it answered to `sent`: the reply from `told` on, made
        of the model's raw text. None if there is no such text."""
        template = yield from self._fetch(lease, recovery.TEMPLATE_PATH, sent, deadline)
        message = recovery.completion_message(sent, template.body, told)
        if template.status != 200 or message is None:
            return None
        completion = yield from self._fetch(lease, recovery.COMPLETION_PATH, message, deadline)
        recovered = recovery.chat_reply(completion.body, self._model.id, told)
        if completion.status != 200 or recovered is None:
            return None
        self._record.repairs.append(Repair("backend_refusal"))
        return recovered

    def _fetch(self, lease: Lease, path: str, message: bytes, deadline: float) -> Generator[bytes, None, Reply]:
        exchange = yield from self._begin(lease, path, message, deadline)
        with contextlib.closing(exchange):
            return (yield from self._read_reply(exchange, deadline))

    def _take_whole(
        self, lease: Lease, exchange: Exchange, sent: bytes, deadline: float
    ) -> Generator[bytes, None, Steps]:
        """Reads a finished reply; the answer that it makes."""
        reply = yield from self._read_reply(exchange, deadline)
        if self._is_refusal(reply):
            recovered = yield from self._recover(lease, sent, Told(), deadline)
            reply = reply if recovered is None else Reply(200, "application/json", dump(recovered))
        return self._answer(reply)

    def _read_reply(self, exchange: Exchange, deadline: float) -> Generator[bytes, None, Reply]:
        """The whole reply; a client that asked for a stream is kept alive meanwhile."""
        if not self._request.is_streamed:
            return exchange.read()
        pieces = []
        for received in self._read_stream(exchange, deadline):
            pieces.append(received)
            if self._pace.is_due:
                yield self._pace.speak()
        return Reply(exchange.status, exchange.content_type, b"".join(pieces))

    # --- a reply as it is written ---------------------------------------------------------------------

    def _relay(self, lease: Lease, exchange: Exchange, sent: bytes, deadline: float) -> Generator[bytes, None, Steps]:
        """Passes a stream on; what is left to tell once the backend has told all."""
        request = self._request
        if not request.is_repairable:
            yield from self._relay_bytes(exchange, deadline)
            return self._tell(())
        live = LiveReply(self._facts(), request.is_chat, request.wants_usage, self._budget)
        try:
            yield from self._relay_events(exchange, deadline, live)
        except StreamError as error:
            reply = Reply(error.status, "application/json", dump(error.body))
            told = live.told if self._is_refusal(reply) else None
            recovered = None if told is None else (yield from self._recover(lease, sent, told, deadline))
            if recovered is None:
                return self._answer(reply)
            for frame in live.resume(recovered):
                yield self._pace.speak(frame)
        live.end()
        self._record.repairs.extend(live.repairs)
        self._record.usage = live.usage
        return self._tell(live.rest())

    def _tell(self, frames: Iterable[bytes]) -> Steps:
        for frame in frames:
            yield self._pace.speak(frame)
        return Answer(200, (), b"")

    def _relay_events(self, exchange: Exchange, deadline: float, live: LiveReply) -> Generator[bytes, None, None]:
        reader = EventReader()
        for received in self._read_stream(exchange, deadline):
            frames = b""
            try:
                for data in reader.feed(received):
                    if data != b"[DONE]":
                        frames += live.feed(data)
            except (StreamError, BrokenStream):
                if frames:  # what came before it in the same piece
                    yield self._pace.speak(frames)
                raise
            if frames:
                yield self._pace.speak(frames)
            elif self._pace.is_due:
                yield self._pace.speak()

    def _relay_bytes(self, exchange: Exchange, deadline: float) -> Generator[bytes, None, None]:
        """A stream of another protocol: every byte as it came, and comments where it pauses between events."""
        reader = EventReader()
        for received in self._read_stream(exchange, deadline):
            for _ in reader.feed(received):
                continue
            if received:
                yield self._pace.speak(received)
            elif reader.is_between_events:
                yield self._pace.speak()
            else:
                self._pace.pass_over()

    def _read_stream(self, exchange: Exchange, deadline: float) -> Iterator[bytes]:
        """What comes; nothing (b"") when the client must hear something meanwhile."""
        while True:
            received = exchange.read_some(self._pace.left_s(deadline))
            if received is None:
                if remaining_s(deadline) == 0:
                    raise BackendDeadline
                yield b""
            elif received:
                yield received
            else:
                return

    # --- a finished reply -----------------------------------------------------------------------------

    def _answer(self, reply: Reply) -> Steps:
        if not 200 <= reply.status < 300:
            return (yield from self._pass_error(reply))
        if not self._request.is_repairable:
            if self._pace.has_spoken:
                yield self._pace.speak(raw_frame(reply.body))
            headers = (("Content-Type", reply.content_type), *self._record.headers())
            return Answer(reply.status, headers, reply.body)
        parsed, body = self._repair(reply)
        usage = parsed.get("usage")
        self._record.usage = usage if isinstance(usage, dict) else {}
        if not self._request.is_streamed:
            return Answer(reply.status, (JSON_TYPE, *self._record.headers()), body)
        if not choices_of(parsed):  # as a stream it would be empty, and clients would not know why
            raise BackendError(f"the reply of {self._model.id!r} holds no choices")
        frames = sse_frames(parsed, self._request.is_chat, self._request.wants_usage)
        if not self._pace.has_spoken:
            return Answer(200, (*SSE_HEADERS, *self._record.headers()), b"".join(frames))
        return (yield from self._tell(frames))

    def _repair(self, reply: Reply) -> tuple[Json, bytes]:
        """The reply as an object and as bytes: the backend's own bytes where it was sound."""
        try:
            parsed, repairs = parse_reply(reply.body, self._budget)
        except UnrepairableReply as error:
            raise BackendError(f"the reply of {self._model.id!r} is no JSON: {error}") from error
        mended, more = repair_reply(parsed, self._facts(), self._budget)
        self._record.repairs.extend(repairs + more)
        is_same = mended is parsed and not repairs
        return mended, reply.body if is_same else dump(mended)

    def _pass_error(self, reply: Reply) -> Steps:
        """A backend's own error keeps its status and message, in a shape that clients can show."""
        if reply.status < 400:
            raise BackendError(f"the backend of {self._model.id!r} answered {reply.status}, which is no reply")
        body = foreign_error(reply.status, reply.body)
        if self._pace.has_spoken:
            yield foreign_error_frame(reply.status, body)
            return Answer(reply.status, (), b"")
        return Answer(reply.status, (JSON_TYPE, *self._record.headers()), dump(body))
