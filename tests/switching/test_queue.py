"""Who waits for what and why, and a waiting request that is cancelled."""

from __future__ import annotations

import time
from typing import Any

import pytest

from support.stack import Proxy, Stack, in_background, wait_for
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.scheduler import State
from systemd_llm_switch.switching.queue import QueueEntry, Waiter, describe
from systemd_llm_switch.switching.status import UnitSnapshot

SLOW: Any = {"standin": {"until_released": True}}


def entry_of(model: str, states: dict[str, State], on_cpu: str = "") -> QueueEntry:
    """How one waiter for `model` is shown, where the units are in these states."""
    models = {name: Model(name, f"{name}.service", "http://x", vram=0.0 if name == on_cpu else None) for name in states}
    units = [UnitSnapshot(models[name], state, 0, 0, None, None) for name, state in states.items()]
    (entry,) = describe([Waiter(7, models[model], 5.0)], units, 1000.0)
    assert (entry.id, entry.model, entry.since) == (7, model, 1005.0)
    return entry


def why(model: str, states: dict[str, State], on_cpu: str = "") -> tuple[str, tuple[str, ...]]:
    entry = entry_of(model, states, on_cpu)
    return entry.why, entry.behind


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({"a": State.STARTING, "b": State.STOPPED}, ("loading", ())),
        ({"a": State.DRAINING, "b": State.STOPPED}, ("draining", ("a",))),
        ({"a": State.STOPPED, "b": State.STARTING}, ("other_loading", ("b",))),
        ({"a": State.STOPPED, "b": State.STOPPING}, ("stopping", ("b",))),
        ({"a": State.FAILED, "b": State.DRAINING, "c": State.READY}, ("draining", ("b",))),
        ({"a": State.STOPPED, "b": State.READY}, ("right_of_way", ("b",))),
        ({"a": State.STOPPED, "b": State.STOPPED}, ("turn", ())),
        ({"a": State.READY, "b": State.STOPPED}, ("turn", ())),
        ({"a": State.READY, "b": State.READY}, ("turn", ())),
    ],
)
def test_a_waiter_is_shown_with_what_it_waits_for(
    states: dict[str, State], expected: tuple[str, tuple[str, ...]]
) -> None:
    assert why("a", states) == expected


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ({"a": State.STARTING, "b": State.STOPPED}, "its model is being loaded"),
        ({"a": State.STOPPED, "b": State.STARTING}, "waits for b to load first"),
        ({"a": State.STOPPED, "b": State.STOPPING}, "waits for b to stop"),
        ({"a": State.STOPPING, "b": State.READY}, "waits for its model to stop, to load it again"),
        (
            {"a": State.STOPPED, "b": State.DRAINING, "c": State.DRAINING},
            "waits for b and c to finish running requests",
        ),
        ({"a": State.STOPPED, "b": State.READY}, "waits while b may go on serving (right of way)"),
        ({"a": State.STOPPED, "b": State.STOPPED}, "its turn comes next"),
    ],
)
def test_the_reason_is_a_sentence_for_a_person(states: dict[str, State], reason: str) -> None:
    assert entry_of("a", states).reason == reason


def test_nobody_waits_for_a_model_on_the_cpu() -> None:
    assert why("a", {"a": State.STOPPED, "b": State.READY}, on_cpu="b") == ("turn", ())


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    return stack.run({"a": stack.standin("a"), "b": stack.standin("b")})


def waiting(proxy: Proxy) -> Any:
    return proxy.status()["queue"]


def test_the_status_lists_the_waiting_request(proxy: Proxy, stack: Stack) -> None:
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", **SLOW)):
        wait_for(lambda: proxy.status()["models"]["a"]["in_flight"] == 1)
        with in_background(lambda: proxy.chat("b")):
            (entry,) = wait_for(lambda: waiting(proxy))
            assert (entry["model"], set(entry)) == ("b", {"id", "model", "since", "why", "behind", "reason"})
            assert abs(entry["since"] - time.time()) < 30
            wait_for(lambda: [(it["why"], it["behind"]) for it in waiting(proxy)] == [("draining", ["a"])])
            stack.release()
    assert waiting(proxy) == []


def test_a_cancelled_request_gets_an_error_and_leaves_the_queue(proxy: Proxy, stack: Stack) -> None:
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", **SLOW)):
        wait_for(lambda: proxy.status()["models"]["a"]["in_flight"] == 1)
        with in_background(lambda: proxy.chat("b")) as answers:
            (entry,) = wait_for(lambda: waiting(proxy))
            assert proxy.post("/api/requests/cancel", {"id": entry["id"]}).json == {"success": True, "id": entry["id"]}
        (cancelled,) = answers
        assert (cancelled.status, cancelled.error["code"]) == (503, "request_cancelled")
        assert cancelled.headers["x-should-retry"] == "false"
        assert waiting(proxy) == []
        stack.release()
    assert proxy.state("a") == "ready"


def test_a_running_request_cannot_be_cancelled(proxy: Proxy) -> None:
    answer = proxy.post("/api/requests/cancel", {"id": 1})
    assert (answer.status, answer.error["code"]) == (404, "request_not_found")


@pytest.mark.parametrize("number", [None, "1", True, 1.5])
def test_a_number_that_is_none_is_refused(proxy: Proxy, number: object) -> None:
    assert proxy.post("/api/requests/cancel", {"id": number}).error["param"] == "id"
