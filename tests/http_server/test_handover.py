"""Items are handed over in turn, and to the thread that began to wait last."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from support.stack import wait_for
from systemd_llm_switch.http_server.handover import HandOver

OVER = object()


def start_takers(handover: HandOver, names: str, taken: list[tuple[str, Any]]) -> None:
    """Threads that note what each of them takes. They begin to wait one after the other."""

    def take(name: str) -> None:
        while (item := handover.get()) is not OVER:
            taken.append((name, item))

    for count, name in enumerate(names, 1):
        threading.Thread(target=take, args=(name,), daemon=True).start()
        wait_for(lambda: handover.free == count)  # noqa: B023


def test_items_are_taken_in_turn() -> None:
    handover = HandOver()
    for item in range(3):
        handover.put(item)
    assert handover.free == -3
    assert [handover.get() for _ in range(3)] == [0, 1, 2]
    assert handover.free == 0


def test_the_thread_that_began_to_wait_last_takes_each() -> None:
    handover = HandOver()
    taken: list[tuple[str, Any]] = []
    start_takers(handover, "abc", taken)
    for item in range(3):
        handover.put(item)
        wait_for(lambda: handover.free == 3)
    assert taken == [("c", 0), ("c", 1), ("c", 2)]
    for _ in "abc":
        handover.put(OVER)


def test_who_has_stopped_waiting_is_given_nothing() -> None:
    handover = HandOver()
    with pytest.raises(queue.Empty):
        handover.get(timeout=0.01)
    assert handover.free == 0
    handover.put(1)
    assert handover.get(timeout=60) == 1


def test_a_thread_that_stops_waiting_in_this_moment_takes_what_it_is_given() -> None:
    """`put` has chosen it, and is kept from going on until its time is over."""
    while (result := taken_at_the_end_of_its_time(HandOver())) is None:
        pass
    assert result == "it"


def taken_at_the_end_of_its_time(handover: HandOver) -> object:
    """What a thread takes whose time ends while `put` gives it an item; None if its time ended before that."""
    results: list[object] = []
    is_chosen = False

    def take() -> None:
        try:
            results.append(handover.get(timeout=0.05))
        except queue.Empty as error:
            results.append(error)

    def pause(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal is_chosen
        if frame.f_code is HandOver.put.__code__ and "place" in frame.f_locals:
            is_chosen = True
            taker.join(timeout=0.3)
        return pause

    taker = threading.Thread(target=take)
    taker.start()
    wait_for(lambda: handover.free == 1 or results)
    sys.settrace(pause)
    try:
        handover.put("it")
    finally:
        sys.settrace(None)
    taker.join()
    return results[0] if is_chosen else None
