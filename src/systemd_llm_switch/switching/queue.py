"""The waiting requests as the status shows them, and why each waits. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from systemd_llm_switch.config.records import Model
from systemd_llm_switch.scheduler import State
from systemd_llm_switch.switching.status import UnitSnapshot


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request that waits. `submitted` is `time.monotonic`."""

    number: int
    model: Model
    submitted: float


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A waiting request as the status shows it. `since` is seconds since the epoch; `behind` are the models that it
    waits for. `why` is a key of `_REASONS`, and `reason` says the same to a person.
    """

    id: int
    model: str
    since: float
    why: str
    behind: tuple[str, ...]
    reason: str


# For each cause: the reason where a request waits for its own model, and where it waits for others.
_REASONS = {
    "loading": ("its model is being loaded", ""),
    "other_loading": ("", "waits for {} to load first"),
    "stopping": ("waits for its model to stop, to load it again", "waits for {} to stop"),
    "draining": (
        "waits for its model to finish running requests and stop, to load it again",
        "waits for {} to finish running requests",
    ),
    "right_of_way": ("", "waits while {} may go on serving (right of way)"),
    "turn": ("its turn comes next", ""),
}
_OWN = {State.STARTING: "loading", State.STOPPING: "stopping", State.DRAINING: "draining", State.READY: "turn"}
_OTHERS = (
    (State.STARTING, "other_loading"),
    (State.STOPPING, "stopping"),
    (State.DRAINING, "draining"),
    (State.READY, "right_of_way"),
)


def describe(waiters: Iterable[Waiter], units: Sequence[UnitSnapshot], epoch_offset_s: float) -> list[QueueEntry]:
    """Each waiter with its reason, the oldest first. `epoch_offset_s` is `time.time()` minus `time.monotonic()`."""
    states = {unit.model.id: unit.state for unit in units}
    rivals = {unit.model.id: unit.state for unit in units if unit.model.vram != 0}
    entries = []
    for waiter in waiters:
        model = waiter.model.id
        why, behind = _cause(model, states.get(model, State.STOPPED), rivals)
        since = round(waiter.submitted + epoch_offset_s, 1)
        entries.append(QueueEntry(waiter.number, model, since, why, behind, _reason(model, why, behind)))
    return entries


def _cause(model: str, state: State, rivals: dict[str, State]) -> tuple[str, tuple[str, ...]]:
    if state in _OWN:
        is_gone_first = state in (State.STOPPING, State.DRAINING)
        return _OWN[state], (model,) if is_gone_first else ()
    for rival_state, why in _OTHERS:
        behind = tuple(name for name, it in rivals.items() if it is rival_state and name != model)
        if behind:
            return why, behind
    return "turn", ()


def _reason(model: str, why: str, behind: tuple[str, ...]) -> str:
    own, others = _REASONS[why]
    return own if behind in ((), (model,)) else others.format(" and ".join(behind))
