"""Repair: a model's reply (or a client's replayed history) in, a sound one out. Pure: no I/O, no log, no threads."""

from .history import repair_history
from .holding import call_may_start_at
from .leaks import THOUGHTS_END
from .model import Kind, Repair, RequestFacts, UnrepairableReply
from .reply import parse_reply, repair_reply

__all__ = [
    "THOUGHTS_END",
    "Kind",
    "Repair",
    "RequestFacts",
    "UnrepairableReply",
    "call_may_start_at",
    "parse_reply",
    "repair_history",
    "repair_reply",
]
