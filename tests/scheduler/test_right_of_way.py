"""The scheduler's specification: how long the loaded model may keep others waiting.

The policy and its reasons are in docs/scheduling.md.
"""

from __future__ import annotations

from support.scheduling import ABC, COST_S, alone, ready
from systemd_llm_switch.scheduler import (
    Grant,
    Policy,
    Scheduler,
    State,
)


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
