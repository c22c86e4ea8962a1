"""The last long conversations that one loaded model has read, and how each can be brought back into a slot.

Their number and size are bounded. They are kept in memory only, while the model is loaded. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from systemd_llm_switch.contexts.fingerprint import STRIDE, Fingerprint

MOST = 4  # conversations of one model
_LARGEST_BODY = 8_000_000  # bytes; a larger one (pictures, say) is not kept to be sent again
_CHARACTERS_A_TOKEN = 4
_SAME_PART = 0.9  # requests with this much in common belong to one conversation, continued or repeated


@dataclass(frozen=True, slots=True)
class Timings:
    """The numbers of tokens that llama-server reports with a reply: cached, read and written."""

    cached: int
    read: int
    read_s: float
    written: int

    @property
    def prompt(self) -> int:
        return self.cached + self.read

    @classmethod
    def of(cls, reported: object) -> Timings | None:
        """A reply's `timings`; None if they are missing or not numbers."""
        if not isinstance(reported, Mapping):
            return None
        values = [reported.get(name) for name in ("cache_n", "prompt_n", "prompt_ms", "predicted_n")]
        numbers = [it for it in values if isinstance(it, int | float) and not isinstance(it, bool) and 0 <= it < 1e12]
        if len(numbers) < len(values):
            return None
        cached, read, read_ms, written = numbers
        return cls(int(cached), int(read), read_ms / 1000, int(written))


@dataclass(frozen=True, slots=True)
class Conversation:
    """One prompt and its reply. `message` is the request's body as the backend got it; None if it is too large.

    `turns` counts the requests that continued it. With `is_last`, no other request came since, so the slot that was
    used last has it; otherwise `slot` is set if its slot is known. With `is_guess`, its length is only estimated.
    """

    fingerprint: Fingerprint
    prompt: int
    written: int
    is_chat: bool
    message: bytes | None
    turns: int = 1
    is_last: bool = False
    slot: int | None = None
    is_guess: bool = False

    @property
    def is_read(self) -> bool:
        """Whether a request used it; otherwise it was only restored."""
        return self.message is not None or self.written > 0

    @property
    def tokens(self) -> int:
        """How many tokens a slot holds after the reply: all but the last one that was written."""
        return self.prompt + max(0, self.written - 1)


class Conversations:
    """Not thread-safe. The most recent one is the last."""

    def __init__(self) -> None:
        self._all: list[Conversation] = []
        self._last: Conversation | None = None

    def note(self, fingerprint: Fingerprint, timings: Timings, message: bytes, is_chat: bool) -> None:
        """A reply is done."""
        known = next((it for it in self._all if is_same(it.fingerprint, fingerprint)), None)
        kept = message if len(message) <= _LARGEST_BODY else None
        new = Conversation(fingerprint, timings.prompt, timings.written, is_chat, kept)
        if known is not None:
            self._all.remove(known)
            new = replace(new, turns=known.turns + 1)
        self._all.append(new)
        self._last = new
        if len(self._all) > MOST:
            self._all.remove(min(self._all[:-1], key=_rank))

    def note_another(self) -> None:
        """A request that is too short to be kept used a slot."""
        self._last = None

    def note_paused(self, fingerprint: Fingerprint, message: bytes) -> None:
        """A reply was cut before its end, so the length of its prompt is estimated."""
        self._all = [it for it in self._all if not is_same(it.fingerprint, fingerprint)]
        tokens = fingerprint.size // _CHARACTERS_A_TOKEN
        is_only_one = not any(it.is_guess for it in self._all)
        new = Conversation(fingerprint, tokens, 0, True, message, turns=2, is_guess=True)
        self._all.append(new)
        self._last = new if is_only_one else None

    def note_restored(self, fingerprint: Fingerprint, tokens: int) -> None:
        """A slot was filled from a file, which is kept. It is worth saving again only if a request continues it."""
        self._all.append(Conversation(fingerprint, tokens, 0, False, None))

    def most_wanted(self) -> list[Conversation]:
        """The conversations to save, the most important first: those that were continued, then the longest. Leaves out
        those that were only restored."""
        found = [replace(it, is_last=it is self._last) for it in self._all if it.is_read]
        return sorted(found, key=_rank, reverse=True)


def is_same(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two requests belong to one conversation: one continues the other, or differs only near its end."""
    common = one.common(other)
    return common > 0 and common >= _SAME_PART * min(len(one.marks), len(other.marks)) * STRIDE


def _rank(conversation: Conversation) -> tuple[bool, int]:
    return conversation.turns > 1, conversation.prompt
