"""The hub: one computation for all watchers, and none without."""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from support.no_threads import no_more_threads
from support.stack import wait_for
from systemd_llm_switch.errors import ClientGone, TooManyWatchers
from systemd_llm_switch.observe.event_hub import MOST_WATCHERS, EventHub, Watcher
from systemd_llm_switch.openai.shapes import Json
from systemd_llm_switch.waiting import Client

NOBODY = Client(None)


class Status:
    """What the status is now, and how often it was computed."""

    def __init__(self) -> None:
        self.count = 0
        self.value = "idle"

    def __call__(self) -> Json:
        self.count += 1
        return {"value": self.value}


def status_threads() -> int:
    return [it.name for it in threading.enumerate()].count("status-events")


def test_a_status_that_does_not_change_is_sent_once() -> None:
    status = Status()
    hub = EventHub(status)
    with hub.watch() as watcher:
        assert watcher.take(NOBODY, 1) == b'event: status\ndata: {"value":"idle"}\n\n'
        wait_for(lambda: status.count > 3)
        repeated = watcher.take(NOBODY, 0)
        status.value = "busy"
        changed = wait_for(lambda: watcher.take(NOBODY, 1))
    assert repeated.count(b"event: status") <= 1
    assert b"busy" in changed


def test_many_watchers_cost_one_computation() -> None:
    status = Status()
    hub = EventHub(status)
    wait_for(lambda: not status_threads())  # those of other tests' hubs end a moment after their last watcher
    with hub.watch(), hub.watch(), hub.watch():
        assert status_threads() == 1


def test_nothing_is_computed_without_watchers() -> None:
    status = Status()
    hub = EventHub(status)
    with hub.watch():
        pass
    wait_for(lambda: not status_threads())
    before = status.count
    hub.publish("request", dict)
    assert status.count == before


def test_a_companion_runs_only_while_there_are_watchers() -> None:
    told: list[str] = []

    def begin() -> Callable[[], None]:
        told.append("begun")
        return lambda: told.append("ended")

    hub = EventHub(Status(), (begin,))
    with hub.watch(), hub.watch():
        assert told == ["begun"]
    assert told == ["begun", "ended"]


def large(number: int) -> Json:
    return {"number": number, "text": "x" * 100_000}


def test_events_that_come_close_together_wake_a_watcher_once() -> None:
    """At most twenty times a second, however slow this machine is."""
    hub = EventHub(Status())
    with hub.watch() as watcher:
        began, takes = time.monotonic(), [watcher.take(NOBODY, 60)]
        for number in range(200):
            hub.publish("request", functools.partial(dict, number=number))
            takes.append(watcher.take(NOBODY, 0.001))
        while b'"number":199}' not in b"".join(takes):
            takes.append(watcher.take(NOBODY, 60))
        elapsed_s = time.monotonic() - began
    events = b"".join(takes)
    assert [events.count(b'"number":%d}' % number) for number in range(200)] == [1] * 200
    assert len([it for it in takes if it]) <= elapsed_s / 0.05 + 3


def test_a_watcher_that_reads_nothing_is_dropped() -> None:
    hub = EventHub(Status())
    with hub.watch() as idle, hub.watch() as busy:
        for number in range(20):
            hub.publish("request", functools.partial(large, number))
            wait_for(lambda: b'"number":%d,' % number in busy.take(NOBODY, 1))  # noqa: B023  # it ends before the next
        assert idle.is_dropped
        assert not busy.is_dropped


def test_a_status_that_cannot_be_computed_ends_nothing() -> None:
    class Broken(Status):
        def __call__(self) -> Json:
            super().__call__()
            if self.count == 3:
                raise ValueError("broken")
            return {"count": self.count}

    status = Broken()
    hub = EventHub(status)
    with hub.watch() as watcher:
        wait_for(lambda: status.count > 4)
        assert b'{"count":4}' in watcher.take(NOBODY, 1)


def test_there_are_only_so_many_seats() -> None:
    hub = EventHub(Status())
    with ExitStack() as stack:
        for _ in range(MOST_WATCHERS):
            stack.enter_context(hub.seat())
        with pytest.raises(TooManyWatchers), hub.seat():
            raise AssertionError("one too many")
    with hub.seat():
        pass


def test_the_next_watcher_is_served_if_there_was_no_thread_for_the_first() -> None:
    ended: list[str] = []
    hub = EventHub(Status(), (lambda: lambda: ended.append("ended"),))
    with no_more_threads(), pytest.raises(RuntimeError), hub.watch():
        raise AssertionError("watched without a thread")
    assert ended == ["ended"]
    assert not hub.is_watched
    with hub.watch() as watcher:
        watcher.take(NOBODY, 1)
        hub.publish("request", lambda: {"number": 1})
        assert b'"number":1' in wait_for(lambda: watcher.take(NOBODY, 1))


def test_a_wait_ends_with_the_client() -> None:
    ours, theirs = socket.socketpair()
    with ours, EventHub(Status()).watch() as watcher:
        watcher.take(NOBODY, 1)
        theirs.close()
        with pytest.raises(ClientGone):
            watcher.take(Client(ours.fileno()), 60)


def test_a_companion_may_publish_while_it_begins() -> None:
    """One that cannot begin logs why, and each log line is an event."""

    def begin() -> Callable[[], None]:
        hub.publish("log", lambda: {"message": "no journal"})
        return lambda: None

    def watch() -> None:
        with hub.watch() as watcher:
            wait_for(lambda: b"no journal" in watcher.take(NOBODY, 1))
            seen.append(watcher)

    hub = EventHub(Status(), (begin,))
    seen: list[Watcher] = []
    threading.Thread(target=watch, daemon=True).start()
    wait_for(lambda: seen)
