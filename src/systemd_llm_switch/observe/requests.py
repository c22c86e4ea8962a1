"""The last requests, as /api/requests shows them: numbers and names, never prompts or answers."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable

from systemd_llm_switch.openai.shapes import Json, object_of

KEPT = 500


class RequestLog:
    """Thread-safe: `deque.append` is atomic, and an entry never changes after it was added."""

    def __init__(self, on_entry: Callable[[Json], None] = lambda entry: None) -> None:
        """`on_entry` gets each new entry. It must be quick."""
        self._entries: deque[Json] = deque(maxlen=KEPT)
        self._on_entry = on_entry

    def add(self, entry: Json) -> None:
        """Keeps one more request, and drops the oldest if there are too many."""
        self._entries.append(entry)
        self._on_entry(entry)

    def last(self, limit: int = KEPT) -> list[Json]:
        """The last `limit` requests, the newest first."""
        return list(itertools.islice(reversed(self._entries.copy()), limit))


def entry(
    *,
    model: str,
    path: str,
    status: int,
    is_stream: bool,
    times_ms: Iterable[float],
    restore_ms: float,
    first_token_ms: float | None,
    usage: Json,
    timings: Json,
    repairs: int,
    error: str | None,
) -> Json:
    """One finished request. `times_ms`: in the queue, for the switch, at the backend."""
    queue_ms, switch_ms, backend_ms = (round(it, 1) for it in times_ms)
    return {
        "at": round(time.time(), 3),
        "model": model,
        "path": path,
        "status": status,
        "stream": is_stream,
        "queue_ms": queue_ms,
        "switch_ms": switch_ms,
        "restore_ms": round(restore_ms, 1),
        "backend_ms": backend_ms,
        "first_token_ms": None if first_token_ms is None else round(first_token_ms, 1),
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "cached_tokens": _cached(usage, timings),
        "completion_tokens": _count(usage.get("completion_tokens")),
        "tokens_per_s": _rate(timings.get("predicted_per_second")),
        "repairs": repairs,
        "error": error,
    }


def _cached(usage: Json, timings: Json) -> int | None:
    """How many prompt tokens the backend had in its cache: llama-server's count, or else OpenAI's."""
    known = _count(timings.get("cache_n"))
    return _count(object_of(usage.get("prompt_tokens_details")).get("cached_tokens")) if known is None else known


def _count(value: object) -> int | None:
    """The value if it is a valid number of tokens, else None: a backend may send anything."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _rate(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
    return round(value, 2) if is_number else None  # type: ignore[call-overload]  # it is a number
