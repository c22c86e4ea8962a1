"""One attempt to serve a request with one process of its backend, and the meaning of a failure."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

from systemd_llm_switch import advice
from systemd_llm_switch.backend.exchange import (
    BackendDeadline,
    BackendLost,
    Bounds,
    Exchange,
    Message,
    Reply,
    ReplyTooLarge,
)
from systemd_llm_switch.config.records import Model, ServerSettings
from systemd_llm_switch.errors import BackendCrashed, BackendError, BackendTimeout
from systemd_llm_switch.forward.live_reply import BrokenStream
from systemd_llm_switch.forward.responder import Responder
from systemd_llm_switch.openai.request import Request
from systemd_llm_switch.switching.leases import Lease
from systemd_llm_switch.switching.losses import Losses
from systemd_llm_switch.switching.switcher import Switcher

log = logging.getLogger(__name__)

# A killed process may still read a request between the signal and its end.
_DYING_S = 0.02
# How many replies in a row may report a failed device, and the words that report it.
_MOST_DEVICE_ERRORS = 3
_DEVICE_WORDS = (b"CUDA error", b"ROCm error", b"HIP error", b"ErrorDeviceLost")
_ERROR_BYTES = 64 * 1024

Fault = BackendLost | BackendDeadline | ReplyTooLarge | BrokenStream
FAULTS = (BackendLost, BackendDeadline, ReplyTooLarge, BrokenStream)


class WasEnding(Exception):
    """The backend's process was ending when the request came. No work is lost: the next process serves it."""


class WasPaused(Exception):
    """An operator needs the card for something else; the request goes on after the hold."""


class Attempt:
    """Owns the granted lease, the backend's deadline and what is sent: first the request, then further ones if
    llama-server's parser refused its own reply."""

    def __init__(
        self,
        switcher: Switcher,
        losses: Losses,
        lease: Lease,
        request: Request,
        sent: bytes,
        responder: Responder,
        settings: ServerSettings,
    ) -> None:
        """`sent` is the body that the backend gets."""
        self._switcher = switcher
        self._losses = losses
        self._lease = lease
        self._request = request
        self.sent = sent
        self._responder = responder
        self._settings = settings
        self._began = time.monotonic()
        self._bounds = Bounds(self._began + settings.request_timeout, max_reply_bytes(settings))

    def begin(self, meanwhile: Callable[[], object]) -> Exchange:
        """Sends the request and waits until the reply begins. `meanwhile` runs while the backend works."""
        return self._ask(self._request.path, self.sent, meanwhile)

    def open(self, path: str, body: bytes) -> Exchange:
        """Sends another request and waits until its reply begins. The caller must close it."""
        return self._ask(path, body, lambda: None)

    def fetch(self, path: str, body: bytes) -> Reply:
        """The whole reply to another request."""
        with contextlib.closing(self.open(path, body)) as exchange:
            return exchange.read()

    def look(self, path: str) -> Reply:
        """The whole reply to a GET."""
        with contextlib.closing(self._ask(path, b"", lambda: None, "GET")) as exchange:
            return exchange.read()

    def _ask(self, path: str, body: bytes, meanwhile: Callable[[], object], method: str = "POST") -> Exchange:
        resident = self._lease.granted

        def on_sent(exchange: Exchange) -> None:
            self._lease.on_interrupt(exchange.abort)
            resident.check(exchange)
            meanwhile()

        message = Message(method, path, body, self._request.content_type)
        return resident.backend.ask(message, self._responder, self._bounds, on_sent)

    def judge(self, reply: Reply) -> str:
        """Counts replies that report a failed device: a CUDA context stays broken until its process ends. After several
        in a row, the unit is restarted before its next use. Returns a note for the client about that."""
        resident = self._lease.granted
        if reply.status != 500 or not any(words in reply.body[:_ERROR_BYTES] for words in _DEVICE_WORDS):
            resident.device_errors = 0
            return ""
        resident.device_errors += 1
        if resident.device_errors < _MOST_DEVICE_ERRORS:
            return ""
        self._switcher.distrust(self._lease)
        unit = resident.model.unit
        log.warning("device_errors model=%s unit=%s count=%d", self._model.id, unit, resident.device_errors)
        return f" (error {resident.device_errors} of this kind in a row: unit {unit} is restarted before its next use)"

    @property
    def lasted_s(self) -> float:
        """How long the backend has been working, in seconds."""
        return time.monotonic() - self._began

    def explain(self, fault: Fault, *, may_retry: bool) -> Exception:
        """The exception to raise for a fault of the exchange: BackendCrashed, BackendError, BackendTimeout, WasEnding,
        or the error that interrupted the lease."""
        if isinstance(fault, BackendLost):
            return self._loss(fault, may_retry)
        if isinstance(fault, BackendDeadline):
            return self._timeout(fault)
        if isinstance(fault, ReplyTooLarge):
            return too_large(self._model, self._settings)
        return BackendError(f"the reply of {self._model.id!r} is broken: {fault}")

    @property
    def _model(self) -> Model:
        return self._lease.model

    def _loss(self, lost: BackendLost, may_retry: bool) -> Exception:
        lease, model, lasted_s = self._lease, self._model, self.lasted_s
        if lease.interruption is not None:
            return lease.interruption
        reason = self._losses.explain(lease)
        if reason is None:
            return lost_backend(model, lost)
        was_unread = lost.was_unread or lasted_s < _DYING_S
        if may_retry and was_unread and not self._responder.has_started:
            return WasEnding()
        return BackendCrashed(f"model {model.id!r} ended while it answered: {reason}")

    def _timeout(self, late: BackendDeadline) -> BackendTimeout:
        self._switcher.distrust(self._lease)
        limit_s = self._settings.request_timeout
        reason = str(late) or f"did not answer within {limit_s:g} s (server.request_timeout)"
        return BackendTimeout(f"model {self._model.id!r} {reason}")


def max_reply_bytes(settings: ServerSettings) -> int:
    """How large a backend's reply may be."""
    return int(settings.max_reply_mb * 1_000_000)


def too_large(model: Model, settings: ServerSettings) -> BackendError:
    """The error for a reply that exceeds `max_reply_bytes`."""
    return BackendError(f"the reply of {model.id!r} is larger than {settings.max_reply_mb:g} MB (server.max_reply_mb)")


def lost_backend(model: Model, lost: BackendLost) -> BackendError:
    """The error for a connection that broke although the backend still runs."""
    see = advice.logs_of(model.id)
    return BackendError(f"the backend of {model.id!r} at {model.llama_url} failed: {lost}; see `{see}`")


def wrong_key(model: Model) -> BackendError:
    """The error for a backend that refuses the proxy's own key. It is not a 401, because the client's key never reaches
    the backend and its user would look for the fault there."""
    known = "another `backend_key` than the config has" if model.backend_key else "a `backend_key`"
    return BackendError(
        f"the backend of {model.id!r} asks for {known} (it replied 401): set `backend_key` of this model to the"
        " `--api-key` of its unit, and load the model again"
    )
