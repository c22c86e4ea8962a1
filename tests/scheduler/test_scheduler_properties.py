"""Random events against the scheduler, with a model of the world that holds it to its promises.

The model performs the actions: it keeps which units are loaded and which tickets run, answers a Switch or an
Abort later or with a failure, and asserts at every step what must never be otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bench.simulate import Simulation, ours
from bench.traces import Step, units_of
from systemd_llm_switch.scheduler import (
    Abort,
    Action,
    Grant,
    HoldEnded,
    Interrupt,
    Policy,
    Reason,
    Reject,
    Scheduler,
    Spec,
    State,
    Switch,
)

COST_S = 12.0  # of every switch: costly enough for the next request of an agent to be awaited
LEAST_COST_S = 10.0  # what a switch may be taken for: an unmeasured one for 10 s
NAMES = ("a", "b", "c", "d", "e")
URLS = ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3")

specs = st.builds(
    Spec,
    unit=st.just(""),
    url=st.sampled_from(URLS),
    vram_gib=st.sampled_from([None, 0, 4.0, 8.0, 16.0, 99.0]),
    ttl_s=st.sampled_from([None, None, 5.0, 60.0]),
)
policies = st.builds(
    Policy,
    queue_limit=st.sampled_from([3, 64]),
    in_flight_limit=st.sampled_from([1, 2, 128]),
    vram_gib=st.sampled_from([None, 16.0, 24.0]),
    max_wait_s=st.sampled_from([None, None, 0.0, 3.0]),
    min_resident_s=st.sampled_from([None, None, 0.0, 20.0]),
    drain_timeout_s=st.sampled_from([15.0, 1800.0]),
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Spec]:
    names = draw(st.sets(st.sampled_from(NAMES), min_size=1))
    shapes = {name: draw(specs) for name in sorted(names)}
    return {name: Spec(name, it.url, it.vram_gib, it.ttl_s) for name, it in shapes.items()}


def share(spec: Spec, card: float | None) -> float:
    """The part of the card a unit takes, reckoned apart from the scheduler's own way."""
    if spec.vram_gib == 0:
        return 0.0
    if spec.vram_gib is None or card is None:
        return 1.0
    return min(1.0, spec.vram_gib / card)


@dataclass
class Loaded:
    url: str
    since: float
    running: set[int] = field(default_factory=set)


class World(RuleBasedStateMachine):
    """What the scheduler decides about, and the judge of its decisions."""

    @initialize(policy=policies, config=configs())
    def start(self, policy: Policy, config: dict[str, Spec]) -> None:
        self.now = 0.0
        self.policy, self.config, self.known = policy, config, config
        self.scheduler = Scheduler(policy, config.values())
        self.loaded: dict[str, Loaded] = {}
        self.waiting: dict[int, tuple[str, float]] = {}
        self.running: dict[int, str] = {}
        self.interrupted: set[int] = set()
        self.forced: set[int] = set()  # tickets that an operator's force may interrupt
        self.drains: dict[str, float] = {}  # since when
        self.dismissed: set[str] = set()  # units that must go for another reason than a waiter
        self.untrusted: set[str] = set()  # loaded, but their stop is not confirmed or somebody else started them
        self.switch: Switch | None = None
        self.starting_url = ""
        self.aborting = False
        self.tickets = 0

    # -- the scheduler's environment ---------------------------------------------------------------------

    def perform(self, actions: list[Action]) -> None:
        self.check_drains()
        for action in actions:
            match action:
                case Grant(ticket):
                    unit, _ = self.waiting.pop(ticket)
                    assert unit in self.loaded, "granted on a unit that is not loaded"
                    assert unit not in self.untrusted, "granted before it was started anew"
                    assert self.switch is None or unit not in self.switch.evict, "granted while it is stopped"
                    self.running[ticket] = unit
                    self.loaded[unit].running.add(ticket)
                    assert len(self.running) <= max(self.policy.in_flight_limit, self.most_running)
                case Reject(ticket, reason, retry_after_s):
                    del self.waiting[ticket]
                    if reason in (Reason.ON_HOLD, Reason.QUEUE_FULL):
                        assert retry_after_s is not None
                        assert 1 <= retry_after_s < 60
                case Switch():
                    self.check_switch(action)
                    self.switch = action
                    self.starting_url = self.config[action.target].url if action.target else ""
                case Abort(target):
                    assert self.switch is not None
                    assert self.switch.target == target
                    assert not self.aborting
                    wanted = any(unit == target for unit, _ in self.waiting.values())
                    assert not wanted or target in self.dismissed, "aborted a load that somebody waits for"
                    self.aborting = True
                case Interrupt(ticket):
                    unit = self.running[ticket]
                    assert ticket in self.loaded[unit].running
                    assert ticket not in self.interrupted
                    self.interrupted.add(ticket)
                    is_overdue = self.now >= self.drains.get(unit, self.now) + self.policy.drain_timeout_s
                    assert is_overdue or ticket in self.forced, "interrupted without need"
                case HoldEnded():
                    assert not self.scheduler.on_hold
        self.most_running = len(self.running)
        self.check_that_all_is_decided()

    def check_that_all_is_decided(self) -> None:
        before = [self.scheduler.state(name) for name in NAMES]
        assert self.scheduler.tick(self.now) == [], "an event left something undone"
        assert [self.scheduler.state(name) for name in NAMES] == before, "an event left a unit in the wrong state"

    def check_switch(self, switch: Switch) -> None:
        assert self.switch is None, "two switches at a time"
        assert set(switch.evict) | switch.keep == set(self.loaded)
        assert not set(switch.evict) & switch.keep
        assert switch.target not in self.loaded
        for unit in switch.evict:
            assert not self.loaded[unit].running, "evicted under a running request"
        if switch.target is None:
            assert switch.evict
            return
        target = self.config[switch.target]
        assert target.url not in {self.loaded[unit].url for unit in switch.keep}
        shares = [share(self.known[unit], self.policy.vram_gib) for unit in switch.keep]
        own = share(target, self.policy.vram_gib)
        assert own == 0 or own + sum(shares) <= 1 + 1e-9, "loaded more than the card holds"

    def check_drains(self) -> None:
        """A unit begins to drain for a waiter no sooner than the policy says."""
        for unit, loaded in self.loaded.items():
            if self.scheduler.state(unit) is not State.DRAINING:
                self.drains.pop(unit, None)
                continue
            if unit in self.drains:
                continue
            self.drains[unit] = self.now
            if unit in self.dismissed or not loaded.running:
                continue
            min_resident = self.policy.min_resident_s
            assert self.now >= loaded.since + (2 * LEAST_COST_S if min_resident is None else min_resident)
            max_wait = LEAST_COST_S if self.policy.max_wait_s is None else self.policy.max_wait_s
            others = [since for it, since in self.waiting.values() if it != unit]
            assert others, "drains for nobody"
            assert self.now >= min(others) + max_wait, "drains too early"

    def is_stale(self, unit: str) -> bool:
        is_up = unit in self.loaded and unit in self.config
        return is_up and self.loaded[unit].url != self.config[unit].url

    def stop(self, unit: str) -> None:
        for ticket in self.loaded.pop(unit).running:
            self.interrupted.discard(ticket)
        self.dismissed.discard(unit)
        self.untrusted.discard(unit)
        self.drains.pop(unit, None)

    def load(self, unit: str, url: str) -> None:
        self.loaded[unit] = Loaded(url, self.now)
        self.untrusted.discard(unit)

    def end_switch(self) -> Switch:
        assert self.switch is not None
        switch, self.switch, self.aborting = self.switch, None, False
        return switch

    most_running = 0

    # -- events ------------------------------------------------------------------------------------------

    @rule(unit=st.sampled_from(NAMES), count=st.integers(1, 3))
    def submit(self, unit: str, count: int) -> None:
        for _ in range(count):
            self.tickets += 1
            self.waiting[self.tickets] = (unit, self.now)
            if self.scheduler.state(unit) is State.STOPPING or self.is_stale(unit):
                self.dismissed.add(unit)
            self.perform(self.scheduler.submit(self.tickets, unit, self.now))

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        tickets = [*self.waiting, *self.running]
        if tickets:
            self.end_ticket(data.draw(st.sampled_from(tickets)))

    def end_ticket(self, ticket: int) -> None:
        self.waiting.pop(ticket, None)
        unit = self.running.pop(ticket, None)
        if unit in self.loaded:
            self.loaded[unit].running.discard(ticket)
        self.perform(self.scheduler.finish(ticket, self.now))
        assert self.scheduler.finish(ticket, self.now) == []

    @rule(seconds=st.sampled_from([0.5, 2.0, 8.0, 20.0, 90.0]))
    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while (at := self.scheduler.next_deadline()) is not None and at <= until:
            self.now = at
            self.perform(self.scheduler.tick(self.now))
        self.now = until
        self.perform(self.scheduler.tick(self.now))

    @precondition(lambda self: self.switch is not None)
    @rule()
    def switch_done(self) -> None:
        switch = self.end_switch()
        for unit in switch.evict:
            self.stop(unit)
        if switch.target is not None:
            self.load(switch.target, self.starting_url)
        self.perform(self.scheduler.switch_done(self.now, COST_S))

    @precondition(lambda self: self.switch is not None)
    @rule(data=st.data(), out_of_memory=st.booleans())
    def switch_failed(self, data: st.DataObject, out_of_memory: bool) -> None:
        resident = self.some_do_not_stop(data)
        switch = self.end_switch()
        waiting = [ticket for ticket, (unit, _) in self.waiting.items() if unit == switch.target]
        for unit in set(switch.evict) - resident:
            self.stop(unit)
        self.perform(self.scheduler.switch_failed(self.now, "why", resident, out_of_memory))
        if not (out_of_memory and switch.keep):
            assert not set(waiting) & set(self.waiting), "a failure must reach those who waited"

    @precondition(lambda self: self.aborting)
    @rule(data=st.data())
    def switch_aborted(self, data: st.DataObject) -> None:
        resident = self.some_do_not_stop(data)
        switch = self.end_switch()
        self.dismissed.discard(str(switch.target))
        for unit in set(switch.evict) - resident:
            self.stop(unit)
        self.perform(self.scheduler.switch_aborted(self.now, resident))

    def some_do_not_stop(self, data: st.DataObject) -> frozenset[str]:
        """Some of the evicted, and perhaps the target."""
        assert self.switch is not None
        target = self.switch.target
        units = [*self.switch.evict, *([target] if target is not None else [])]
        resident: frozenset[str] = data.draw(st.frozensets(st.sampled_from(units)))
        if target is not None and target in resident:
            self.load(target, self.starting_url)
        self.untrusted |= resident
        return resident

    @precondition(lambda self: self.switch is not None and self.switch.target is not None)
    @rule()
    def switch_refused(self) -> None:
        switch = self.end_switch()
        waiting = [ticket for ticket, (unit, _) in self.waiting.items() if unit == switch.target]
        self.perform(self.scheduler.switch_refused(self.now, "why"))
        assert not set(waiting) & set(self.waiting), "a refusal must reach those who waited"

    @rule(unit=st.sampled_from(NAMES))
    def found(self, unit: str) -> None:
        is_starting = self.switch is not None and unit == self.switch.target
        if unit in self.config and unit not in self.loaded and not is_starting:
            self.load(unit, self.config[unit].url)
            self.untrusted.add(unit)
        self.perform(self.scheduler.found(unit, self.now))

    @rule(unit=st.sampled_from(NAMES))
    def lost(self, unit: str) -> None:
        is_changing = self.switch is not None and unit in (self.switch.target, *self.switch.evict)
        if unit in self.loaded and not is_changing:
            self.stop(unit)
        self.perform(self.scheduler.lost(unit, self.now))

    @rule(unit=st.sampled_from(NAMES))
    def adopt(self, unit: str) -> None:
        is_changing = self.switch is not None and unit in (self.switch.target, *self.switch.evict)
        is_up = self.scheduler.state(unit) in (State.READY, State.DRAINING)
        if unit in self.config and not is_changing and not is_up:
            self.loaded.pop(unit, None)
            self.load(unit, self.config[unit].url)
            self.dismissed.add(unit)  # it may not fit
        self.perform(self.scheduler.adopt(unit, self.now))

    @rule(units=st.sets(st.sampled_from(NAMES)), force=st.booleans())
    def unload(self, units: set[str], force: bool) -> None:
        self.dismissed |= units
        self.forced |= {ticket for ticket, unit in self.running.items() if unit in units and force}
        self.perform(self.scheduler.unload(units, force, self.now))

    @rule(minutes=st.sampled_from([None, 0.1, 3.0]), force=st.booleans())
    def hold(self, minutes: float | None, force: bool) -> None:
        self.dismissed |= set(NAMES)
        self.forced |= set(self.running) if force else set()
        self.perform(self.scheduler.hold(minutes and self.now + minutes * 60, force, self.now))
        assert not self.waiting

    @rule()
    def release_hold(self) -> None:
        self.perform(self.scheduler.release_hold(self.now))

    @rule(policy=policies, config=configs())
    def configure(self, policy: Policy, config: dict[str, Spec]) -> None:
        self.policy, self.config, self.known = policy, config, self.known | config
        self.dismissed |= {unit for unit in self.loaded if self.is_stale(unit)}
        self.perform(self.scheduler.configure(policy, config.values(), self.now))
        assert all(unit in config for unit, _ in self.waiting.values())

    # -- what holds at any time --------------------------------------------------------------------------

    @invariant()
    def they_agree_on_the_tickets(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        assert self.scheduler.waiting_total == len(self.waiting)
        for name in NAMES:
            assert self.scheduler.waiting(name) == sum(unit == name for unit, _ in self.waiting.values())
            running = self.loaded[name].running if name in self.loaded else ()
            assert self.scheduler.in_flight(name) == len(running)
        assert set(self.loaded) <= self.scheduler.residents

    @invariant()
    def nobody_is_sent_to_what_was_not_started_anew(self) -> None:
        for unit in getattr(self, "untrusted", ()):
            assert self.scheduler.state(unit) is State.STOPPING, "open to the next request"

    @invariant()
    def something_will_happen_while_anybody_waits(self) -> None:
        if not hasattr(self, "scheduler") or not self.waiting:
            return
        deadline = self.scheduler.next_deadline()
        assert deadline is None or deadline > self.now
        assert self.switch is not None or self.running or deadline is not None

    def teardown(self) -> None:
        """When the world behaves again, everybody who waits is served."""
        if not hasattr(self, "scheduler"):
            return
        self.release_hold()
        for _ in range(50 + 10 * len(self.waiting)):
            for ticket in list(self.running):
                self.end_ticket(ticket)
            if self.switch is not None:
                self.switch_done()
            elif self.waiting and not self.running:
                self.pass_time(20.0)
        assert not self.waiting, "stuck"


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)


steps = st.builds(
    Step,
    gap_s=st.sampled_from([0.0, 0.5, 5.0, 40.0]),
    requests=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([0.0, 3.0, 20.0])), min_size=1, max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(
    clients=st.lists(st.lists(steps, min_size=1, max_size=12), min_size=1, max_size=5),
    cost_s=st.sampled_from([1.0, 5.0, 30.0]),
)
def test_nobody_waits_beyond_the_bound(clients: list[list[Step]], cost_s: float) -> None:
    """However others come and go: for each unit one turn (its right of way, what runs then, a switch).

    A right of way ends at most two switch costs after the unit was ready, or one after the wait began.
    """
    units = units_of(clients)
    longest_s = max(runs_s for client in clients for step in client for _, runs_s in step.requests)
    unmeasured_s = max(cost_s, 10.0)
    result = Simulation(ours(units), clients, lambda unit: cost_s).run()
    assert len(result.waits) == sum(len(step.requests) for client in clients for step in client)
    assert max(result.waits) <= cost_s + len(units) * (2 * unmeasured_s + longest_s + cost_s)
