"""A lease: one request's right to use a model, from its place in the queue until it is given back.

Knows nothing of units or of how decisions are made. The switcher resolves a lease; the request's thread waits on it.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Mapping

from systemd_llm_switch.config.records import Config, Model
from systemd_llm_switch.contexts.fingerprint import NOTHING
from systemd_llm_switch.errors import InternalError, ModelNotFound, OnHold, ProxyError, QueueFull, Unloaded
from systemd_llm_switch.scheduler import Grant, Interrupt, Reason, Reject
from systemd_llm_switch.switching.resident import Resident
from systemd_llm_switch.waiting import Client, Signal


class Lease:
    """One thread waits for it, another resolves it, once.

    `queue_s` and `switch_s` are the two parts of the wait, and `restore_s` is the part of the switch that read a
    context back. `start` names the start of the unit that serves the request.

    The thread that waits may set `beginning`, the fingerprint of the request's beginning, and `may_pause`. With
    `may_pause`, an operator may interrupt the exchange: `is_paused` is set, and the request goes on later.
    """

    __slots__ = (
        "_error", "_on_interrupt", "_signal", "beginning", "interruption", "is_paused", "may_pause", "model",
        "number", "queue_s", "resident", "restore_s", "start", "submitted", "switch_s",
    )  # fmt: skip

    def __init__(self, number: int, model: Model) -> None:
        self.number = number
        self.model = model
        self.submitted = time.monotonic()
        self.queue_s = 0.0
        self.switch_s = 0.0
        self.restore_s = 0.0
        self.start = ""
        self.beginning = NOTHING
        self.may_pause = False
        self.is_paused = False
        self.resident: Resident | None = None
        self.interruption: ProxyError | None = None
        self._error: ProxyError | None = None
        self._signal = Signal()
        self._on_interrupt: Callable[[], None] | None = None

    def wait(self, client: Client, timeout_s: float) -> bool:
        """Blocks until the model may be used (True) or the time is over (False).

        Raises:
            ProxyError: the request was rejected, or its model failed to start.
            ClientGone: the client hung up first.
        """
        if not self._signal.wait(client, timeout_s):
            return False
        if self._error is not None:
            raise self._error
        return True

    @property
    def granted(self) -> Resident:
        """The process that may be used: from a successful `wait` until the lease is given back."""
        if self.resident is None:
            raise InternalError("a lease was used before it was granted")
        return self.resident

    def on_interrupt(self, callback: Callable[[], None]) -> None:
        """Registers `callback`, which another thread calls when the lease must end. If it must end already, calls it at
        once."""
        self._on_interrupt = callback
        if self.interruption is not None or self.is_paused:
            callback()

    @property
    def waited_s(self) -> tuple[float, float]:
        """Seconds in the queue and for the switch. Until the lease is resolved, all the time counts as queue."""
        return (self.queue_s if self.is_resolved else time.monotonic() - self.submitted), self.switch_s

    @property
    def is_resolved(self) -> bool:
        """Whether it was granted or rejected."""
        return self._signal.is_set

    def grant(self) -> None:
        """The model, `resident`, may be used now."""
        resident = self.resident
        if resident is not None and resident.ready > self.submitted:
            self.switch_s = resident.ready - max(resident.began, self.submitted)
            self.restore_s = min(resident.restore_s, self.switch_s)
        self.queue_s = max(0.0, time.monotonic() - self.submitted - self.switch_s)
        self._signal.set()

    def reject(self, error: ProxyError, began: float | None = None) -> None:
        """The wait is over, and the model cannot be used. `began` is when the switch began that failed, if one did
        (`time.monotonic`)."""
        now = time.monotonic()
        self.switch_s = 0.0 if began is None else now - max(began, self.submitted)
        self.queue_s = now - self.submitted - self.switch_s
        self._error = error
        self._signal.set()

    def interrupt(self, error: ProxyError) -> None:
        """The running request must end with this error."""
        self.interruption = error
        callback = self._on_interrupt  # read once: the request's thread may give the lease back meanwhile
        if callback is not None:
            callback()

    def pause(self) -> None:
        """The running request must give its model back now, and goes on after the hold."""
        if self.may_pause and not self.is_paused:
            self.is_paused = True
            callback = self._on_interrupt
            if callback is not None:
                callback()

    def forget(self) -> None:
        """The lease was given back. Clears its references: a raised error keeps its frames, the frames keep this lease,
        and the process and the connection must not stay open until Python's collector finds that cycle."""
        self.resident = self.interruption = self._error = None
        self._on_interrupt = None


class Leases:
    """The leases that are in use, by number. `perform` needs no lock; for everything else the caller must hold the
    switcher's lock."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._leases: dict[int, Lease] = {}

    def issue(self, model: Model) -> Lease:
        """A new lease, not resolved yet."""
        lease = Lease(next(self._numbers), model)
        self._leases[lease.number] = lease
        return lease

    def withdraw(self, lease: Lease) -> bool:
        """Takes a lease back; False if it was given back before."""
        return self._leases.pop(lease.number, None) is not None

    def promise(self, number: int, residents: Mapping[str, Resident]) -> None:
        """Notes the process for a lease that is about to be granted."""
        lease = self._leases[number]
        resident = lease.resident = residents[lease.model.unit]
        lease.start = resident.loaded.start

    def waiting(self) -> list[Lease]:
        """The leases that are not resolved."""
        return [lease for lease in self._leases.values() if not lease.is_resolved]

    def all(self) -> list[Lease]:
        """All leases, granted or not."""
        return list(self._leases.values())

    def perform(self, action: Grant | Reject | Interrupt, config: Config, began: float | None = None) -> None:
        """Resolves or interrupts a lease, as was decided. `began` is when the switch began whose end led to this."""
        lease = self._leases.get(action.ticket)
        if lease is None:
            return  # it was given back meanwhile
        if isinstance(action, Grant):
            lease.grant()
        elif isinstance(action, Reject):
            failed = began if action.reason is Reason.START_FAILED else None
            lease.reject(rejection(action, lease.model, config), failed)
        else:
            lease.interrupt(interruption(lease.model))


def rejection(action: Reject, model: Model, config: Config) -> ProxyError:
    """The error for a request that the scheduler rejected."""
    if action.reason is Reason.QUEUE_FULL:
        limit = config.server.queue_limit
        message = f"{limit} requests are waiting already (server.queue_limit); try again later"
        return QueueFull(message, retry_after_s=action.retry_after_s)
    if action.reason is Reason.ON_HOLD:
        message = (
            "the models are on hold, the VRAM is in other use; "
            "`llm-switch release` or `POST /api/release` ends the hold"
        )
        return OnHold(message, retry_after_s=action.retry_after_s)
    if action.reason is Reason.UNKNOWN_UNIT:
        return ModelNotFound(model.id, config.models)
    if isinstance(action.cause, ProxyError):
        return copy.copy(action.cause)  # each thread must raise its own copy
    return InternalError("the switch failed; see the proxy's journal")


def interruption(model: Model) -> ProxyError:
    """The error for a running request whose model is taken away."""
    return Unloaded(
        f"model {model.id!r} was unloaded while this request ran: by an operator, or because others waited longer than "
        f"server.drain_timeout"
    )
