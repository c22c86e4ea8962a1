"""The scheduler's specification: what fits together, and who makes room.

The policy and its reasons are in docs/scheduling.md.
"""

from __future__ import annotations

from support.scheduling import COST_S, URL, alone, on_ports, ready
from systemd_llm_switch.scheduler import (
    Grant,
    Policy,
    Spec,
    State,
    Switch,
)
from systemd_llm_switch.scheduler.placement import Occupant, choose_evictions, fit_together


class TestPlacement:
    """The pure functions: what fits, and who goes."""

    def evictions(self, target: Spec, *residents: Occupant, card_gib: float | None = 24.0) -> tuple[str, ...]:
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
    ) -> Occupant:
        return Occupant(Spec(name, url or name, gib), takeable_at, is_busy, used_at)

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
