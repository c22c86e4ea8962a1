"""What the last conversations of one unit began with: up to and including the first message of the user. Pure.

Kept in memory only. Two of them together show what a client sends each time: its system prompt and its tools.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from dataclasses import dataclass
from typing import Any

from systemd_llm_switch.contexts.fingerprint import STRIDE, Fingerprint, fingerprint

_MOST = 4
_LARGEST_MESSAGE = 2_000_000  # bytes; reading a larger one costs a request's thread too long


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a conversation, as the body of a chat request."""

    body: dict[str, Any]
    fingerprint: Fingerprint

    @classmethod
    def of_message(cls, message: bytes) -> Opening | None:
        """From the body that a backend got; None if it is too large, or has no message of the user."""
        if len(message) > _LARGEST_MESSAGE:
            return None
        try:
            body = json.loads(message)
            messages = body.get("messages")
        except (ValueError, AttributeError, RecursionError):
            return None
        if not isinstance(messages, list):
            return None
        is_users = [isinstance(it, dict) and it.get("role") == "user" for it in messages]
        if True not in is_users:
            return None
        opening = {**body, "messages": messages[: is_users.index(True) + 1]}
        return cls(opening, fingerprint(opening))

    def is_that_of(self, other: Opening) -> bool:
        """Whether both belong to one conversation."""
        return _said(self) == _said(other)


class Openings:
    """Not thread-safe."""

    def __init__(self) -> None:
        self._last: deque[Opening] = deque(maxlen=_MOST)

    def note(self, opening: Opening) -> None:
        """A request came that begins so. A later one of the same conversation takes the place of an earlier one."""
        known = next((it for it in self._last if it.is_that_of(opening)), None)
        if known is not None:
            self._last.remove(known)
        self._last.append(opening)

    def alike(self) -> tuple[Opening, Opening] | None:
        """The two that share the longest beginning; None if no two share enough to be worth reading."""
        pairs = itertools.combinations(reversed(self._last), 2)
        best = max(pairs, key=lambda pair: pair[0].fingerprint.common(pair[1].fingerprint), default=None)
        if best is None or best[0].fingerprint.common(best[1].fingerprint) < STRIDE:
            return None
        return best


def _said(opening: Opening) -> tuple[object, object]:
    return opening.body.get("tools"), opening.body["messages"]
