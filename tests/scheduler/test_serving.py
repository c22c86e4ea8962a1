"""The scheduler's specification: who is served at once, and who waits.

The policy and its reasons are in docs/scheduling.md.
"""

from __future__ import annotations

import pytest

from support.scheduling import ABC, COST_S, alone, ready
from systemd_llm_switch.scheduler import (
    Grant,
    Policy,
    Reason,
    Reject,
    Scheduler,
    Spec,
    State,
)


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
