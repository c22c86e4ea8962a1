"""The last requests, as /api/requests shows them: numbers and names, never prompts or answers."""

from __future__ import annotations

import itertools
from collections import deque
from typing import NamedTuple

from systemd_llm_switch.openai.shapes import Json, object_of
from systemd_llm_switch.quoting import printable

KEPT = 500
_MOST_TOKENS = 10**12  # the sum of larger ones might be no number that Prometheus can have


class Finished(NamedTuple):
    """A finished request. It is made for each, and shown for few: rounding and names are for whoever asks."""

    at: float
    model: str
    path: str
    status: int
    is_stream: bool
    times_ms: tuple[float, float, float]
    """In the queue, for the switch, at the backend."""
    restore_ms: float
    first_token_ms: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    tokens_per_s: float | None
    repairs: tuple[str, ...]
    """Their kinds."""
    error: str | None
    client: str = ""
    """What the client calls itself (User-Agent), as it was sent."""

    def as_json(self) -> Json:
        """As /api/requests shows it."""
        queue_ms, switch_ms, backend_ms = (round(it, 1) for it in self.times_ms)
        return {
            "at": round(self.at, 3),
            "model": self.model,
            "path": self.path,
            "status": self.status,
            "stream": self.is_stream,
            "queue_ms": queue_ms,
            "switch_ms": switch_ms,
            "restore_ms": round(self.restore_ms, 1),
            "backend_ms": backend_ms,
            "first_token_ms": None if self.first_token_ms is None else round(self.first_token_ms, 1),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "tokens_per_s": None if self.tokens_per_s is None else round(self.tokens_per_s, 2),
            "repairs": len(self.repairs),
            "error": self.error,
            "client": printable(self.client) or None,
        }


class RequestLog:
    """Thread-safe: `deque.append` is atomic, and an entry never changes after it was added."""

    def __init__(self) -> None:
        self._entries: deque[Finished] = deque(maxlen=KEPT)

    def add(self, entry: Finished) -> None:
        """Keeps one more request, and drops the oldest if there are too many."""
        self._entries.append(entry)

    def last(self, limit: int = KEPT) -> list[Json]:
        """The last `limit` requests, the newest first."""
        return [entry.as_json() for entry in itertools.islice(reversed(self._entries.copy()), limit)]


def cached_tokens(usage: Json, timings: Json) -> int | None:
    """How many prompt tokens the backend had in its cache: llama-server's count, or else OpenAI's."""
    known = token_count(timings.get("cache_n"))
    if known is not None:
        return known
    return token_count(object_of(usage.get("prompt_tokens_details")).get("cached_tokens"))


def token_count(value: object) -> int | None:
    """The value if it is a valid number of tokens, else None: a backend may send anything."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS:
        return value
    return None


def token_rate(value: object) -> float | None:
    """Likewise, as tokens per second."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
    return value if is_number else None  # type: ignore[return-value]  # it is a number
