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
    vram_gib: float | None = None  # the card; None: one unit at a time, CPU units apart
    max_wait_s: float | None = None  # the waiter's part of the right of way; None: one switch cost
    min_resident_s: float | None = None  # the resident's part, and what an idle unit stays; None: one cost, 0
    drain_timeout_s: float = 1800.0  # how long running tickets may hold off a switch
    abandon_after_s: float = 1.5  # a load for nobody goes on so long: clients that time out resend at once

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
    STOPPING = "stopping"  # it was asked to stop and that is not confirmed: still resident
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
    """Stop `evict`, then start `target` (None: only stop); of the card's models, nothing but `keep` may stay loaded
    beside it.

    Answered by `switch_done`, `switch_failed`, `switch_aborted` or `switch_refused`; until then there is no other
    Switch.
    """

    target: str | None
    evict: tuple[str, ...]
    keep: frozenset[str]


@dataclass(frozen=True, slots=True)
class Abort:
    """Nobody wants the target of the Switch under way any more: stop it again."""

    target: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The running ticket must end now; its thread answers with `finish`."""

    ticket: int


@dataclass(frozen=True, slots=True)
class HoldEnded:
    """The hold's time is over: requests are served again."""


Action = Grant | Reject | Switch | Abort | Interrupt | HoldEnded
