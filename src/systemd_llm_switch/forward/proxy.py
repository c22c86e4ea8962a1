"""One request from its bytes to its line in the journal. Must not know the web framework."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence

from systemd_llm_switch.backend.exchange import Message
from systemd_llm_switch.config.file import LiveConfig
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.dialects.routes import translate
from systemd_llm_switch.errors import (
    ClientGone,
    InternalError,
    ProxyError,
    unexpected,
)
from systemd_llm_switch.forward.answer import Answer, Start
from systemd_llm_switch.forward.forwarding import Forwarding
from systemd_llm_switch.forward.passing import Passing
from systemd_llm_switch.forward.record import Observer, Record
from systemd_llm_switch.forward.responder import Responder
from systemd_llm_switch.openai.request import parse_request
from systemd_llm_switch.openai.sse import may_get_better
from systemd_llm_switch.quoting import field
from systemd_llm_switch.scheduler import State
from systemd_llm_switch.switching.losses import Losses
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.waiting import Client

log = logging.getLogger(__name__)

_LOADED = (State.READY, State.DRAINING)


class Proxy:
    """Serves requests. Thread-safe; each request belongs to one thread. `observers` get the record of each request
    after its end."""

    def __init__(
        self, live: LiveConfig, switcher: Switcher, losses: Losses, observers: Sequence[Observer] = ()
    ) -> None:
        self.passing = Passing(live, switcher)
        self._live = live
        self._switcher = switcher
        self._losses = losses
        self._observers = observers
        self._repairs: Counter[str] = Counter()
        self._repairs_lock = threading.Lock()

    def serve(
        self, path: str, raw: bytes, content_type: str, client_fd: int | None, start: Start, client: str = ""
    ) -> None:
        """Answers a POST whose body names a model, and then writes its journal line. Errors become answers. `client` is
        what the client calls itself.

        Raises:
            ClientGone: the answer could not be sent to its end.
        """
        record = Record(path, client)
        responder = Responder(client_fd, start, record)
        try:
            self._forward(record, responder, raw, content_type)
        except ClientGone as gone:
            record.status, record.error = gone.status, gone.code
            raise
        except Exception as error:
            self._answer_error(unexpected(error), record, responder)
        finally:
            self._conclude(record)

    def _forward(self, record: Record, responder: Responder, raw: bytes, content_type: str) -> None:
        config = self._live.latest
        request = parse_request(record.path, raw, config.models, content_type, self._find_only_loaded)
        model = config.find_model(request.model)
        record.model, record.is_streamed = model.id, request.is_streamed
        request, responder.dialect = translate(request)
        if request.is_streamed:
            responder.expect_stream()
        Forwarding(self._switcher, self._losses, config, request, model, responder, record).run()

    def _find_only_loaded(self) -> str | None:
        """The id of the loaded model, if exactly one is loaded."""
        loaded = {it.model.unit: it.model.id for it in self._switcher.snapshot() if it.state in _LOADED}
        return next(iter(loaded.values())) if len(loaded) == 1 else None

    def _answer_error(self, error: ProxyError, record: Record, responder: Responder) -> None:
        """Sends the error with its own status, or in the stream if that has begun."""
        if type(error) is InternalError:
            log.exception("request_crashed model=%s path=%s", record.model, record.path)
        record.status, record.error = error.status, error.code
        if responder.has_started:
            is_hopeless = error.permanent or not may_get_better(error.status)
            responder.stream_error(error.status, error.body(), may_get_better=not is_hopeless)
        else:
            responder.answer(Answer.of_error(error, record.path, record.headers()))

    def _conclude(self, record: Record) -> None:
        """Counts and logs the repairs (never their text), writes the journal line, calls the observers."""
        for repair in record.repairs:
            log.info("repair model=%s kind=%s tool=%s", record.model, repair.kind, field(repair.tool or ""))
            with self._repairs_lock:
                self._repairs[repair.kind] += 1
        record.log()
        for observe in self._observers:
            try:
                observe(record)
            except Exception:
                log.exception("observer_failed path=%s", record.path)

    def pass_through(
        self,
        method: str,
        model: Model,
        target: str,
        raw: bytes,
        content_type: str,
        client: Client,
        timeout_s: float | None = None,
    ) -> Answer:
        """Sends one request unchanged to a loaded model's backend: `/props`, `/slots`, `/metrics` and so on. It neither
        loads the model nor keeps it loaded.

        Raises:
            ModelNotLoaded, BackendError, BackendTimeout, ClientGone
        """
        return self.passing.whole(model, Message(method, target, raw, content_type), client, timeout_s)

    def repairs(self) -> dict[str, int]:
        """How often each kind of repair was made since the start."""
        with self._repairs_lock:
            return dict(self._repairs)
