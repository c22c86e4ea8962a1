"""The contexts of one loaded process: what it has read, and how much of the restored contexts was used.

Nothing here blocks. Thread-safe: requests end in their own threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from systemd_llm_switch.backend.slots import Slots
from systemd_llm_switch.contexts.conversations import Conversation, Conversations, Timings
from systemd_llm_switch.contexts.entry import Entry
from systemd_llm_switch.contexts.fingerprint import Fingerprint
from systemd_llm_switch.contexts.records import Awaited, Loaded
from systemd_llm_switch.contexts.store import Store
from systemd_llm_switch.contexts.worth import FEWEST_TOKENS, Rates

# A restore was useless if a request that continues it reused less than this part of what it should.
_USELESS_PART = 0.3


class Session:
    """From the readiness of a process to its end."""

    def __init__(self, loaded: Loaded, store: Store, binding: str, rates: Rates) -> None:
        self.loaded = loaded
        self.store = store
        self.binding = binding
        self.rates = rates
        self.slots = Slots(loaded.backend)
        self._lock = threading.Lock()
        self._conversations = Conversations()
        self._awaited: list[Awaited] = []
        self._longest_short = 0

    @property
    def unit(self) -> str:
        return self.loaded.model.unit

    @property
    def entries(self) -> list[Entry]:
        """The saved contexts that this process can use."""
        return [it for it in self.store.entries if it.unit == self.unit and it.binding == self.binding]

    def note_reply(
        self, beginning: Callable[[], Fingerprint], message: bytes, is_chat: bool, timings: Timings
    ) -> Verdict | None:
        """A reply is done. Returns what it shows about a restored context, if anything."""
        self.rates.note_prompt(timings.read, timings.read_s)
        if timings.prompt < FEWEST_TOKENS:
            with self._lock:
                self._conversations.note_another()
                self._longest_short = max(self._longest_short, timings.prompt)
            return None
        known = beginning()
        with self._lock:
            self._conversations.note(known, timings, message, is_chat)
            for awaited in self._awaited:
                expected = awaited.expected(known)
                if expected >= FEWEST_TOKENS or (not awaited.fingerprint.marks and timings.cached >= FEWEST_TOKENS):
                    self._awaited.remove(awaited)
                    return Verdict(min(timings.cached, awaited.tokens), expected)
        return None

    def note_paused(self, beginning: Fingerprint, message: bytes) -> None:
        """A chat was cut before its end, and goes on after the next load."""
        with self._lock:
            self._conversations.note_paused(beginning, message)

    def note_restored(self, awaited: Awaited) -> None:
        """A slot was filled from a file."""
        with self._lock:
            self._awaited.append(awaited)
            if awaited.fingerprint.marks:
                self._conversations.note_restored(awaited.fingerprint, awaited.tokens)

    def take_conversations(self) -> Sequence[Conversation]:
        """The conversations that the process has read, the most important first. The session forgets them."""
        with self._lock:
            conversations, self._conversations = self._conversations, Conversations()
            return conversations.most_wanted()

    def take_longest_short(self) -> int:
        """The tokens of the longest prompt that was too short to be kept; 0 if there was none. The session forgets
        it."""
        with self._lock:
            tokens, self._longest_short = self._longest_short, 0
            return tokens


class Verdict:
    """What a reply shows about a restored context: how many of its tokens were reused."""

    __slots__ = ("is_useless", "reused")

    def __init__(self, reused: int, expected: int) -> None:
        self.reused = reused
        self.is_useless = reused < expected * _USELESS_PART
