"""Reports each reply to the contexts: which conversation was read, and how much of it was cached."""

from __future__ import annotations

from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.forward.record import Observer, Record


def context_notes(contexts: Contexts) -> Observer:
    """An observer of requests."""

    def observe(record: Record) -> None:
        asked, lease = record.asked, record.lease
        if asked is None or lease is None or not record.timings:
            return
        unit, request = lease.model.unit, asked.request
        contexts.note_reply(unit, lease.start, request.body, asked.sent, request.is_chat, record.timings)

    return observe
