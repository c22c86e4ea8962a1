"""A request to a loaded model's backend, passed on as it is, and its reply, whole or as it comes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http import HTTPStatus

from systemd_llm_switch import zipped
from systemd_llm_switch.backend.exchange import BackendDeadline, BackendLost, Bounds, Exchange, Message, ReplyTooLarge
from systemd_llm_switch.config.file import LiveConfig
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.errors import BackendError, BackendTimeout, ClientGone, ProxyError
from systemd_llm_switch.forward.answer import Answer, Sendable, Start
from systemd_llm_switch.forward.attempt import lost_backend, max_reply_bytes, too_large, wrong_key
from systemd_llm_switch.quoting import printable
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.waiting import Client

log = logging.getLogger(__name__)

_GZIP = ("Content-Encoding", "gzip")
_LIVE_HEADERS = (("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))


class Passing:
    """Neither loads a model nor keeps it loaded. Thread-safe."""

    def __init__(self, live: LiveConfig, switcher: Switcher) -> None:
        self._live = live
        self._switcher = switcher

    def whole(self, model: Model, message: Message, client: Client, timeout_s: float | None = None) -> Answer:
        """The whole reply.

        Raises:
            ModelNotLoaded, BackendError, BackendTimeout, ClientGone
        """
        with ExitStack() as stack:
            return self._read(model, self._open(model, message, client, timeout_s, stack))

    def as_it_comes(
        self, model: Model, message: Message, client: Client, stack: ExitStack, *, takes_gzip: bool
    ) -> Sendable:
        """The reply; events are passed on while they are written. `stack` is closed when all is sent. Without
        `takes_gzip`, a compressed reply is unpacked.

        Raises: as `whole` does; `stack` is then its caller's.
        """
        self._switcher.make_way()
        with ExitStack() as own:
            exchange = self._open(model, message, client, None, own)
            if not exchange.is_event_stream:
                answer = self._read(model, exchange)
                return answer if takes_gzip else self._unzipped(model, answer)
            stack.push(own.pop_all())
            return _Relay(self, model, exchange, stack.pop_all())

    def _open(
        self, model: Model, message: Message, client: Client, timeout_s: float | None, stack: ExitStack
    ) -> Exchange:
        server = self._live.latest.server
        resident = self._switcher.loaded(model)
        bounds = Bounds(time.monotonic() + (timeout_s or server.request_timeout), max_reply_bytes(server))
        with self.translating(model):
            return stack.enter_context(closing(resident.backend.ask(message, client, bounds, resident.check)))

    def _read(self, model: Model, exchange: Exchange) -> Answer:
        with self.translating(model):
            reply = exchange.read()
        if reply.status == HTTPStatus.UNAUTHORIZED:
            raise wrong_key(model)
        encoding = (("Content-Encoding", exchange.content_encoding),) if exchange.content_encoding else ()
        return Answer(reply.status, (("Content-Type", reply.content_type), *encoding), reply.body)

    def _unzipped(self, model: Model, answer: Answer) -> Answer:
        """
        Raises:
            BackendError: the reply is not sound gzip, or too large.
        """
        if _GZIP not in answer.headers:
            return answer
        server = self._live.latest.server
        try:
            body = zipped.unzip(answer.body, max_reply_bytes(server))
        except zipped.TooLargeUnzipped as error:
            raise too_large(model, server) from error
        except zipped.NotGzip as error:
            raise BackendError(f"the reply of {model.id!r} is not valid gzip: {printable(str(error))}") from error
        return answer._replace(headers=tuple(it for it in answer.headers if it != _GZIP), body=body)

    @contextmanager
    def translating(self, model: Model) -> Iterator[None]:
        """Translates the faults of an exchange into errors for its client."""
        try:
            yield
        except BackendLost as lost:
            raise lost_backend(model, lost) from lost
        except BackendDeadline as late:
            raise BackendTimeout(f"the backend of {model.id!r} did not answer in time") from late
        except ReplyTooLarge as large:
            raise too_large(model, self._live.latest.server) from large


class _Relay:
    """A stream of events, passed on as it comes. `stack` holds what must be closed with it."""

    def __init__(self, passing: Passing, model: Model, exchange: Exchange, stack: ExitStack) -> None:
        self._passing = passing
        self._model = model
        self._exchange = exchange
        self._stack = stack

    def send(self, start: Start, *, has_body: bool = True) -> None:
        """Blocks until all is sent.

        Raises:
            ClientGone: the client hung up, or the stream broke. The closed connection shows that to the client.
        """
        with self._stack:
            write = start(200, (("Content-Type", self._exchange.content_type), *_LIVE_HEADERS))
            try:
                with self._passing.translating(self._model):
                    while has_body and (data := self._exchange.read_some()):
                        write(data)
            except ClientGone:
                raise
            except ProxyError as error:
                log.warning("stream_broke model=%s code=%s reason=%r", self._model.id, error.code, error.message)
                raise ClientGone("the stream broke") from error
            except OSError as error:
                raise ClientGone("the client closed its connection, or reads nothing") from error
