"""The scheduler's specification: unloading: idle, asked for, on hold.

The policy and its reasons are in docs/scheduling.md.
"""

from __future__ import annotations

from support.scheduling import ABC, COST_S, URL, alone, on_ports, ready, run_until
from systemd_llm_switch.scheduler import (
    Abort,
    Grant,
    HoldEnded,
    Interrupt,
    Policy,
    Reason,
    Reject,
    Scheduler,
    Spec,
    State,
)


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
