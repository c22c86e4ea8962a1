"""The record of a request: its journal line, its Server-Timing header, and what observers get."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from systemd_llm_switch.errors import ClientGone
from systemd_llm_switch.openai.shapes import Json, object_of
from systemd_llm_switch.repair import Repair
from systemd_llm_switch.switching.leases import Lease

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Record:
    """One request. Its own thread fills the record in; it does not change after the request's end."""

    path: str
    client: str = ""
    """What the client calls itself (User-Agent)."""
    model: str = "-"
    is_streamed: bool = False
    status: int = 500
    error: str = "-"
    """The error's code."""
    lease: Lease | None = None
    began: float = field(default_factory=time.monotonic)
    backend_s: float = 0.0
    first_token_s: float | None = None
    """From the request's arrival to the first words of its stream; None without a stream."""
    usage: Json = field(default_factory=dict)
    timings: Json = field(default_factory=dict)
    """llama-server's own measures of the reply: prompt_n, cache_n, prompt_per_second, predicted_n and so on."""
    repairs: list[Repair] = field(default_factory=list)

    @property
    def times_ms(self) -> tuple[float, float, float]:
        """The times in the queue, for the switch and at the backend, so far."""
        queue_s, switch_s = self.lease.waited_s if self.lease else (0.0, 0.0)
        return queue_s * 1000, switch_s * 1000, self.backend_s * 1000

    def note_first_token(self) -> None:
        """The first words of a stream go to the client."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.began

    def note_reply(self, reply: Json) -> None:
        """Keeps the usage and the timings that a reply, or its last chunk, reports."""
        self.usage = object_of(reply.get("usage"))
        self.timings = object_of(reply.get("timings"))

    def headers(self) -> Iterator[tuple[str, str]]:
        """Server-Timing (https://www.w3.org/TR/server-timing/, ms), and the number of repairs."""
        times = "queue;dur={:.1f}, switch;dur={:.1f}, backend;dur={:.1f}".format(*self.times_ms)
        if self.lease is not None and self.lease.restore_s:  # the part of the switch in which contexts were restored
            times += f", restore;dur={self.lease.restore_s * 1000:.1f}"
        yield ("Server-Timing", times)
        if self.repairs:
            yield ("X-LLM-Switch-Repaired", str(len(self.repairs)))

    def log(self) -> None:
        """Logs one line for the request. It never contains prompt or answer, which are the user's."""
        is_fine = self.status < 400 or self.status == ClientGone.status
        level = logging.INFO if is_fine else logging.WARNING if self.status < 500 else logging.ERROR
        log.log(
            level,
            "request model=%s path=%s status=%d stream=%s queue_ms=%.1f switch_ms=%.1f backend_ms=%.1f "
            "prompt_tokens=%s completion_tokens=%s repaired=%d error=%s",
            self.model,
            self.path,
            self.status,
            "yes" if self.is_streamed else "no",
            *self.times_ms,
            _count(self.usage.get("prompt_tokens")),
            _count(self.usage.get("completion_tokens")),
            len(self.repairs),
            self.error,
        )


Observer = Callable[[Record], None]
"""Called once at the end of each request, by its own thread, when the client has its answer. It must be quick."""


def _count(value: object) -> int | str:
    """A number of tokens for the journal; a backend may send anything, which could add fields to the line."""
    return value if isinstance(value, int) else "-"
