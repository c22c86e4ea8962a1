"""Saves the contexts of a process before it is stopped: those that are worth it, complete, within a time limit.

Blocks; never raises. Logs each context that it skips, with the reason.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence

from systemd_llm_switch.backend.slots import Slot, SlotError
from systemd_llm_switch.contexts.conversations import Conversation, is_same
from systemd_llm_switch.contexts.entry import Entry, FileMark
from systemd_llm_switch.contexts.fingerprint import NOTHING
from systemd_llm_switch.contexts.session import Session
from systemd_llm_switch.contexts.worth import FEWEST_TOKENS, Worth
from systemd_llm_switch.quoting import quoted

log = logging.getLogger(__name__)

_LIST_TIMEOUT_S = 2.0
_MOST_SAVED = 3  # conversations at one switch
_WHOLE_PART = 0.9  # a slot with a smaller part of a conversation has lost it
_GUESSED_PART = 0.5  # the same, if the length was only estimated
_OFF_BY = 2  # tokens; replies differ in whether a stop token counts


class _Skip(Exception):
    """This conversation is not saved; the message says why."""


# Makes room for that many bytes, if it can; returns whether there is room.
MakeRoom = Callable[[Session, int], bool]


class Saving:
    """Saves the contexts of one process."""

    def __init__(self, session: Session, make_room: MakeRoom) -> None:
        self._session = session
        self._make_room = make_room
        self._slots: Sequence[Slot] = ()
        self.saved: list[Entry] = []

    def run(self) -> None:
        """Saves the conversations that matter most."""
        session = self._session
        conversations = session.take_conversations()
        short = session.take_longest_short()
        if not conversations and short:
            self._log_skipped(session.rates.judge(short).reason or "")
        try:
            worths = [(it, session.rates.judge(it.tokens)) for it in conversations]
            bound_s = max((worth.bound_s for _, worth in worths if worth.reason is None), default=_LIST_TIMEOUT_S)
            deadline = time.monotonic() + bound_s
            if not self._list(conversations, deadline):
                return
            worths += [(it, session.rates.judge(it.tokens)) for it in self._unknown(conversations)]
            for conversation, worth in worths[:_MOST_SAVED]:
                self._save(conversation, worth, deadline)
        except (SlotError, OSError) as error:
            self._log_skipped(str(error))
        except Exception:
            log.exception("context_save_crashed model=%s", session.loaded.model.id)

    def _list(self, conversations: Sequence[Conversation], deadline: float) -> bool:
        """Reads what the slots hold; False if nothing there can be worth a file."""
        if not conversations and not self._session.loaded.is_adopted:
            return False
        self._slots = self._session.slots.list(min(deadline, time.monotonic() + _LIST_TIMEOUT_S)) or ()
        return True

    def _unknown(self, conversations: Sequence[Conversation]) -> list[Conversation]:
        """What an adopted process has read for an earlier proxy. This proxy has no fingerprint of it."""
        if not self._session.loaded.is_adopted:
            return []
        known = [it for conversation in conversations if (it := self._holding(conversation)) is not None]
        left = [slot for slot in self._slots if slot not in known and not slot.is_busy]
        long = [slot for slot in left if slot.tokens >= FEWEST_TOKENS]
        return [Conversation(NOTHING, slot.tokens, 0, False, None, slot=slot.number) for slot in long]

    def _save(self, conversation: Conversation, worth: Worth, deadline: float) -> None:
        try:
            self._check(conversation, worth)
            slot, tokens = self._bring_back(conversation, deadline)
            self._write(conversation, slot, tokens, worth, deadline)
        except (_Skip, SlotError, ValueError, OSError) as reason:
            self._log_skipped(str(reason))

    def _check(self, conversation: Conversation, worth: Worth) -> None:
        """
        Raises:
            _Skip: it is not worth a file, a similar one is kept already, or the disk has no room.
        """
        if worth.reason is not None:
            raise _Skip(worth.reason)
        older = self._alike(conversation)
        kept = max((entry.tokens for entry in older), default=0)
        more_s = self._session.rates.read_s(conversation.tokens - kept) if kept else worth.read_s
        if more_s < max(0.3, worth.save_s):
            raise _Skip(f"a file with {kept} of its {conversation.tokens} tokens is kept already")
        if not self._make_room(self._session, worth.size):
            raise _Skip(f"no room for {worth.size} bytes (server.contexts.max_gb, and a tenth of the disk stays free)")

    def _alike(self, conversation: Conversation) -> list[Entry]:
        """The files of the same conversation."""
        return [it for it in self._session.entries if is_same(it.fingerprint, conversation.fingerprint)]

    def _holding(self, conversation: Conversation) -> Slot | None:
        """The slot that certainly holds a whole conversation: that of the last request is in the slot that was used
        last. (The number of tokens in a slot proves too little: two conversations may have the same length.)"""
        last = max(self._slots, key=lambda slot: slot.task, default=None)
        if last is None or not conversation.is_last:
            return None
        if conversation.is_guess:  # its slot may still be busy for a moment; the save waits for that
            return last if last.tokens >= conversation.tokens * _GUESSED_PART else None
        is_it = not last.is_busy and abs(last.tokens - conversation.tokens) <= _OFF_BY
        return last if is_it else None

    def _bring_back(self, conversation: Conversation, deadline: float) -> tuple[int, int]:
        """The slot that holds a conversation, and how many tokens of it. If other requests came since, its prompt is
        sent once more: llama-server has it in another slot or in its host cache.

        Raises:
            _Skip: it is lost.
            SlotError
        """
        if conversation.slot is not None:
            return conversation.slot, conversation.tokens
        slot = self._holding(conversation)
        if slot is not None:
            return slot.number, slot.tokens
        if conversation.message is None or not self._session.loaded.command.has_cache_ram:
            raise _Skip("another prompt took its place in the slot")
        body = json.loads(conversation.message)
        replay = self._session.slots.replay(body, conversation.is_chat, deadline)
        self._slots = [it for it in self._slots if it.number != replay.slot]  # its former content is gone
        if replay.tokens < conversation.prompt * _WHOLE_PART and not conversation.is_guess:
            raise _Skip(f"its prompt came back with {replay.tokens} of {conversation.prompt} tokens")
        return replay.slot, replay.tokens

    def _write(self, conversation: Conversation, slot: int, tokens: int, worth: Worth, deadline: float) -> None:
        """
        Raises:
            SlotError, ValueError, OSError: the file was not written completely.
        """
        session, store = self._session, self._session.store
        older = self._alike(conversation)
        key = store.begin()
        try:
            done = session.slots.save(slot, store.unfinished_name(key), deadline)
            if done.tokens < tokens * _WHOLE_PART:
                raise ValueError(f"slot {slot} holds {done.tokens} of {tokens} tokens")

            def describe(mark: FileMark) -> Entry:
                return Entry(
                    key, session.unit, session.binding, store.boot, done.tokens, worth.read_s,
                    conversation.fingerprint, mark, time.time(),
                )  # fmt: skip

            entry = store.finish(key, done.size, describe)
        except BaseException:
            store.abandon(key)
            raise
        self.saved.append(entry)
        store.drop(it for it in older if it.tokens <= entry.tokens)
        session.rates.note_save(done.tokens, done.size, done.took_s)
        log.info(
            "context_saved model=%s slot=%d tokens=%d bytes=%d ms=%.0f",
            session.loaded.model.id, slot, done.tokens, done.size, done.took_s * 1000,
        )  # fmt: skip

    def _log_skipped(self, reason: str) -> None:
        log.info("context_skipped model=%s reason=%s", self._session.loaded.model.id, quoted(reason))
