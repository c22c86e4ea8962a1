"""Records about contexts for other packages: the process that has them, and what the status reports. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.contexts.fingerprint import NOTHING, Fingerprint
from systemd_llm_switch.contexts.unit import Command


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model whose backend is ready, and the command that started it. `start` names this start of the unit."""

    model: Model
    backend: Backend
    command: Command
    start: str
    pid: int
    is_adopted: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restore: how many contexts, and their tokens. The switch waited `took_s` for it."""

    count: int = 0
    tokens: int = 0
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelContexts:
    """One model's contexts, as the status reports them. `why` says why none are kept, and what to do."""

    supported: bool
    why: str | None
    kept: int = 0
    tokens: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Totals:
    """All contexts, as the status reports them, since the proxy started."""

    bytes: int = 0
    limit_bytes: int = 0
    saves: int = 0
    restores: int = 0
    tokens_restored: int = 0
    tokens_reused: int = 0
    saved_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Awaited:
    """A restored context whose use is not known yet. The next reply to a request that continues it shows the use."""

    tokens: int
    fingerprint: Fingerprint = NOTHING

    def expected(self, request: Fingerprint) -> int:
        """How many of its tokens that request should reuse; 0 for an unrelated request."""
        whole = max(self.fingerprint.size, 1)
        return int(self.tokens * min(1.0, self.fingerprint.common(request) / whole))
