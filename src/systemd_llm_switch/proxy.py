"""The story of one request: wait for the model, forward, repair, answer. Knows no web framework.

A story is a generator that runs in the request's own thread. It yields bytes only to a client that asked for a
stream and has waited for a while, and returns the whole answer otherwise; so every wait can be watched for the
client's disconnect, kept alive, and ended by closing the generator.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from systemd_llm_switch import protocol
from systemd_llm_switch.backend import Backend, BackendDeadline, BackendLost, Exchange, Reply
from systemd_llm_switch.config import Config, LiveConfig, Model
from systemd_llm_switch.errors import (
    BackendCrashed,
    BackendError,
    BackendTimeout,
    ClientGone,
    InternalError,
    ModelNotFound,
    ModelStartTimeout,
    ProxyError,
)
from systemd_llm_switch.leases import Lease
from systemd_llm_switch.protocol import Json, Request
from systemd_llm_switch.repair import (
    Repair,
    RequestFacts,
    UnrepairableReply,
    parse_reply,
    repair_history,
    repair_reply,
)
from systemd_llm_switch.switcher import Switcher
from systemd_llm_switch.waiting import Client, remaining_s

log = logging.getLogger(__name__)

# How long a streaming client waits before the 200 is committed: errors until then keep their real status.
GRACE_S = 2.0
# Then it hears something at least this often: Node's fetch gives up after 300 s of silence, proxies sooner.
KEEP_ALIVE_S = 10.0


# A killed process may still have read a request in the moment between the signal and its end.
_DYING_S = 0.02


class _WasEnding(Exception):
    """The backend's process was ending when the request came: no work is lost, the next process serves it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer to a client."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


Story = Generator[bytes, None, Answer]


class Proxy:
    """Serves requests. Thread-safe; each story belongs to one thread."""

    def __init__(self, live: LiveConfig, switcher: Switcher) -> None:
        self._live = live
        self._switcher = switcher
        self._repairs: Counter[str] = Counter()
        self._repairs_lock = threading.Lock()

    def serve(self, path: str, raw: bytes, client: Client) -> Story:
        """The story of a POST whose body names a model; its one line in the journal is written however it ends.

        Raises:
            ProxyError: before anything was yielded; afterwards an error is told in the stream.
        """
        record = _Record(path)
        pace = _Pace()
        try:
            config = self._live.current()
            request = protocol.parse_request(path, raw, config.models)
            model = find_model(config, request.model)
            record.model, record.is_streamed = model.id, request.is_streamed
            if request.is_streamed:
                pace.start()
            answer = yield from _Work(self._switcher, config, request, model, client, record, pace).run()
            record.status = answer.status
            return answer
        except GeneratorExit:
            record.status = ClientGone.status  # the server closed us: the client takes no more
            raise
        except Exception as error:
            told = _as_proxy_error(error, record)
            record.status = told.status
            if not pace.has_spoken or isinstance(told, ClientGone):
                raise told from error
            yield protocol.error_frame(told)
            return Answer(told.status, (), b"")
        finally:
            self._note(record)

    def repairs(self) -> dict[str, int]:
        """How often each kind of repair was made since the start."""
        with self._repairs_lock:
            return dict(self._repairs)

    def _note(self, record: _Record) -> None:
        """Counts and logs: never what was asked, answered or repaired, that is the user's."""
        for repair in record.repairs:
            log.info("repair model=%s kind=%s tool=%s", record.model, repair.kind, repair.tool or "-")
            with self._repairs_lock:
                self._repairs[repair.kind] += 1
        record.log()


def find_model(config: Config, name: str) -> Model:
    """The model of an id or an alias.

    Raises:
        ModelNotFound
    """
    model = config.names.get(name)
    if model is None:
        raise ModelNotFound(name, config.models)
    return model


def _as_proxy_error(error: Exception, record: _Record) -> ProxyError:
    if isinstance(error, ProxyError):
        return error
    log.exception("request_crashed model=%s path=%s", record.model, record.path)
    return InternalError("the proxy failed; its journal has the reason")


@dataclass(slots=True)
class _Record:
    """What is told of a request afterwards, to its client and to the journal."""

    path: str
    model: str = "-"
    is_streamed: bool = False
    status: int = 500
    lease: Lease | None = None
    backend_s: float = 0.0
    usage: Json = field(default_factory=dict)
    repairs: list[Repair] = field(default_factory=list)

    @property
    def times_ms(self) -> tuple[float, float, float]:
        """In the queue, for the switch, at the backend."""
        queue_s, switch_s = (self.lease.queue_s, self.lease.switch_s) if self.lease else (0.0, 0.0)
        return queue_s * 1000, switch_s * 1000, self.backend_s * 1000

    def headers(self) -> Iterator[tuple[str, str]]:
        """Where the time went (https://www.w3.org/TR/server-timing/, ms), and that something was repaired."""
        yield ("Server-Timing", "queue;dur={:.1f}, switch;dur={:.1f}, backend;dur={:.1f}".format(*self.times_ms))
        if self.repairs:
            yield ("X-LLM-Switch-Repaired", str(len(self.repairs)))

    def log(self) -> None:
        """One line a request."""
        is_fine = self.status < 400 or self.status == ClientGone.status
        level = logging.INFO if is_fine else logging.WARNING if self.status < 500 else logging.ERROR
        log.log(
            level,
            "request model=%s path=%s status=%d stream=%s queue_ms=%.1f switch_ms=%.1f backend_ms=%.1f "
            "prompt_tokens=%s completion_tokens=%s repaired=%d",
            self.model,
            self.path,
            self.status,
            "yes" if self.is_streamed else "no",
            *self.times_ms,
            self.usage.get("prompt_tokens", "-"),
            self.usage.get("completion_tokens", "-"),
            len(self.repairs),
        )


class _Pace:
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

    def speak(self, data: bytes = protocol.KEEP_ALIVE) -> bytes:
        """What is sent now; the next keep-alive is due that much later."""
        self.has_spoken = True
        self._next = time.monotonic() + KEEP_ALIVE_S
        return data


@dataclass(slots=True)
class _Work:
    """Serving one understood request: its lease, its exchange with the backend, its answer."""

    _switcher: Switcher
    _config: Config
    _request: Request
    _model: Model
    _client: Client
    _record: _Record
    _pace: _Pace

    def run(self) -> Story:
        """From the queue to the answer.

        Raises:
            ProxyError
        """
        request = self._request
        body, repairs = repair_history(request.body) if request.is_chat else (request.body, ())
        self._record.repairs.extend(repairs)
        message = protocol.to_backend(request, body, self._model.params, self._model.force)
        try:
            reply = yield from self._ask(message)
        except _WasEnding:
            reply = yield from self._ask(message)
        return (yield from self._answer(reply))

    def _ask(self, message: bytes) -> Generator[bytes, None, Reply]:
        """Waits for the model and its reply.

        Raises:
            _WasEnding: the first backend's process was on its way out when the request came.
        """
        lease = self._switcher.lease(self._model)
        is_first, self._record.lease = self._record.lease is None, lease
        try:
            yield from self._await_lease(lease)
            return (yield from self._forward(lease, message, may_retry=is_first))
        finally:
            # As soon as the reply is in: a slow reader must not hold off a switch.
            self._switcher.release(lease)

    def _await_lease(self, lease: Lease) -> Generator[bytes, None, None]:
        server = self._config.server
        # Longer than any turn takes, in case the promises of the scheduler do not hold.
        limit_s = 2 * (server.request_timeout + server.health_timeout)
        deadline = time.monotonic() + limit_s
        while not lease.wait(self._client, self._pace.left_s(deadline)):
            if self._pace.is_due:
                yield self._pace.speak()
            elif remaining_s(deadline) == 0:
                raise ModelStartTimeout(f"model {self._model.id!r} did not get its turn within {limit_s:g} s")

    def _forward(self, lease: Lease, message: bytes, may_retry: bool) -> Generator[bytes, None, Reply]:
        """Sends the request and waits for the whole reply.

        Raises:
            BackendCrashed, BackendError, BackendTimeout, ClientGone, and what interrupted the lease.
        """
        began = time.monotonic()
        deadline = began + self._config.server.request_timeout
        backend = lease.resident.backend if lease.resident else self._switcher.backend(self._model.llama_url)
        try:
            return (yield from self._exchange(lease, backend, message, deadline))
        except BackendLost as lost:
            lasted_s = time.monotonic() - began
            if lease.interruption is not None:
                raise lease.interruption from lost
            reason = self._switcher.explain_loss(lease)
            if reason is None:
                raise BackendError(f"the backend of {self._model.id!r} at {backend.url} failed: {lost}") from lost
            if may_retry and (lost.was_unread or lasted_s < _DYING_S):
                raise _WasEnding from lost
            raise BackendCrashed(f"model {self._model.id!r} ended while it answered: {reason}") from lost
        except BackendDeadline as late:
            self._switcher.distrust(lease)
            timeout_s = self._config.server.request_timeout
            raise BackendTimeout(
                f"model {self._model.id!r} did not answer within {timeout_s:g} s (server.request_timeout)"
            ) from late
        finally:
            self._record.backend_s = time.monotonic() - began

    def _exchange(
        self, lease: Lease, backend: Backend, message: bytes, deadline: float
    ) -> Generator[bytes, None, Reply]:
        lost = BackendLost("no connection")
        path = self._request.path
        for exchange in backend.send(path, message, "application/json", self._client, deadline):
            lease.on_interrupt(exchange.abort)
            try:
                yield from self._await_reply(exchange, deadline)
                exchange.begin()
            except BackendLost as error:
                lost = error
                if lease.interruption is not None or not lost.was_unread:
                    break
            else:
                return exchange.read()
            finally:
                exchange.close()
        raise lost

    def _await_reply(self, exchange: Exchange, deadline: float) -> Generator[bytes, None, None]:
        while not exchange.wait(self._pace.left_s(deadline)):
            if self._pace.is_due:
                yield self._pace.speak()
            elif remaining_s(deadline) == 0:
                raise BackendDeadline

    def _answer(self, reply: Reply) -> Story:
        if not reply.is_success:
            return (yield from self._pass_error(reply))
        if not self._request.is_repairable:
            headers = (("Content-Type", reply.content_type), *self._record.headers())
            return Answer(reply.status, headers, reply.body)
        parsed, body = self._repair(reply)
        usage = parsed.get("usage")
        self._record.usage = usage if isinstance(usage, dict) else {}
        if not self._request.is_streamed:
            return Answer(reply.status, (protocol.JSON_TYPE, *self._record.headers()), body)
        frames = protocol.sse_frames(parsed, self._request.wants_usage)
        if not self._pace.has_spoken:
            return Answer(200, (*protocol.SSE_HEADERS, *self._record.headers()), b"".join(frames))
        for frame in frames:
            yield self._pace.speak(frame)
        return Answer(200, (), b"")

    def _repair(self, reply: Reply) -> tuple[Json, bytes]:
        """The reply as an object and as bytes: the backend's own bytes where it was sound."""
        try:
            parsed, repairs = parse_reply(reply.body)
        except UnrepairableReply as error:
            raise BackendError(f"the reply of {self._model.id!r} is no JSON: {error}") from error
        facts = RequestFacts.of(self._request.body, rescue=self._config.repair.rescue)
        mended, more = repair_reply(parsed, facts)
        repairs += more
        self._record.repairs.extend(repairs)
        return mended, protocol.dump(mended) if repairs else reply.body

    def _pass_error(self, reply: Reply) -> Story:
        """A backend's own error keeps its status and message, in a shape that clients can show."""
        body = protocol.foreign_error(reply.status, reply.body)
        if self._pace.has_spoken:
            yield protocol.foreign_error_frame(reply.status, body)
            return Answer(reply.status, (), b"")
        return Answer(reply.status, (protocol.JSON_TYPE, *self._record.headers()), protocol.dump(body))
