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
    waits for.

    `why` is one of: loading (its model, or those of `behind` first), stopping, draining (running requests are being
    finished), right_of_way (the loaded model may serve its next requests first), turn (it is decided next).
    """

    id: int
    model: str
    since: float
    why: str
    behind: tuple[str, ...]


_CAUSES = (
    (State.STARTING, "loading"),
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
        why, behind = _cause(waiter.model.id, states.get(waiter.model.id, State.STOPPED), rivals)
        since = round(waiter.submitted + epoch_offset_s, 1)
        entries.append(QueueEntry(waiter.number, waiter.model.id, since, why, behind))
    return entries


def _cause(model: str, state: State, rivals: dict[str, State]) -> tuple[str, tuple[str, ...]]:
    if state in (State.STARTING, State.STOPPING, State.DRAINING):
        is_loading = state is State.STARTING
        return ("loading", ()) if is_loading else (dict(_CAUSES)[state], (model,))
    for rival_state, why in _CAUSES:
        behind = tuple(name for name, it in rivals.items() if it is rival_state and name != model)
        if behind:
            return why, behind
    return "turn", ()
