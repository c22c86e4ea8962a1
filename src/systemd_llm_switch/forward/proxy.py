"""The story of one request, from its bytes to its line in the journal. Knows no web framework."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from systemd_llm_switch.backend.exchange import BackendDeadline, BackendLost, Exchange, Reply
from systemd_llm_switch.config.file import LiveConfig
from systemd_llm_switch.errors import (
    BackendError,
    BackendTimeout,
    ClientGone,
    InternalError,
    ModelNotFound,
    ProxyError,
)
from systemd_llm_switch.forward.forwarding import Answer, Forwarding, Pace, Record, Steps
from systemd_llm_switch.openai.request import parse_request
from systemd_llm_switch.openai.sse import SSE_HEADERS, error_frame
from systemd_llm_switch.quoting import field
from systemd_llm_switch.switching.losses import Losses
from systemd_llm_switch.switching.resident import Resident
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.waiting import Client

log = logging.getLogger(__name__)


class Story:
    """A request being served, from `begin` to `close`. `answer` is the whole answer, or the head of a stream; to
    iterate gives the body."""

    def __init__(self, steps: Steps, record: Record) -> None:
        self._steps = steps
        self._record = record
        self._first = b""
        self._is_stream = False
        self._is_closed = False
        self.answer: Answer

    def begin(self) -> None:
        """Blocks until there is an answer, be it an error, or until a streaming client must hear something."""
        try:
            self._first = next(self._steps)
        except StopIteration as end:
            self.answer = end.value
        except ProxyError as error:
            self.answer = Answer.of_error(error, self._record.headers())
        else:
            self._is_stream = True
            self.answer = Answer(200, (*SSE_HEADERS, *self._record.headers()), b"")

    def __iter__(self) -> Iterator[bytes]:
        return self._stream() if self._is_stream else iter((self.answer.body,))

    def _stream(self) -> Iterator[bytes]:
        yield self._first
        try:
            yield from self._steps
        except ClientGone:
            return

    def close(self) -> None:
        """Ends it, wherever it is, and tells the journal; who has a whole answer does not wait for that. Idempotent."""
        self._steps.close()
        if not self._is_closed:
            self._is_closed = True
            self._record.log()


class Proxy:
    """Serves requests. Thread-safe; each story belongs to one thread."""

    def __init__(self, live: LiveConfig, switcher: Switcher, losses: Losses) -> None:
        self._live = live
        self._switcher = switcher
        self._losses = losses
        self._repairs: Counter[str] = Counter()
        self._repairs_lock = threading.Lock()

    def serve(self, path: str, raw: bytes, content_type: str, client: Client) -> Story:
        """The story of a POST whose body names a model, begun. It must be closed."""
        record = Record(path)
        story = Story(self._tell(record, raw, content_type, client), record)
        story.begin()
        return story

    def pass_through(
        self, method: str, name_and_path: str, query: str, raw: bytes, content_type: str, client: Client
    ) -> Answer:
        """One request to a loaded model's backend, as it is: `/props`, `/slots`, `/metrics` and the like. Neither
        loads the model nor keeps it loaded.

        Raises:
            ModelNotFound, ModelNotLoaded, BackendError, BackendTimeout, ClientGone
        """
        config = self._live.current()
        name = max((it for it in config.names if f"{name_and_path}/".startswith(f"{it}/")), key=len, default=None)
        if name is None:
            raise ModelNotFound(name_and_path.partition("/")[0], config.models)
        model = config.names[name]
        resident = self._switcher.loaded(model)
        deadline = time.monotonic() + config.server.request_timeout
        path = (quote(name_and_path[len(name) :]) or "/") + query
        try:
            reply = _exchange(resident, resident.backend.send(method, path, raw, content_type, client, deadline))
        except BackendLost as lost:
            raise BackendError(f"the backend of {model.id!r} failed: {lost}") from lost
        except BackendDeadline as late:
            raise BackendTimeout(f"the backend of {model.id!r} did not answer in time") from late
        return Answer(reply.status, (("Content-Type", reply.content_type),), reply.body)

    def repairs(self) -> dict[str, int]:
        """How often each kind of repair was made since the start."""
        with self._repairs_lock:
            return dict(self._repairs)

    def _tell(self, record: Record, raw: bytes, content_type: str, client: Client) -> Steps:
        """Everything from the bytes to the answer. An error is raised as long as nothing was sent, and told in the
        stream afterwards."""
        pace = Pace()
        try:
            config = self._live.latest
            request = parse_request(record.path, raw, config.models, content_type)
            model = config.find_model(request.model)
            record.model, record.is_streamed = model.id, request.is_streamed
            if request.is_streamed:
                pace.start()
            answer = yield from Forwarding(
                self._switcher, self._losses, config, request, model, client, record, pace
            ).run()
            record.status = answer.status
            return answer
        except GeneratorExit:
            record.status = ClientGone.status  # the server closed us: the client takes no more
            raise
        except Exception as error:
            told = _as_proxy_error(error, record)
            record.status, record.error = told.status, told.code
            try:
                if not pace.has_spoken or isinstance(told, ClientGone):
                    raise told
                yield error_frame(told)
                return Answer(record.status, (), b"")
            finally:
                del told  # it names this frame, too: a circle, until a collection
        finally:
            self._note_repairs(record)

    def _note_repairs(self, record: Record) -> None:
        """Counts and logs what was repaired, not the text of it."""
        for repair in record.repairs:
            log.info("repair model=%s kind=%s tool=%s", record.model, repair.kind, field(repair.tool or ""))
            with self._repairs_lock:
                self._repairs[repair.kind] += 1


def _exchange(resident: Resident, exchanges: Iterable[Exchange]) -> Reply:
    """The reply; on a new connection where a kept one turned out to be closed.

    Raises:
        BackendLost, BackendDeadline, ClientGone
    """
    lost = BackendLost("no connection")
    for exchange in exchanges:
        with contextlib.closing(exchange):
            try:
                resident.check(exchange)
                exchange.begin()
            except BackendLost as error:
                if not error.was_unread:
                    raise
                lost = error
            else:
                return exchange.read()
    try:
        raise lost
    finally:
        del lost  # its traceback names this frame: a circle, until a collection


def _as_proxy_error(error: Exception, record: Record) -> ProxyError:
    if isinstance(error, ProxyError):
        return error
    log.exception("request_crashed model=%s path=%s", record.model, record.path)
    return InternalError("the proxy failed; its journal has the reason")
