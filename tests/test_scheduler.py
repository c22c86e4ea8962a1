"""The scheduler's specification: one claim a test. The policy and its reasons are in docs/scheduling.md.

Unless a test says otherwise: units a, b and c share a port and the card, and a switch costs 4 s, so the loaded
unit's right of way ends 4 s after somebody began to wait, and at least 8 s (there and back) after it was ready.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

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
from systemd_llm_switch.scheduler.placement import Resident, choose_evictions, fit_together

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


class TestServing:
    def test_the_first_request_starts_its_unit(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        assert scheduler.submit(1, "a", 0.0) == [alone("a")]
        assert scheduler.state("a") is State.STARTING
        assert scheduler.waiting("a") == 1

    def test_all_that_wait_for_a_unit_are_granted_when_it_is_ready(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        assert scheduler.submit(2, "a", 1.0) == []
        assert scheduler.switch_done(4.0, COST_S) == [Grant(1), Grant(2)]
        assert scheduler.state("a") is State.READY
        assert scheduler.ready_since("a") == 4.0
        assert scheduler.in_flight("a") == 2

    def test_a_ready_unit_serves_side_by_side_at_once(self) -> None:
        scheduler = ready("a")
        assert [scheduler.submit(ticket, "a", 1.0) for ticket in (1, 2)] == [[Grant(1)], [Grant(2)]]

    def test_an_idle_unit_makes_room_at_once(self) -> None:
        scheduler = ready("a")
        assert scheduler.submit(1, "b", 1.0) == [alone("b", "a")]
        assert scheduler.state("a") is State.STOPPING

    def test_there_is_one_switch_at_a_time(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        assert scheduler.submit(2, "c", 1.0) == []
        assert scheduler.submit(3, "a", 1.0) == []

    def test_the_longest_waiting_goes_first(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        scheduler.submit(2, "b", 2.0)
        scheduler.submit(3, "c", 3.0)
        scheduler.submit(4, "b", 4.0)
        assert scheduler.finish(1, 5.0) == [alone("b", "a")]
        scheduler.switch_done(9.0, COST_S)
        scheduler.finish(2, 10.0)
        assert scheduler.finish(4, 11.0) == [alone("c", "b")]

    def test_finish_is_idempotent(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        scheduler.submit(2, "b", 1.0)
        assert scheduler.finish(1, 2.0) == [alone("b", "a")]
        assert scheduler.finish(1, 2.0) == []

    def test_an_unknown_unit_is_rejected(self) -> None:
        assert ready("a").submit(1, "x", 0.0) == [Reject(1, Reason.UNKNOWN_UNIT)]

    def test_an_answer_without_a_switch_is_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="no switch"):
            ready("a").switch_done(1.0, COST_S)


class TestRightOfWay:
    def test_a_busy_unit_serves_on_while_it_has_the_right_of_way(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "b", 20.0)
        assert scheduler.submit(3, "a", 23.9) == [Grant(3)]

    def test_it_ends_one_switch_cost_after_somebody_began_to_wait(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "b", 20.0)
        assert scheduler.next_deadline() == 24.0
        assert scheduler.tick(24.0) == []
        assert scheduler.state("a") is State.DRAINING
        assert scheduler.submit(3, "a", 24.0) == []
        assert scheduler.finish(1, 25.0) == [alone("b", "a")]

    def test_it_lasts_a_round_trip_from_when_the_unit_was_ready(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 0.0)
        scheduler.submit(2, "b", 0.0)
        assert scheduler.next_deadline() == 8.0

    def test_the_round_trip_is_what_the_two_units_cost(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 0.0)
        scheduler.switch_done(10.0, 10.0)
        scheduler.submit(2, "a", 10.0)
        assert scheduler.next_deadline() == 24.0

    def test_an_unmeasured_unit_is_taken_to_cost_what_the_others_do(self) -> None:
        scheduler = ready("a", "b")
        scheduler.submit(1, "b", 20.0)
        scheduler.submit(2, "c", 20.0)
        assert scheduler.next_deadline() == 24.0

    def test_before_any_measure_a_switch_is_taken_to_cost_10_s(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.adopt("a", 0.0)
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "b", 20.0)
        assert scheduler.next_deadline() == 30.0

    def test_measured_costs_are_smoothed(self) -> None:
        scheduler = ready("b", "a")
        scheduler.submit(1, "b", 0.0)
        scheduler.switch_done(8.0, 8.0)
        scheduler.finish(1, 8.0)
        scheduler.submit(2, "a", 8.0)
        scheduler.switch_done(12.0, COST_S)
        scheduler.submit(3, "b", 40.0)
        assert scheduler.next_deadline() == 46.0

    def test_max_wait_replaces_the_waiters_part(self) -> None:
        scheduler = ready("a", policy=Policy(max_wait_s=1.0))
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "b", 20.0)
        assert scheduler.next_deadline() == 21.0

    def test_min_resident_replaces_the_residents_part(self) -> None:
        scheduler = ready("a", policy=Policy(min_resident_s=60.0))
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "b", 20.0)
        assert scheduler.next_deadline() == 60.0

    def test_min_resident_also_keeps_an_idle_unit(self) -> None:
        scheduler = ready("a", policy=Policy(min_resident_s=60.0))
        assert scheduler.submit(1, "b", 20.0) == []
        assert scheduler.submit(2, "a", 59.0) == [Grant(2)]
        scheduler.finish(2, 59.5)
        assert scheduler.tick(60.0) == [alone("b", "a")]

    def test_who_waits_for_a_unit_that_just_got_ready_is_served_before_it_drains(self) -> None:
        scheduler = ready("a", policy=Policy(max_wait_s=0.0, min_resident_s=0.0))
        scheduler.submit(1, "b", 1.0)
        scheduler.submit(2, "c", 1.0)
        assert scheduler.switch_done(5.0, COST_S) == [Grant(1)]
        assert scheduler.state("b") is State.DRAINING

    def test_even_if_it_came_later_than_the_one_for_whom_it_drains(self) -> None:
        scheduler = ready("a", policy=Policy(max_wait_s=0.0, min_resident_s=0.0))
        scheduler.submit(1, "b", 1.0)
        scheduler.submit(2, "c", 2.0)
        scheduler.submit(3, "b", 3.0)
        scheduler.finish(1, 4.0)
        assert scheduler.switch_done(5.0, COST_S) == [Grant(3)]

    def test_a_unit_with_an_older_waiter_is_not_drained_for_a_younger_one(self) -> None:
        policy = Policy(in_flight_limit=1, max_wait_s=0.0, min_resident_s=0.0)
        scheduler = ready("a", policy=policy)
        scheduler.submit(1, "a", 1.0)
        scheduler.submit(2, "a", 1.0)
        scheduler.submit(3, "b", 2.0)
        assert scheduler.state("a") is State.READY
        assert scheduler.finish(1, 3.0) == [Grant(2)]
        assert scheduler.state("a") is State.DRAINING


class TestAwaitingAnAgent:
    """Where a switch costs over 10 s, the next request of an agent that always comes back is awaited for 2 s."""

    def worked_on_by_an_agent(self, cost_s: float = 30.0) -> Scheduler:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        scheduler.switch_done(0.0, cost_s)
        for ticket in range(1, 5):
            scheduler.finish(ticket, ticket * 10.0)
            scheduler.submit(ticket + 1, "a", ticket * 10.0 + 1.0)
        return scheduler

    def test_its_idle_unit_is_kept_for_a_moment(self) -> None:
        scheduler = self.worked_on_by_an_agent()
        scheduler.submit(9, "b", 48.0)
        assert scheduler.finish(5, 50.0) == []
        assert scheduler.submit(6, "a", 51.0) == [Grant(6)]

    def test_if_it_does_not_come_back_the_waiter_is_next(self) -> None:
        scheduler = self.worked_on_by_an_agent()
        scheduler.submit(9, "b", 48.0)
        scheduler.finish(5, 50.0)
        assert scheduler.next_deadline() == 52.0
        assert scheduler.tick(52.0) == [alone("b", "a")]

    def test_it_is_not_awaited_beyond_the_right_of_way(self) -> None:
        scheduler = self.worked_on_by_an_agent()
        scheduler.submit(9, "b", 41.5)
        scheduler.finish(5, 70.5)
        assert scheduler.next_deadline() == 71.5

    def test_nobody_is_awaited_where_switches_are_cheap(self) -> None:
        scheduler = self.worked_on_by_an_agent(cost_s=10.0)
        scheduler.submit(9, "b", 48.0)
        assert scheduler.finish(5, 50.0) == [alone("b", "a")]

    def test_a_person_who_thinks_is_not_awaited(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        scheduler.switch_done(0.0, 30.0)
        for ticket in range(1, 5):
            scheduler.finish(ticket, ticket * 10.0)
            scheduler.submit(ticket + 1, "a", ticket * 10.0 + 2.5)
        scheduler.submit(9, "b", 48.0)
        assert scheduler.finish(5, 50.0) == [alone("b", "a")]

    def test_requests_side_by_side_are_no_sign_of_an_agent(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        scheduler.switch_done(0.0, 30.0)
        scheduler.finish(1, 1.0)
        for now in (20.0, 40.0, 60.0):
            for ticket in (2, 3, 4):
                scheduler.submit(ticket, "a", now)
            for ticket in (2, 3, 4):
                scheduler.finish(ticket, now + 5.0)
        assert scheduler.submit(9, "b", 66.0) == [alone("b", "a")]

    def test_an_agent_that_stopped_coming_back_is_soon_forgotten(self) -> None:
        scheduler = self.worked_on_by_an_agent()
        for ticket, now in ((5, 60.0), (6, 80.0), (7, 100.0)):
            scheduler.finish(ticket, now)
            scheduler.submit(ticket + 1, "a", now + 10.0)
        scheduler.submit(9, "b", 118.0)
        assert scheduler.finish(8, 120.0) == [alone("b", "a")]


class TestDraining:
    def draining(self) -> Scheduler:
        """a runs ticket 1 and drains since 24 s, ticket 3 waits for it; ticket 2 waits for b."""
        scheduler = ready("a", policy=Policy(drain_timeout_s=100.0))
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "b", 20.0)
        scheduler.tick(24.0)
        scheduler.submit(3, "a", 25.0)
        return scheduler

    def test_when_the_waiter_leaves_the_unit_serves_again(self) -> None:
        scheduler = self.draining()
        assert scheduler.finish(2, 26.0) == [Grant(3)]
        assert scheduler.state("a") is State.READY

    def test_and_drains_again_if_somebody_else_has_waited_long_enough(self) -> None:
        scheduler = self.draining()
        scheduler.submit(4, "c", 26.0)
        assert scheduler.finish(2, 31.0) == [Grant(3)]
        assert scheduler.state("a") is State.DRAINING

    def test_the_drain_timeout_interrupts_what_still_runs_once(self) -> None:
        scheduler = self.draining()
        assert scheduler.next_deadline() == 124.0
        assert scheduler.tick(124.0) == [Interrupt(1)]
        assert scheduler.tick(125.0) == []
        assert scheduler.finish(1, 126.0) == [alone("b", "a")]

    def test_who_waits_for_a_drained_unit_has_it_back_afterwards(self) -> None:
        scheduler = self.draining()
        scheduler.finish(1, 26.0)
        assert scheduler.switch_done(30.0, COST_S) == [Grant(2)]
        assert scheduler.finish(2, 31.0) == [alone("a", "b")]
        assert scheduler.switch_done(35.0, COST_S) == [Grant(3)]

    def test_a_new_drain_has_its_whole_time(self) -> None:
        scheduler = self.draining()
        scheduler.finish(2, 100.0)
        scheduler.submit(4, "b", 110.0)
        scheduler.tick(114.0)
        assert scheduler.state("a") is State.DRAINING
        assert scheduler.next_deadline() == 214.0


class TestQueue:
    def test_beyond_the_limit_tickets_are_rejected(self) -> None:
        scheduler = ready("a", policy=Policy(queue_limit=2))
        scheduler.submit(1, "b", 1.0)
        scheduler.submit(2, "c", 1.0)
        (rejection,) = scheduler.submit(3, "b", 2.0)
        assert rejection == Reject(3, Reason.QUEUE_FULL, retry_after_s=3.0)
        assert scheduler.waiting_total == 2

    def test_the_limit_does_not_touch_the_fast_path(self) -> None:
        scheduler = ready("a", policy=Policy(queue_limit=1))
        scheduler.submit(1, "a", 1.0)
        scheduler.submit(2, "b", 1.0)
        assert scheduler.submit(3, "a", 1.0) == [Grant(3)]

    def test_who_should_try_again_waits_for_the_next_turn_to_begin(self) -> None:
        scheduler = ready("a", policy=Policy(queue_limit=1))
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "b", 20.0)
        (rejection,) = scheduler.submit(3, "b", 20.5)
        assert rejection == Reject(3, Reason.QUEUE_FULL, retry_after_s=8.0)

    def test_retry_after_stays_below_a_minute(self) -> None:
        scheduler = ready("a", policy=Policy(queue_limit=1, max_wait_s=300.0))
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "b", 20.0)
        (rejection,) = scheduler.submit(3, "b", 20.5)
        assert rejection == Reject(3, Reason.QUEUE_FULL, retry_after_s=59.0)

    def test_retry_after_is_at_least_a_second(self) -> None:
        scheduler = ready("a", policy=Policy(queue_limit=1))
        scheduler.submit(1, "b", 20.0)
        (rejection,) = scheduler.submit(2, "b", 99.0)
        assert rejection == Reject(2, Reason.QUEUE_FULL, retry_after_s=1.0)

    def test_no_more_run_than_there_are_threads_for(self) -> None:
        scheduler = ready("a", policy=Policy(in_flight_limit=2))
        for ticket in (1, 2, 3, 4):
            scheduler.submit(ticket, "a", 1.0)
        assert scheduler.in_flight("a") == 2
        assert scheduler.finish(1, 2.0) == [Grant(3)]

    def test_who_waits_for_a_thread_counts_as_work_of_its_unit(self) -> None:
        specs = [*ABC, Spec("cpu", "cpu", 0.0)]
        scheduler = ready("a", "cpu", policy=Policy(in_flight_limit=1), specs=specs)
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "cpu", 20.0)
        scheduler.submit(3, "b", 20.5)
        scheduler.submit(4, "a", 21.0)
        assert scheduler.finish(1, 22.0) == [Grant(2)]  # and a, with ticket 4, keeps its right of way
        assert scheduler.finish(2, 23.0) == [Grant(4)]

    def test_what_a_lost_unit_left_running_still_holds_threads(self) -> None:
        scheduler = ready("a", policy=Policy(in_flight_limit=1))
        scheduler.submit(1, "a", 1.0)
        scheduler.lost("a", 2.0)
        scheduler.submit(2, "a", 2.0)
        assert scheduler.switch_done(6.0, COST_S) == []
        assert scheduler.finish(1, 7.0) == [Grant(2)]


class TestAbandonedLoad:
    def test_a_load_that_nobody_waits_for_is_aborted_after_a_grace(self) -> None:
        scheduler = Scheduler(Policy(abandon_after_s=1.5), ABC)
        scheduler.submit(1, "a", 0.0)
        assert scheduler.finish(1, 2.0) == []
        assert scheduler.next_deadline() == 3.5
        assert scheduler.tick(3.5) == [Abort("a")]
        assert scheduler.tick(4.0) == []

    def test_a_client_that_sends_again_saves_it(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        scheduler.finish(1, 2.0)
        scheduler.submit(2, "a", 3.0)
        assert run_until(scheduler, 10.0) == []
        scheduler.finish(2, 10.0)
        assert scheduler.next_deadline() == 11.5

    def aborted(self) -> Scheduler:
        scheduler = ready("b")
        scheduler.submit(1, "a", 0.0)
        scheduler.finish(1, 0.0)
        assert scheduler.tick(1.5) == [Abort("a")]
        return scheduler

    def test_once_aborted_all_is_stopped(self) -> None:
        scheduler = self.aborted()
        assert scheduler.switch_aborted(2.0) == []
        assert scheduler.residents == frozenset()
        assert scheduler.state("a") is State.STOPPED

    def test_who_comes_too_late_to_save_it_has_it_loaded_anew(self) -> None:
        scheduler = self.aborted()
        assert scheduler.submit(2, "a", 1.6) == []
        assert scheduler.switch_aborted(2.0) == [alone("a")]

    def test_an_abort_that_comes_too_late_does_no_harm(self) -> None:
        scheduler = self.aborted()
        scheduler.submit(2, "a", 1.6)
        assert scheduler.switch_done(2.0, COST_S) == [Grant(2)]

    def test_a_unit_that_did_not_stop_for_it_stays_resident(self) -> None:
        scheduler = self.aborted()
        scheduler.switch_aborted(2.0, resident=frozenset("b"))
        assert scheduler.residents == {"b"}
        assert scheduler.state("b") is State.STOPPING


class TestFailures:
    def test_who_waited_for_the_failed_unit_is_told_why(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        scheduler.submit(2, "b", 1.0)
        scheduler.submit(3, "c", 1.0)
        assert scheduler.switch_failed(2.0, "broken") == [
            Reject(1, Reason.START_FAILED, cause="broken"),
            Reject(2, Reason.START_FAILED, cause="broken"),
            alone("c"),
        ]
        assert scheduler.state("b") is State.FAILED
        assert scheduler.residents == {"c"}

    def test_a_failed_unit_is_tried_again_for_the_next_request(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        scheduler.switch_failed(1.0, "broken")
        assert scheduler.submit(2, "a", 2.0) == [alone("a")]

    def test_a_unit_that_did_not_stop_stays_resident_and_serves_nobody(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        assert scheduler.switch_failed(2.0, "stuck", frozenset("a")) == [Reject(1, Reason.START_FAILED, cause="stuck")]
        assert scheduler.residents == {"a"}
        assert scheduler.state("a") is State.STOPPING
        assert scheduler.submit(2, "a", 3.0) == [alone(None, "a")]

    def test_its_waiters_are_told_when_it_cannot_be_stopped_for_them_either(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        scheduler.switch_failed(2.0, "stuck", frozenset("a"))
        scheduler.submit(2, "a", 3.0)
        assert scheduler.switch_failed(4.0, "still stuck", frozenset("a")) == [
            Reject(2, Reason.START_FAILED, cause="still stuck")
        ]

    def test_each_new_waiter_tries_to_stop_it_again(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        scheduler.switch_failed(2.0, "stuck", frozenset("a"))
        assert scheduler.submit(2, "c", 3.0) == [alone("c", "a")]

    def test_it_serves_again_when_found_healthy(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        scheduler.switch_failed(2.0, "stuck", frozenset("a"))
        assert scheduler.adopt("a", 3.0) == []
        assert scheduler.submit(2, "a", 3.0) == [Grant(2)]

    def test_it_is_stopped_after_all_when_its_process_is_gone(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        scheduler.switch_failed(2.0, "stuck", frozenset("a"))
        scheduler.lost("a", 3.0)
        assert scheduler.residents == frozenset()

    def test_a_target_that_could_not_be_stopped_again_stays_resident(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        scheduler.switch_failed(1.0, "wedged", frozenset("a"))
        assert scheduler.submit(2, "b", 2.0) == [alone("b", "a")]

    def test_a_failed_idle_unload_is_tried_again_after_a_while(self) -> None:
        scheduler = ready("a", specs=[Spec("a", URL, ttl_s=60.0)])
        scheduler.tick(60.0)
        assert scheduler.switch_failed(61.0, "stuck", frozenset("a")) == []
        assert run_until(scheduler, 90.9) == []
        assert run_until(scheduler, 91.0) == [alone(None, "a")]


class TestOutOfMemory:
    def beside(self) -> Scheduler:
        """b is started beside a, which is idle."""
        scheduler = ready("a", policy=Policy(vram_gib=24.0), specs=on_ports(a=8.0, b=8.0, c=8.0))
        assert scheduler.submit(1, "b", 1.0) == [Switch("b", (), frozenset("a"))]
        return scheduler

    def test_beside_others_it_is_tried_once_more_alone(self) -> None:
        scheduler = self.beside()
        assert scheduler.switch_failed(2.0, "oom", out_of_memory=True) == [alone("b", "a")]
        assert scheduler.switch_done(6.0, COST_S) == [Grant(1)]

    def test_but_only_once(self) -> None:
        scheduler = self.beside()
        scheduler.switch_failed(2.0, "oom", out_of_memory=True)
        assert scheduler.switch_failed(3.0, "oom", out_of_memory=True) == [Reject(1, Reason.START_FAILED, cause="oom")]

    def test_alone_from_the_start_it_is_a_failure(self) -> None:
        scheduler = Scheduler(Policy(vram_gib=24.0), on_ports(a=8.0))
        scheduler.submit(1, "a", 0.0)
        assert scheduler.switch_failed(2.0, "oom", out_of_memory=True) == [Reject(1, Reason.START_FAILED, cause="oom")]

    def test_the_others_keep_their_right_of_way(self) -> None:
        scheduler = self.beside()
        scheduler.submit(2, "a", 1.0)
        assert scheduler.switch_failed(2.0, "oom", out_of_memory=True) == []
        assert scheduler.next_deadline() == 8.0

    def test_nobody_takes_the_room_it_waits_for(self) -> None:
        scheduler = self.beside()
        scheduler.submit(2, "a", 1.0)
        scheduler.switch_failed(2.0, "oom", out_of_memory=True)
        assert scheduler.submit(3, "c", 3.0) == []

    def test_the_next_time_it_may_have_company_again(self) -> None:
        scheduler = self.beside()
        scheduler.switch_failed(2.0, "oom", out_of_memory=True)
        scheduler.switch_done(6.0, COST_S)
        scheduler.lost("b", 7.0)
        scheduler.submit(2, "a", 7.0)
        scheduler.switch_done(8.0, COST_S)
        assert scheduler.submit(3, "b", 9.0) == [Switch("b", (), frozenset("a"))]


class TestPlacement:
    """The pure functions: what fits, and who goes."""

    def evictions(self, target: Spec, *residents: Resident, card_gib: float | None = 24.0) -> tuple[str, ...]:
        return choose_evictions(target, residents, card_gib)

    def resident(
        self,
        name: str,
        gib: float | None,
        *,
        takeable_at: float = 0.0,
        is_busy: bool = False,
        used_at: float = 0.0,
        url: str | None = None,
    ) -> Resident:
        return Resident(Spec(name, url or name, gib), takeable_at, is_busy, used_at)

    def test_as_long_as_the_sum_fits_nobody_goes(self) -> None:
        assert self.evictions(Spec("t", "t", 8.0), self.resident("a", 8.0), self.resident("b", 8.0)) == ()

    def test_the_least_recently_used_goes_first(self) -> None:
        old, new = self.resident("old", 8.0, used_at=1.0), self.resident("new", 8.0, used_at=2.0)
        assert self.evictions(Spec("t", "t", 16.0), new, old) == ("old",)

    def test_idle_goes_before_busy(self) -> None:
        busy, idle = self.resident("busy", 8.0, is_busy=True), self.resident("idle", 8.0, used_at=9.0)
        assert self.evictions(Spec("t", "t", 16.0), busy, idle) == ("idle",)

    def test_who_can_be_had_sooner_goes_first(self) -> None:
        late, soon = self.resident("late", 8.0, takeable_at=9.0), self.resident("soon", 8.0, used_at=9.0)
        assert self.evictions(Spec("t", "t", 16.0), late, soon) == ("soon",)

    def test_only_as_many_as_needed(self) -> None:
        small, big = self.resident("small", 4.0, used_at=1.0), self.resident("big", 16.0, used_at=2.0)
        assert self.evictions(Spec("t", "t", 16.0), small, big) == ("big",)

    def test_a_unit_that_names_no_share_needs_the_whole_card(self) -> None:
        assert self.evictions(Spec("t", "t"), self.resident("a", 1.0)) == ("a",)
        assert self.evictions(Spec("t", "t", 1.0), self.resident("a", None)) == ("a",)

    def test_a_share_beyond_the_card_is_the_whole_card(self) -> None:
        assert fit_together([Spec("t", "t", 99.0), Spec("cpu", "cpu", 0.0)], 24.0)
        assert self.evictions(Spec("t", "t", 99.0), self.resident("a", 8.0)) == ("a",)

    def test_a_unit_on_the_cpu_neither_takes_nor_gives_room(self) -> None:
        cpu, gpu = self.resident("cpu", 0.0), self.resident("gpu", None)
        assert self.evictions(Spec("t", "t", 0.0), gpu) == ()
        assert self.evictions(Spec("t", "t"), cpu, gpu) == ("gpu",)

    def test_without_a_card_size_one_unit_at_a_time_uses_the_card(self) -> None:
        residents = self.resident("cpu", 0.0), self.resident("gpu", 8.0)
        assert self.evictions(Spec("t", "t", 8.0), *residents, card_gib=None) == ("gpu",)

    def test_units_on_one_port_exclude_each_other_on_the_cpu_too(self) -> None:
        same = self.resident("same", 0.0, url="t", is_busy=True)
        assert self.evictions(Spec("t", "t", 0.0), same, self.resident("other", 0.0)) == ("same",)

    def test_room_made_on_the_port_counts(self) -> None:
        same, other = self.resident("same", 16.0, url="t", used_at=9.0), self.resident("other", 8.0)
        assert self.evictions(Spec("t", "t", 16.0), same, other) == ("same",)

    def test_an_overfull_card_does_not_concern_the_cpu(self) -> None:
        assert self.evictions(Spec("t", "t", 0.0), self.resident("a", 24.0), self.resident("b", 24.0)) == ()

    def test_shares_that_add_up_to_the_card_fit(self) -> None:
        assert fit_together([Spec("a", "a", 0.1), Spec("b", "b", 0.2)], 0.3)
        assert not fit_together([Spec("a", "a", 0.1), Spec("b", "b", 0.21)], 0.3)

    def test_two_units_on_one_port_never_fit(self) -> None:
        assert not fit_together([Spec("a", URL, 0.0), Spec("b", URL, 0.0)], 24.0)


class TestCoexistence:
    def test_units_stay_loaded_together_while_they_fit(self) -> None:
        scheduler = ready("a", "b", policy=Policy(vram_gib=24.0), specs=on_ports(a=8.0, b=8.0, c=16.0))
        assert scheduler.submit(1, "c", 1.0) == [Switch("c", ("a",), frozenset("b"))]

    def test_the_least_recently_used_makes_room(self) -> None:
        scheduler = ready("a", "b", policy=Policy(vram_gib=16.0), specs=on_ports(a=8.0, b=8.0, c=8.0))
        scheduler.lost("a", 1.0)
        scheduler.adopt("a", 2.0)
        scheduler.submit(1, "b", 3.0)
        scheduler.finish(1, 4.0)
        assert scheduler.submit(2, "c", 5.0) == [Switch("c", ("a",), frozenset("b"))]

    def test_an_idle_one_makes_room_before_a_busy_one_that_was_loaded_earlier(self) -> None:
        scheduler = ready("a", "b", policy=Policy(vram_gib=16.0), specs=on_ports(a=8.0, b=8.0, c=8.0))
        scheduler.lost("b", 1.0)
        scheduler.adopt("b", 2.0)
        scheduler.submit(1, "a", 3.0)
        assert scheduler.submit(2, "c", 50.0) == [Switch("c", ("b",), frozenset("a"))]

    def test_who_stays_serves_during_the_switch(self) -> None:
        scheduler = ready("a", "b", policy=Policy(vram_gib=24.0), specs=on_ports(a=8.0, b=8.0, c=16.0))
        scheduler.submit(1, "c", 1.0)
        assert scheduler.submit(2, "b", 2.0) == [Grant(2)]

    def test_an_embedding_on_the_cpu_leaves_the_chat_alone(self) -> None:
        scheduler = ready("chat", specs=on_ports(chat=None, embed=0.0))
        scheduler.submit(1, "chat", 1.0)
        assert scheduler.submit(2, "embed", 1.0) == [Switch("embed", (), frozenset(["chat"]))]

    def test_and_needs_not_wait_behind_somebody_who_waits_for_the_card(self) -> None:
        scheduler = ready("chat", specs=on_ports(chat=None, other=None, embed=0.0))
        scheduler.submit(1, "chat", 1.0)
        scheduler.submit(2, "other", 1.0)
        assert scheduler.submit(3, "embed", 2.0) == [Switch("embed", (), frozenset(["chat"]))]

    def test_a_younger_waiter_takes_nothing_that_an_older_one_will_need(self) -> None:
        scheduler = ready("a", "b", policy=Policy(vram_gib=24.0), specs=on_ports(a=8.0, b=8.0, big=16.0, c=8.0))
        scheduler.submit(1, "a", 1.0)
        scheduler.submit(2, "b", 1.0)
        assert scheduler.submit(3, "big", 2.0) == []  # needs the place of a or b, and the free one
        assert scheduler.submit(4, "c", 3.0) == []  # would fit now, and hold big off

    def test_nor_does_anybody_drain_for_it(self) -> None:
        apart = on_ports(a=8.0, b=8.0, e=8.0, big=16.0)
        beside_e = Spec("c", "http://127.0.0.1:e", 16.0)
        scheduler = ready("a", "b", "e", policy=Policy(vram_gib=24.0), specs=[*apart, beside_e])
        for ticket, unit in enumerate(("a", "b", "e", "big", "c")):
            scheduler.submit(ticket, unit, 20.0)
        scheduler.tick(24.0)
        assert [scheduler.state(unit) for unit in "abe"] == [State.DRAINING, State.DRAINING, State.READY]

    def test_nobody_drains_for_who_waits_for_a_unit_that_only_starts(self) -> None:
        specs = on_ports(a=8.0, b=16.0, all=24.0)
        scheduler = ready("a", policy=Policy(vram_gib=24.0), specs=specs)
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "b", 20.0)
        scheduler.submit(3, "all", 21.0)
        scheduler.submit(4, "b", 22.0)
        scheduler.finish(2, 23.0)
        scheduler.tick(40.0)
        assert scheduler.state("a") is State.READY

    def test_two_queues_that_do_not_meet_drain_side_by_side(self) -> None:
        specs = [Spec("a", "gpu"), Spec("b", "gpu"), Spec("c", "cpu", 0.0), Spec("d", "cpu", 0.0)]
        scheduler = ready("a", "c", specs=specs)
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "c", 20.0)
        scheduler.submit(3, "b", 20.0)
        scheduler.submit(4, "d", 20.0)
        scheduler.tick(24.0)
        assert scheduler.state("c") is State.DRAINING
        assert scheduler.finish(2, 25.0) == [Switch("d", ("c",), frozenset("a"))]

    def test_of_two_busy_units_the_one_that_can_be_had_sooner_drains(self) -> None:
        specs = on_ports(a=8.0, b=8.0, c=16.0)
        scheduler = ready("a", policy=Policy(vram_gib=24.0), specs=specs)
        scheduler.submit(1, "b", 10.0)
        scheduler.switch_done(14.0, COST_S)
        scheduler.submit(2, "a", 15.0)
        scheduler.submit(3, "c", 15.0)
        scheduler.tick(19.0)
        assert (scheduler.state("a"), scheduler.state("b")) == (State.DRAINING, State.READY)

    def test_an_idle_victim_drains_while_a_busy_one_finishes(self) -> None:
        specs = on_ports(a=8.0, b=8.0, c=24.0)
        scheduler = ready("a", "b", policy=Policy(vram_gib=24.0), specs=specs)
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "c", 20.0)
        assert scheduler.submit(3, "b", 21.0) == [Grant(3)]
        scheduler.finish(3, 22.0)
        scheduler.tick(24.0)
        assert scheduler.submit(4, "b", 25.0) == []
        assert scheduler.finish(1, 26.0) == [alone("c", "b", "a")]


class TestIdleUnload:
    SPECS = (Spec("a", URL, ttl_s=60.0), Spec("b", URL))

    def test_an_idle_unit_is_unloaded_after_its_ttl(self) -> None:
        scheduler = ready("a", specs=self.SPECS)
        scheduler.submit(1, "a", 10.0)
        scheduler.finish(1, 20.0)
        assert scheduler.next_deadline() is not None
        assert run_until(scheduler, 79.9) == []
        assert scheduler.next_deadline() == 80.0
        assert scheduler.tick(80.0) == [alone(None, "a")]

    def test_a_ttl_is_announced_although_no_other_deadline_was(self) -> None:
        scheduler = ready("a", specs=self.SPECS)
        scheduler.submit(1, "a", 10.0)
        scheduler.tick(11.0)
        assert scheduler.next_deadline() is None
        scheduler.finish(1, 20.0)
        assert scheduler.next_deadline() == 80.0

    def test_a_running_request_is_use(self) -> None:
        scheduler = ready("a", specs=self.SPECS)
        scheduler.submit(1, "a", 10.0)
        assert run_until(scheduler, 500.0) == []

    def test_so_is_one_that_waits_for_a_thread(self) -> None:
        specs = [*self.SPECS, Spec("cpu", "cpu", 0.0)]
        scheduler = ready("a", "cpu", policy=Policy(in_flight_limit=1), specs=specs)
        scheduler.submit(1, "cpu", 10.0)
        scheduler.submit(2, "a", 10.0)
        assert run_until(scheduler, 500.0) == []

    def test_without_a_ttl_a_unit_stays(self) -> None:
        assert ready("b", specs=self.SPECS).next_deadline() is None

    def test_a_request_in_that_moment_is_served_by_the_reloaded_unit(self) -> None:
        scheduler = ready("a", specs=self.SPECS)
        scheduler.tick(60.0)
        assert scheduler.submit(1, "a", 60.0) == []
        assert scheduler.switch_done(61.0, 1.0) == [alone("a")]
        assert scheduler.switch_done(65.0, COST_S) == [Grant(1)]

    def test_while_another_unit_is_switched_it_goes_on_serving(self) -> None:
        specs = [Spec("a", "a", 8.0, ttl_s=60.0), Spec("b", "b", 8.0)]
        scheduler = ready("a", policy=Policy(vram_gib=24.0), specs=specs)
        scheduler.submit(1, "b", 59.0)
        assert run_until(scheduler, 61.0) == []
        assert scheduler.submit(2, "a", 62.0) == [Grant(2)]


class TestUnload:
    def test_an_idle_unit_is_stopped(self) -> None:
        scheduler = ready("a")
        assert scheduler.unload(["a"], False, 1.0) == [alone(None, "a")]
        assert scheduler.switch_done(2.0, 1.0) == []
        assert scheduler.residents == frozenset()

    def test_a_busy_unit_drains_first(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        assert scheduler.unload(["a"], False, 2.0) == []
        assert scheduler.state("a") is State.DRAINING
        assert scheduler.finish(1, 3.0) == [alone(None, "a")]

    def test_force_interrupts_what_runs(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        assert scheduler.unload(["a"], True, 2.0) == [Interrupt(1)]
        assert scheduler.unload(["a"], True, 2.0) == []

    def test_who_asks_meanwhile_has_it_loaded_again(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        scheduler.unload(["a"], False, 2.0)
        assert scheduler.submit(2, "a", 2.5) == []
        assert scheduler.finish(1, 3.0) == [alone(None, "a")]
        assert scheduler.switch_done(4.0, 1.0) == [alone("a")]
        assert scheduler.switch_done(8.0, COST_S) == [Grant(2)]

    def test_a_unit_that_loads_is_aborted_at_once(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        assert scheduler.unload(["a"], False, 1.0) == [Abort("a")]
        scheduler.finish(1, 1.5)
        assert scheduler.switch_aborted(2.0) == []
        assert scheduler.state("a") is State.STOPPED

    def test_and_loaded_again_for_those_who_wait(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        scheduler.unload(["a"], False, 1.0)
        assert scheduler.switch_aborted(2.0) == [alone("a")]
        assert scheduler.switch_done(6.0, COST_S) == [Grant(1)]

    def test_when_that_abort_comes_too_late_it_is_stopped_all_the_same(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        scheduler.unload(["a"], False, 1.0)
        assert scheduler.switch_done(2.0, COST_S) == [alone(None, "a")]

    def test_a_stopped_or_unknown_unit_is_no_matter(self) -> None:
        scheduler = ready("a")
        assert scheduler.unload(["b", "x"], True, 1.0) == []
        assert scheduler.submit(1, "a", 2.0) == [Grant(1)]

    def test_one_that_fails_is_not_tried_again_by_itself(self) -> None:
        scheduler = ready("a")
        scheduler.unload(["a"], False, 1.0)
        assert scheduler.switch_failed(2.0, "stuck", frozenset("a")) == []
        assert run_until(scheduler, 999.0) == []
        assert scheduler.unload(["a"], False, 999.0) == [alone(None, "a")]

    def test_all_that_are_idle_stop_together(self) -> None:
        scheduler = ready("a", "b", policy=Policy(vram_gib=24.0), specs=on_ports(a=8.0, b=8.0))
        assert scheduler.unload(["a", "b"], False, 1.0) == [alone(None, "a", "b")]


class TestHold:
    def test_everything_is_unloaded_and_everybody_turned_away(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        scheduler.submit(2, "b", 1.0)
        assert scheduler.hold(None, False, 2.0) == [Reject(2, Reason.ON_HOLD, 30.0)]
        assert scheduler.on_hold
        assert (scheduler.waiting_total, scheduler.waiting("b")) == (0, 0)
        assert scheduler.submit(3, "a", 3.0) == [Reject(3, Reason.ON_HOLD, 30.0)]
        assert scheduler.finish(1, 4.0) == [alone(None, "a")]

    def test_force_interrupts_what_runs(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        assert scheduler.hold(None, True, 2.0) == [Interrupt(1)]

    def test_retry_after_is_the_rest_of_the_hold(self) -> None:
        scheduler = ready("a")
        scheduler.hold(100.0, False, 0.0)
        assert scheduler.submit(1, "a", 10.0) == [Reject(1, Reason.ON_HOLD, 59.0)]
        assert scheduler.submit(2, "a", 80.5) == [Reject(2, Reason.ON_HOLD, 20.0)]

    def test_it_ends_by_itself(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.hold(100.0, False, 0.0)
        assert scheduler.next_deadline() == 100.0
        assert scheduler.tick(100.0) == [HoldEnded()]
        assert scheduler.hold_until is None
        assert scheduler.submit(1, "a", 100.0) == [alone("a")]

    def test_a_load_is_aborted_at_once(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        assert scheduler.hold(None, False, 1.0) == [Reject(1, Reason.ON_HOLD, 30.0), Abort("a")]

    def test_released_in_time_what_still_drains_serves_again(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        scheduler.hold(None, False, 2.0)
        assert scheduler.release_hold(3.0) == []
        assert scheduler.submit(2, "a", 4.0) == [Grant(2)]

    def test_what_is_found_loaded_is_unloaded(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.hold(None, False, 0.0)
        assert scheduler.adopt("a", 1.0) == [alone(None, "a")]

    def test_a_unit_that_does_not_stop_is_tried_again_after_a_while(self) -> None:
        scheduler = ready("a")
        scheduler.hold(None, False, 0.0)
        assert scheduler.switch_failed(1.0, "stuck", frozenset("a")) == []
        assert scheduler.next_deadline() == 31.0
        assert scheduler.tick(31.0) == [alone(None, "a")]

    def test_once_it_did_stop_that_is_forgotten(self) -> None:
        scheduler = ready("a")
        scheduler.hold(None, False, 0.0)
        scheduler.switch_failed(1.0, "stuck", frozenset("a"))
        scheduler.lost("a", 2.0)
        scheduler.release_hold(3.0)
        scheduler.adopt("a", 4.0)
        assert scheduler.hold(None, False, 5.0) == [alone(None, "a")]

    def test_found_healthy_meanwhile_it_serves_nobody(self) -> None:
        scheduler = ready("a")
        scheduler.hold(None, False, 0.0)
        scheduler.switch_failed(1.0, "stuck", frozenset("a"))
        scheduler.adopt("a", 2.0)
        assert scheduler.submit(1, "a", 3.0) == [Reject(1, Reason.ON_HOLD, 30.0)]


class TestLostAndFound:
    def test_a_lost_unit_is_started_again_for_the_next_request(self) -> None:
        scheduler = ready("a")
        assert scheduler.lost("a", 1.0) == []
        assert scheduler.submit(1, "a", 2.0) == [alone("a")]

    def test_what_still_runs_on_it_holds_nothing_off(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        scheduler.submit(2, "b", 1.0)
        assert scheduler.lost("a", 2.0) == [alone("b")]
        assert scheduler.finish(1, 3.0) == []

    def test_its_old_tickets_do_not_count_for_its_new_process(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        scheduler.lost("a", 2.0)
        scheduler.submit(2, "a", 2.0)
        scheduler.switch_done(6.0, COST_S)
        scheduler.finish(2, 7.0)
        assert scheduler.submit(3, "b", 8.0) == [alone("b", "a")]
        assert scheduler.finish(1, 9.0) == []

    def test_a_unit_that_a_switch_is_changing_cannot_be_lost(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        assert scheduler.lost("a", 2.0) == []
        assert scheduler.lost("b", 2.0) == []
        assert (scheduler.state("a"), scheduler.state("b")) == (State.STOPPING, State.STARTING)

    def test_what_is_found_loaded_serves_without_a_switch(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.adopt("a", 0.0)
        assert scheduler.submit(1, "a", 1.0) == [Grant(1)]

    def test_a_second_one_that_does_not_fit_is_unloaded(self) -> None:
        scheduler = ready("a")
        assert scheduler.adopt("b", 1.0) == [Switch(None, ("b",), frozenset("a"))]

    def test_a_unit_in_change_is_not_adopted(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        assert scheduler.adopt("a", 2.0) == []
        assert scheduler.adopt("b", 2.0) == []
        assert (scheduler.state("a"), scheduler.state("b")) == (State.STOPPING, State.STARTING)
        assert scheduler.switch_done(5.0, COST_S) == [Grant(1)]
        assert scheduler.residents == {"b"}

    def test_a_stranger_serves_nobody_after_a_refused_switch(self) -> None:
        """It was stopped for nobody, but nobody knows its process either: it is started anew first."""
        scheduler = Scheduler(Policy(), ABC)
        scheduler.found("a", 0.0)
        assert scheduler.submit(1, "b", 1.0) == [alone("b", "a")]
        assert scheduler.switch_refused(2.0, "missing") == [Reject(1, Reason.START_FAILED, cause="missing")]
        assert scheduler.state("a") is State.STOPPING
        assert scheduler.submit(2, "a", 3.0) == [alone(None, "a")]
        assert scheduler.switch_done(4.0, COST_S) == [alone("a")]
        assert scheduler.switch_done(8.0, COST_S) == [Grant(2)]

    def test_one_that_is_waited_for_is_not_granted_by_a_refused_switch(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.found("a", 0.0)
        scheduler.submit(1, "b", 1.0)
        assert scheduler.submit(2, "a", 1.5) == []
        assert scheduler.switch_refused(2.0, "missing") == [
            Reject(1, Reason.START_FAILED, cause="missing"),
            alone(None, "a"),
        ]

    def test_what_did_not_stop_serves_nobody_after_a_refused_switch(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        scheduler.switch_failed(2.0, "stuck", frozenset("a"))
        assert scheduler.submit(2, "c", 3.0) == [alone("c", "a")]
        scheduler.switch_refused(4.0, "missing")
        assert scheduler.state("a") is State.STOPPING
        assert scheduler.submit(3, "a", 5.0) == [alone(None, "a")]

    def test_a_refused_switch_leaves_an_unconfirmed_stop_alone_for_a_while(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.found("a", 0.0)
        scheduler.submit(1, "b", 1.0)
        scheduler.switch_refused(2.0, "missing")
        assert scheduler.hold(None, False, 3.0) == []
        assert scheduler.next_deadline() == 32.0
        assert scheduler.tick(32.0) == [alone(None, "a")]

    def test_an_unload_meanwhile_outlives_a_refused_switch(self) -> None:
        """It was going anyway; once it is not, it goes because somebody asked."""
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        assert scheduler.unload(["a"], False, 2.0) == []
        assert scheduler.switch_refused(3.0, "missing") == [
            Reject(1, Reason.START_FAILED, cause="missing"),
            alone(None, "a"),
        ]

    def test_an_unload_of_a_stranger_outlives_a_refused_switch(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.found("a", 0.0)
        scheduler.submit(1, "b", 1.0)
        assert scheduler.unload(["a"], False, 1.5) == []
        assert alone(None, "a") in scheduler.switch_refused(2.0, "missing")

    def test_an_unload_meanwhile_is_over_once_the_switch_is(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "b", 1.0)
        scheduler.unload(["a"], True, 2.0)
        assert scheduler.switch_done(4.0, COST_S) == [Grant(1)]
        scheduler.finish(1, 5.0)
        assert scheduler.submit(2, "a", 50.0) == [alone("a", "b")]
        assert scheduler.switch_done(54.0, COST_S) == [Grant(2)]
        assert scheduler.finish(2, 55.0) == []

    def test_an_unknown_unit_is_not_adopted(self) -> None:
        scheduler = ready("a")
        scheduler.configure(Policy(), ABC[:1], 1.0)
        assert scheduler.adopt("b", 1.0) == []
        assert scheduler.adopt("x", 1.0) == []
        assert scheduler.residents == {"a"}


class TestConfigure:
    def test_what_is_loaded_stays_and_runs_on(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        assert scheduler.configure(Policy(), ABC[1:], 2.0) == []
        assert scheduler.residents == {"a"}
        assert scheduler.in_flight("a") == 1

    def test_who_waits_for_a_vanished_unit_is_rejected(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        scheduler.submit(2, "b", 1.0)
        assert scheduler.configure(Policy(), ABC[:1], 2.0) == [Reject(2, Reason.UNKNOWN_UNIT)]

    def test_a_vanished_unit_takes_no_requests_though_it_is_loaded(self) -> None:
        scheduler = ready("a")
        scheduler.configure(Policy(), ABC[1:], 1.0)
        assert scheduler.submit(1, "a", 2.0) == [Reject(1, Reason.UNKNOWN_UNIT)]

    def test_it_makes_room_for_others(self) -> None:
        scheduler = ready("a")
        scheduler.configure(Policy(), ABC[1:], 1.0)
        assert scheduler.submit(1, "b", 2.0) == [alone("b", "a")]
        scheduler.switch_done(6.0, COST_S)
        assert scheduler.residents == {"b"}

    def test_it_serves_again_once_it_is_back(self) -> None:
        scheduler = ready("a")
        scheduler.configure(Policy(), ABC[1:], 1.0)
        scheduler.configure(Policy(), ABC, 2.0)
        assert scheduler.submit(1, "a", 3.0) == [Grant(1)]

    def test_a_load_of_a_vanished_unit_is_aborted(self) -> None:
        scheduler = Scheduler(Policy(), ABC)
        scheduler.submit(1, "a", 0.0)
        scheduler.configure(Policy(), ABC[1:], 1.0)
        assert run_until(scheduler, 3.0) == [Abort("a")]

    def test_a_moved_unit_finishes_where_it_is_and_is_loaded_anew_for_the_next(self) -> None:
        scheduler = ready("a")
        scheduler.submit(1, "a", 1.0)
        moved = [Spec("a", "http://127.0.0.1:9"), *ABC[1:]]
        assert scheduler.configure(Policy(), moved, 2.0) == []
        assert scheduler.submit(2, "a", 3.0) == []
        assert scheduler.finish(1, 4.0) == [alone(None, "a")]
        assert scheduler.switch_done(5.0, 1.0) == [alone("a")]
        assert scheduler.switch_done(9.0, COST_S) == [Grant(2)]

    def test_a_moved_unit_still_occupies_its_old_port(self) -> None:
        scheduler = ready("a", specs=[Spec("a", "old", 0.0), Spec("b", "b", 0.0)])
        scheduler.configure(Policy(), [Spec("a", "new", 0.0), Spec("b", "old", 0.0)], 1.0)
        assert scheduler.submit(1, "b", 2.0) == [alone("b", "a")]

    def test_who_must_go_for_a_moved_unit_drains_as_soon_as_that_one_is_stopped(self) -> None:
        """Nothing is left to the next tick: what listens on the new port drains while the old process stops."""
        scheduler = ready("a", "e", specs=[Spec("a", "old"), Spec("e", "new", 0.0)])
        scheduler.configure(Policy(), [Spec("a", "new")], 1.0)
        assert scheduler.submit(1, "a", 2.0) == [Switch(None, ("a",), frozenset({"e"}))]
        assert scheduler.state("e") is State.DRAINING
        assert scheduler.tick(2.0) == []

    def test_a_new_limit_holds_at_once(self) -> None:
        scheduler = ready("a", policy=Policy(in_flight_limit=1))
        scheduler.submit(1, "a", 1.0)
        scheduler.submit(2, "a", 1.0)
        assert scheduler.configure(Policy(in_flight_limit=2), ABC, 2.0) == [Grant(2)]

    def test_a_new_share_counts_for_what_is_loaded(self) -> None:
        scheduler = ready("a", policy=Policy(vram_gib=24.0), specs=on_ports(a=8.0, b=16.0))
        scheduler.configure(Policy(vram_gib=24.0), on_ports(a=9.0, b=16.0), 1.0)
        assert scheduler.submit(1, "b", 2.0) == [alone("b", "a")]

    def test_measured_costs_are_kept(self) -> None:
        scheduler = ready("b", "a")
        scheduler.configure(Policy(), ABC[:1], 1.0)
        scheduler.configure(Policy(), ABC, 1.0)
        scheduler.submit(1, "a", 20.0)
        scheduler.submit(2, "b", 20.0)
        assert scheduler.next_deadline() == 24.0


def test_nothing_to_do_means_no_deadline() -> None:
    """The switcher's timer sleeps when nothing but requests can change anything."""
    scheduler = ready("a")
    scheduler.submit(1, "a", 1.0)
    scheduler.tick(1.0)
    assert scheduler.next_deadline() is None


def test_what_is_told_of_an_unknown_unit() -> None:
    """The status may ask for any unit."""
    scheduler = ready("a")
    assert scheduler.state("x") is State.STOPPED
    assert (scheduler.in_flight("x"), scheduler.waiting("x"), scheduler.ready_since("x")) == (0, 0, None)
