"""Records of models and of past switches, and their form in /api/status. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from systemd_llm_switch.config.records import Model
from systemd_llm_switch.contexts.records import ModelContexts
from systemd_llm_switch.scheduler import State


@dataclass(frozen=True, slots=True)
class UnitSnapshot:
    """A configured model's unit at one moment. `loaded_since` is seconds since the epoch. `load_began`
    (`time.monotonic`) is when the switch to it began; None when it does not load."""

    model: Model
    state: State
    in_flight: int
    waiting: int
    loaded_since: float | None
    load_began: float | None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model. `state` is the value of the scheduler's `State`. `loaded_since`, and `loading_since` while it loads,
    are seconds since the epoch."""

    state: str
    unit: str
    in_flight: int
    waiting: int
    loaded_since: float | None
    loading_since: float | None
    last_load_s: float | None
    last_error: str | None
    contexts: ModelContexts


@dataclass(frozen=True, slots=True)
class SwitchRecord:
    """One switch between models. `at` is seconds since the epoch."""

    at: float
    left: tuple[str, ...]
    to: str | None
    stop_ms: float
    load_ms: float
    error: str | None

    def as_json(self) -> dict[str, object]:
        """The record as /api/status shows it."""
        fields = {"at": self.at, "from": list(self.left), "to": self.to}
        return fields | {"stop_ms": self.stop_ms, "load_ms": self.load_ms, "error": self.error}

    def as_words(self) -> str:
        """The record as the journal shows it."""
        return (
            f"from={','.join(self.left) or '-'} to={self.to or '-'} "
            f"stop_ms={self.stop_ms:.0f} load_ms={self.load_ms:.0f}"
        )
