"""The scheduler's specification: starts that fail.

The policy and its reasons are in docs/scheduling.md.
"""

from __future__ import annotations

from support.scheduling import ABC, COST_S, URL, alone, on_ports, ready, run_until
from systemd_llm_switch.scheduler import (
    Grant,
    Policy,
    Reason,
    Reject,
    Scheduler,
    Spec,
    State,
    Switch,
)


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
