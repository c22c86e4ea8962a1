"""Repair, pure: a model's reply (or a client's replayed history) in, a sound one out.

Must not do I/O, log or start threads. docs/repair.md has the rules. Start reading at `reply`.
"""

from .budget import Budget
from .history import repair_history
from .holding import call_may_start_at
from .leaks import THOUGHTS_END
from .model import Repair, RepairKind, RequestFacts, UnrepairableReply
from .reply import parse_reply, repair_reply

__all__ = [
    "THOUGHTS_END",
    "Budget",
    "Repair",
    "RepairKind",
    "RequestFacts",
    "UnrepairableReply",
    "call_may_start_at",
    "parse_reply",
    "repair_history",
    "repair_reply",
]
