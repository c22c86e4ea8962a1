"""Reads saved contexts back into a process that has just become ready: first the one that a request waits for.

Blocks for a limited time; never raises.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from systemd_llm_switch.backend.slots import SlotError, SlotRefused
from systemd_llm_switch.contexts.entry import Entry
from systemd_llm_switch.contexts.fingerprint import Fingerprint
from systemd_llm_switch.contexts.records import Awaited, Restored
from systemd_llm_switch.contexts.session import Session
from systemd_llm_switch.contexts.worth import FEWEST_TOKENS
from systemd_llm_switch.quoting import quoted

log = logging.getLogger(__name__)

_LIST_TIMEOUT_S = 1.0
# No request is known to wait for the others, so they may take only this long together; less if one waits meanwhile.
_OTHERS_BOUND_S = 0.5
_OTHERS_BESIDE_A_REQUEST_S = 0.1
_LONGEST_S = 10.0
_SHORTEST_BOUND_S = 2.0


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What to restore: `first` for a request that waits, then `others` if there are slots and time for them."""

    first: Entry | None
    others: tuple[Entry, ...]


def plan(entries: Sequence[Entry], wanted: Sequence[Fingerprint]) -> RestorePlan:
    """Chooses among a process's own contexts. `wanted` are the beginnings of the requests that wait, oldest first."""
    recent = sorted(entries, key=lambda entry: entry.used_at, reverse=True)
    for request in wanted:
        best = max(recent, key=lambda entry: entry.reusable(request), default=None)
        if best is not None and best.reusable(request) >= FEWEST_TOKENS:
            return RestorePlan(best, tuple(entry for entry in recent if entry is not best))
    return RestorePlan(None, tuple(recent))


class Restoring:
    """Reads contexts back into one process."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.restored: list[Entry] = []

    def run(self, wanted: Sequence[Fingerprint]) -> Restored:
        """Restores the context that a waiting request continues, then others as long as that is quick."""
        began = time.monotonic()
        session = self._session
        chosen = plan(session.entries, wanted)
        if chosen.first is None and not chosen.others:
            return Restored(0, 0, 0.0)
        try:
            if chosen.first is not None:
                bound_s = min(_LONGEST_S, max(_SHORTEST_BOUND_S, chosen.first.read_s / 2))
                self._restore(chosen.first, 0, began + bound_s)
            is_waited_for = any(request.size for request in wanted)
            bound_s = _OTHERS_BESIDE_A_REQUEST_S if is_waited_for else _OTHERS_BOUND_S
            self._restore_others(chosen.others, bound_s, is_first_free=not self.restored)
        except (SlotError, OSError) as error:
            log.info("context_skipped model=%s reason=%s", session.loaded.model.id, quoted(str(error)))
        except Exception:
            log.exception("context_restore_crashed model=%s", session.loaded.model.id)
        return Restored(len(self.restored), sum(entry.tokens for entry in self.restored), time.monotonic() - began)

    def _restore_others(self, entries: Sequence[Entry], left_s: float, *, is_first_free: bool) -> None:
        """
        Raises:
            SlotError, OSError
        """
        if not entries:
            return
        numbers = [0] if is_first_free else []
        if len(entries) > len(numbers):
            slots = self._session.slots.list(time.monotonic() + _LIST_TIMEOUT_S) or ()
            numbers += [slot.number for slot in slots if slot.number != 0 and not slot.is_busy]
        for number, entry in zip(numbers, entries, strict=False):
            left_s -= self._session.rates.restore_s(entry.size)
            if left_s < 0:
                return
            self._restore(entry, number, time.monotonic() + _SHORTEST_BOUND_S)

    def _restore(self, entry: Entry, slot: int, deadline: float) -> None:
        """
        Raises:
            SlotError: the backend refused, ended, or is too slow.
            OSError
        """
        session, store = self._session, self._session.store
        name = session.loaded.model.id
        if not store.is_whole(entry):
            store.drop([entry])
            log.info("context_skipped model=%s reason=%s", name, quoted("its file was cut, or is another one"))
            return
        try:
            done = session.slots.restore(slot, entry.context_name, deadline)
        except SlotRefused:
            if slot == 0:  # it would be refused again; in another slot, perhaps only room was missing
                store.drop([entry])
            raise
        if done.tokens != entry.tokens:
            store.drop([entry])
        store.note_used(entry, time.time())
        session.rates.note_restore(done.size, done.took_s)
        session.note_restored(Awaited(done.tokens, entry.fingerprint))
        self.restored.append(entry)
        log.info(
            "context_restored model=%s slot=%d tokens=%d bytes=%d ms=%.0f",
            name, slot, done.tokens, done.size, done.took_s * 1000,
        )  # fmt: skip
