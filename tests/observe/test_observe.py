"""The last requests, events and logs, on real units."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.stack import Proxy, Stack, freeze, wait_for

FIELDS = {
    *("at", "model", "path", "status", "stream", "queue_ms", "switch_ms", "restore_ms", "backend_ms"),
    *("first_token_ms", "prompt_tokens", "cached_tokens", "completion_tokens", "tokens_per_s", "repairs", "error"),
    "client",
}


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    return stack.run({"a": stack.standin("a"), "b": stack.standin("b")})


@contextlib.contextmanager
def watching(proxy: Proxy, path: str) -> Iterator[Iterator[tuple[str, Any]]]:
    """The events of a path, each with its name, as they come."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path)
        reply = connection.getresponse()
        assert reply.status == 200, reply.read()
        assert reply.getheader("Content-Type", "").startswith("text/event-stream")
        yield events_of(reply)


def events_of(reply: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    name = ""
    for raw in reply:
        line = raw.decode().rstrip("\n")
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_a_finished_request_is_listed_without_what_was_asked(proxy: Proxy) -> None:
    proxy.chat("a", "a secret of mine")
    (found,) = wait_for(lambda: proxy.get("/api/requests").json)
    assert set(found) == FIELDS
    assert (found["model"], found["path"], found["status"]) == ("a", "/v1/chat/completions", 200)
    assert "secret" not in json.dumps(found)


def test_a_request_is_listed_with_the_name_of_its_client_in_one_short_line(proxy: Proxy) -> None:
    for name in ("RooCode/3.1", "x" * 5000):
        proxy.post("/v1/chat/completions", {"model": "a", "messages": []}, headers={"User-Agent": name})
    proxy.chat("a")
    found = wait_for(lambda: len(it := proxy.get("/api/requests").json) == 3 and it)
    assert [len(it["client"] or "") < 300 for it in found] == [True] * 3
    assert [it["client"] for it in (found[0], found[2])] == [None, "RooCode/3.1"]


def test_the_newest_request_comes_first_and_the_limit_holds(proxy: Proxy) -> None:
    proxy.chat("a")
    proxy.chat("b")
    wait_for(lambda: len(proxy.get("/api/requests").json) == 2)
    assert [it["model"] for it in proxy.get("/api/requests?limit=1").json] == ["b"]


def test_a_failed_request_is_listed_with_its_error(proxy: Proxy) -> None:
    proxy.chat("nobody")
    (found,) = wait_for(lambda: proxy.get("/api/requests").json)
    assert (found["status"], found["error"]) == (404, "model_not_found")


def test_a_limit_that_makes_no_sense_is_refused(proxy: Proxy) -> None:
    for limit in ("0", "000", "-1", "1.5", "x"):
        assert proxy.get(f"/api/requests?limit={limit}").error["param"] == "limit"


def test_a_larger_limit_than_there_are_requests_and_lines_gives_all(proxy: Proxy) -> None:
    proxy.chat("nobody")
    wait_for(lambda: proxy.get("/api/requests").json)
    for number in ("501", "007", "9" * 5000):
        assert len(proxy.get(f"/api/requests?limit={number}").json) == 1
        assert proxy.get(f"/api/logs?lines={number}").json["lines"]


@pytest.mark.parametrize("streaming", ["buffered", "live"])
def test_the_time_to_the_first_words_is_known_of_each_stream_and_of_nothing_else(stack: Stack, streaming: str) -> None:
    proxy = stack.run({"a": stack.standin("a")}, streaming=streaming)
    proxy.chat("a")
    proxy.chat("a", stream=True)
    streamed, whole = wait_for(lambda: len(it := proxy.get("/api/requests").json) == 2 and it)
    assert whole["first_token_ms"] is None
    assert streamed["first_token_ms"] >= 0
    series = 'llm_switch_time_to_first_token_seconds_count{model="a"} 1.0'
    wait_for(lambda: series in proxy.get("/metrics").body.decode())


def test_a_watcher_gets_the_status_first_and_then_what_happens(proxy: Proxy) -> None:
    with watching(proxy, "/api/events") as events:
        name, status = next(events)
        assert name == "status"
        assert status == proxy.status()
        proxy.chat("a")
        seen: dict[str, Any] = {}
        for name, data in events:
            seen[name] = data
            is_ready = seen.get("status", {}).get("models", {}).get("a", {}).get("state") == "ready"
            if is_ready and {"switch", "request", "log"} <= set(seen):
                break
    assert seen["switch"]["to"] == "a"
    assert seen["request"]["model"] == "a"
    assert set(seen["log"]) == {"at", "unit", "priority", "message"}


def test_only_so_many_may_watch_and_requests_are_served_all_the_same(proxy: Proxy) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            next(stack.enter_context(watching(proxy, "/api/events")))
        for path in ("/api/events", "/api/logs?follow=1", "/api/logs?follow=1&model=a"):
            answer = proxy.get(path)
            assert (answer.status, answer.error["code"]) == (503, "too_many_watchers")
        assert proxy.chat("a").status == 200
    wait_for(lambda: watches(proxy), what="a seat is free once its watcher has left")


def watches(proxy: Proxy, path: str = "/api/events") -> bool:
    try:
        with watching(proxy, path):
            return True
    except AssertionError:
        return False


def test_the_log_of_a_model_is_its_units_journal(proxy: Proxy) -> None:
    proxy.chat("a")
    unit = proxy.status()["models"]["a"]["unit"]
    logs = wait_for(lambda: lines_of(proxy, "/api/logs?model=a"))
    assert {it["unit"] for it in logs["lines"]} == {unit}
    assert any("Started" in it["message"] for it in logs["lines"])


def lines_of(proxy: Proxy, path: str) -> Any:
    logs = proxy.get(path).json
    return logs if logs["lines"] else None


def test_the_log_without_a_model_is_the_proxys_own(proxy: Proxy) -> None:
    proxy.chat("a")
    logs = wait_for(lambda: lines_of(proxy, "/api/logs?lines=1"))
    assert len(logs["lines"]) == 1
    wait_for(lambda: "request model=a" in proxy.get("/api/logs").body.decode())


def test_the_proxys_own_log_can_be_followed(proxy: Proxy) -> None:
    with watching(proxy, "/api/logs?follow=1") as events:
        proxy.chat("a")
        assert next(data for _, data in events if "request model=a" in data["message"])


def test_the_journal_of_a_unit_can_be_followed(proxy: Proxy) -> None:
    proxy.chat("a")
    with watching(proxy, "/api/logs?follow=1&model=a") as events:
        assert next(data for _, data in events if "Started" in data["message"])
        proxy.post("/api/unload", {"model": "a"})
        assert next(data for _, data in events if "Stopped" in data["message"])


def test_the_log_of_an_unknown_model_is_an_error(proxy: Proxy) -> None:
    assert proxy.get("/api/logs?model=nobody").error["code"] == "model_not_found"


def test_journal_readers_end_with_their_watcher(proxy: Proxy) -> None:
    with watching(proxy, "/api/events") as events, watching(proxy, "/api/logs?follow=1&model=a"):
        next(events)
        wait_for(lambda: children_of(proxy))
    wait_for(lambda: not children_of(proxy))


def test_who_has_watched_a_journal_leaves_a_free_seat(proxy: Proxy) -> None:
    for _ in range(17):
        wait_for(lambda: watches(proxy, "/api/logs?follow=1&model=a"))


def test_a_journal_reader_that_hangs_ends_with_its_watcher(proxy: Proxy) -> None:
    with watching(proxy, "/api/logs?follow=1&model=a"):
        (reader,) = wait_for(lambda: children_of(proxy))
        freeze(reader)
    wait_for(lambda: not children_of(proxy))


def test_a_journal_reader_that_was_killed_is_replaced(proxy: Proxy) -> None:
    proxy.chat("a")
    with watching(proxy, "/api/logs?follow=1&model=a") as events:
        assert next(data for _, data in events if "Started" in data["message"])
        (reader,) = children_of(proxy)
        os.kill(reader, signal.SIGKILL)
        wait_for(lambda: children_of(proxy) not in ([], [reader]))
        proxy.post("/api/unload", {"model": "a"})
        assert next(data for _, data in events if "Stopped" in data["message"])


def children_of(proxy: Proxy) -> list[int]:
    """The processes that the proxy made, whichever of its threads made them."""
    found: list[int] = []
    for children in Path(f"/proc/{proxy.process.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, children.read_text().split())
    return found
