"""The values that go into the scheduler and come out of it: policy, states, and actions to perform."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from systemd_llm_switch.config.records import ServerSettings

IN_FLIGHT_LIMIT = 128  # requests at the backends at once, over all models; each holds a thread


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's choices; docs/scheduling.md says why the defaults are what they are."""

    queue_limit: int = 64  # tickets that may wait
    in_flight_limit: int = IN_FLIGHT_LIMIT  # tickets that may run, over all units
    vram_gib: float | None = None  # the card; None: one unit at a time, not counting CPU units
    max_wait_s: float | None = None  # the waiter's part of the right of way; None: the cost of one switch
    # The resident's part of the right of way (None: the cost of a round trip). An idle unit stays as long (None: 0).
    min_resident_s: float | None = None
    drain_timeout_s: float = 1800.0  # how long running tickets may delay a switch
    abandon_after_s: float = 1.5  # how long a load goes on without a waiter: clients that time out resend at once

    @classmethod
    def of(cls, server: ServerSettings) -> Policy:
        """The policy that the config asks for."""
        return cls(
            queue_limit=server.queue_limit,
            vram_gib=server.vram,
            max_wait_s=server.max_wait,
            min_resident_s=server.min_resident,
            drain_timeout_s=server.request_timeout if server.drain_timeout is None else server.drain_timeout,
        )


class State(Enum):
    """What a unit is doing, as far as the scheduler knows."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"  # it was asked to stop, which is not confirmed yet: still resident
    FAILED = "failed"


class Reason(Enum):
    """Why a ticket is rejected."""

    QUEUE_FULL = "queue_full"
    ON_HOLD = "on_hold"
    START_FAILED = "start_failed"
    UNKNOWN_UNIT = "unknown_unit"


@dataclass(frozen=True, slots=True)
class Grant:
    """The ticket runs from now on, until `finish`."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Reject:
    """The ticket is over. `retry_after_s` (1 to 59) says when a retry may help."""

    ticket: int
    reason: Reason
    retry_after_s: float | None = None
    cause: object | None = None


@dataclass(frozen=True, slots=True)
class Switch:
    """Stop `evict`, then start `target` (None: only stop). Of the card's models, only `keep` may stay loaded beside it.

    The answer is one of `switch_done`, `switch_failed`, `switch_aborted` and `switch_refused`. No other Switch comes
    before it.
    """

    target: str | None
    evict: tuple[str, ...]
    keep: frozenset[str]


@dataclass(frozen=True, slots=True)
class Abort:
    """The target of the switch in progress is no longer wanted: stop it."""

    target: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The running ticket must end now; its thread answers with `finish`."""

    ticket: int


@dataclass(frozen=True, slots=True)
class HoldEnded:
    """The hold's time is over: requests are served again."""


Action = Grant | Reject | Switch | Abort | Interrupt | HoldEnded
