"""Repair, pure: takes a model's reply (or a client's replayed history) and returns a sound one.

Must not do I/O, log or start threads. docs/repair.md has the rules. Start reading at `reply`.
"""

from .budget import Budget
from .form_reader import starts_with_call
from .history import MALFORMED as MALFORMED_ARGUMENTS
from .history import repair_history
from .holding import Holding, take_thoughts
from .model import Repair, RepairKind, RequestFacts, UnrepairableReply
from .reply import parse_reply, repair_reply
from .text import decode
from .thoughts import THOUGHTS_END, is_in_call, may_end_thoughts

__all__ = [
    "MALFORMED_ARGUMENTS",
    "THOUGHTS_END",
    "Budget",
    "Holding",
    "Repair",
    "RepairKind",
    "RequestFacts",
    "UnrepairableReply",
    "decode",
    "is_in_call",
    "may_end_thoughts",
    "parse_reply",
    "repair_history",
    "repair_reply",
    "starts_with_call",
    "take_thoughts",
]
