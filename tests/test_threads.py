"""The server has as many threads as it needs: few at first, more before the last free one is taken, all gone after."""

from __future__ import annotations

import time

import pytest

from support.stack import Proxy, Stack, in_background, threads_of, wait_for


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    proxy = stack.run({"a": stack.standin("a")}, queue_limit=4)
    proxy.chat("a")
    return proxy


def test_an_idle_proxy_has_few_threads(proxy: Proxy) -> None:
    assert threads_of(proxy.process.pid) < 40


def test_a_burst_gets_its_threads_and_the_model_list_still_answers(proxy: Proxy, stack: Stack) -> None:
    """A hundred requests that all wait for the model, and nobody waits for a thread."""
    with in_background(*[lambda: proxy.chat("a", standin={"delay_s": 4})] * 100) as answers:
        wait_for(lambda: stack.seen()["running"] == 100)
        began = time.monotonic()
        assert proxy.get("/v1/models").status == 200
        assert time.monotonic() - began < 2
        assert threads_of(proxy.process.pid) > 100
    assert [answer.status for answer in answers] == [200] * 100


def test_there_is_a_limit(proxy: Proxy, stack: Stack) -> None:
    """128 run, 4 wait, the rest is told so at once; however many come, the threads are bounded."""
    with in_background(*[lambda: proxy.chat("a", standin={"delay_s": 5})] * 160) as answers:
        wait_for(lambda: stack.seen()["running"] == 128, 30)
        assert proxy.get("/health").status == 200
        assert threads_of(proxy.process.pid) < 4 + 128 + 64 + 8
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 128


def test_a_proxy_that_ends_in_a_burst_ends(proxy: Proxy, stack: Stack) -> None:
    """No thread that comes late holds the process up."""
    with in_background(*[lambda: proxy.chat("a", standin={"delay_s": 1})] * 60):
        wait_for(lambda: stack.seen()["running"] >= 10)
        assert proxy.stop() == 0
