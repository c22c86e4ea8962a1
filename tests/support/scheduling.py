"""What the scheduler's tests share. Unless a test says otherwise: units a, b and c share a port and the card, and a
switch costs 4 s, so the loaded unit's right of way ends 4 s after a request began to wait, and at least 8 s (there and
back) after it was ready."""

from __future__ import annotations

from collections.abc import Iterable

from systemd_llm_switch.scheduler import Action, Policy, Scheduler, Spec, State, Switch

URL = "http://127.0.0.1:3004"
COST_S = 4.0
ABC = tuple(Spec(name, URL) for name in "abc")


def alone(target: str | None, *evict: str) -> Switch:
    """A switch after which nothing but the target is loaded."""
    return Switch(target, evict, frozenset())


def ready(*units: str, policy: Policy | None = None, specs: Iterable[Spec] = ABC) -> Scheduler:
    """A scheduler at 0 s with these units loaded and idle, all switches measured."""
    scheduler = Scheduler(policy or Policy(), specs)
    for unit in units:
        scheduler.submit(-1, unit, 0.0)
        scheduler.switch_done(0.0, COST_S)
        scheduler.finish(-1, 0.0)
        assert scheduler.state(unit) is State.READY
    return scheduler


def on_ports(**vram_gib: float | None) -> list[Spec]:
    """Units that may run side by side, as far as the card allows."""
    return [Spec(name, f"http://127.0.0.1:{name}", gib) for name, gib in vram_gib.items()]


def run_until(scheduler: Scheduler, now: float) -> list[Action]:
    """Tick at each deadline up to `now`, and then."""
    actions: list[Action] = []
    while (deadline := scheduler.next_deadline()) is not None and deadline < now:
        actions += scheduler.tick(deadline)
    return actions + scheduler.tick(now)
