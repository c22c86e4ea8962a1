"""The scheduler's specification: units that come and go without the scheduler's doing.

The policy and its reasons are in docs/scheduling.md.
"""

from __future__ import annotations

from support.scheduling import ABC, COST_S, alone, ready
from systemd_llm_switch.scheduler import (
    Grant,
    Policy,
    Reason,
    Reject,
    Scheduler,
    State,
    Switch,
)


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
