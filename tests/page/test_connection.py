"""The page's connection to the proxy: lost, and found again."""

from __future__ import annotations

import http.client

import pytest
from playwright.sync_api import Page, expect

from page.seat import Seat
from support.stack import Stack

pytestmark = pytest.mark.slow


def test_the_page_connects_again_after_a_restart_of_the_proxy(page: Page, stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")})
    seat = Seat(page, proxy.url)
    seat.open()
    expect(seat.role("connection")).to_have_attribute("data-state", "live")
    proxy.stop()
    expect(seat.role("connection")).to_have_attribute("data-state", "lost")
    stack.start_proxy("--port", str(proxy.port), wait=False)
    expect(seat.role("connection")).to_have_attribute("data-state", "live")
    proxy.chat("a")
    seat.expect_state("a", "ready")


def test_one_page_too_many_says_why(page: Page, stack: Stack) -> None:
    """Sixteen watch already."""
    proxy = stack.run({"a": stack.standin("a")})
    watchers = [_watch(proxy.port) for _ in range(16)]
    page.goto(f"{proxy.url}/")
    expect(page.locator('[data-role="connection"]')).to_contain_text("16 clients watch already")
    for it in watchers:
        it.close()
    expect(page.locator('[data-model="a"]')).to_be_visible()


def _watch(port: int) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/api/events")
    assert connection.getresponse().status == 200
    return connection
