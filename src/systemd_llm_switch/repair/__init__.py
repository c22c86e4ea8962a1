"""Repair: a model's reply (or a client's replayed history) in, a sound one out. Pure: no I/O, no log, no threads."""

from .calls import repair_tool_calls
from .content import repair_content
from .history import repair_history
from .holding import call_may_start_at
from .leaks import THOUGHTS_END
from .model import Kind, Repair, RequestFacts, Schema, UnrepairableReply
from .reply import parse_reply, repair_reply
from .rescue import rescue_calls

__all__ = [
    "THOUGHTS_END",
    "Kind",
    "Repair",
    "RequestFacts",
    "Schema",
    "UnrepairableReply",
    "call_may_start_at",
    "parse_reply",
    "repair_content",
    "repair_history",
    "repair_reply",
    "repair_tool_calls",
    "rescue_calls",
]
