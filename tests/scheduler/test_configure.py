"""The scheduler's specification: a new config.

The policy and its reasons are in docs/scheduling.md.
"""

from __future__ import annotations

from support.scheduling import ABC, COST_S, alone, on_ports, ready, run_until
from systemd_llm_switch.scheduler import (
    Abort,
    Grant,
    Policy,
    Reason,
    Reject,
    Scheduler,
    Spec,
    State,
    Switch,
)


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
