"""The scheduler's specification: draining, and loads that nobody waits for any more.

The policy and its reasons are in docs/scheduling.md.
"""

from __future__ import annotations

from support.scheduling import ABC, COST_S, alone, ready, run_until
from systemd_llm_switch.scheduler import (
    Abort,
    Grant,
    Interrupt,
    Policy,
    Scheduler,
    State,
)


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
