"""Who runs, who waits, who drains, who is evicted. Pure: events in, actions out as values, the clock passed in.

Must not know threads, systemd or HTTP. docs/scheduling.md has the policy. Start reading at `scheduler`.
"""

from .decisions import (
    IN_FLIGHT_LIMIT,
    Abort,
    Action,
    Grant,
    HoldEnded,
    Interrupt,
    Policy,
    Reason,
    Reject,
    State,
    Switch,
)
from .placement import Spec
from .scheduler import Scheduler

__all__ = [
    "IN_FLIGHT_LIMIT",
    "Abort",
    "Action",
    "Grant",
    "HoldEnded",
    "Interrupt",
    "Policy",
    "Reason",
    "Reject",
    "Scheduler",
    "Spec",
    "State",
    "Switch",
]
