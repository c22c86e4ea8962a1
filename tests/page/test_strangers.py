"""Who may use the page: keys, and pages of other sites."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from page.seat import Seat
from support.stack import Proxy, Stack

pytestmark = pytest.mark.slow

KEY = "sk-schlüssel"


@pytest.fixture
def keyed(stack: Stack) -> Proxy:
    return stack.run({"a": stack.standin("a")}, api_keys=[KEY])


def give(page: Page, key: str) -> None:
    page.locator('input[name="api_key"]').fill(key)
    page.get_by_role("button", name="Open").click()


def test_the_page_asks_for_a_key_and_keeps_it_for_the_tab(page: Page, keyed: Proxy) -> None:
    page.goto(f"{keyed.url}/")
    give(page, "sk-wrong")
    expect(page.get_by_text("This key is not valid.")).to_be_visible()
    give(page, KEY)
    expect(page.locator('[data-model="a"]')).to_be_visible()
    page.reload()
    expect(page.locator('[data-model="a"]')).to_be_visible()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    other = page.context.new_page()
    other.goto(f"{keyed.url}/")
    expect(other.locator('input[name="api_key"]')).to_be_visible()
    assert other.locator("[data-model]").count() == 0


def test_the_buttons_work_with_a_key(page: Page, keyed: Proxy) -> None:
    seat = Seat(page, keyed.url)
    page.goto(f"{keyed.url}/")
    give(page, KEY)
    seat.press("load", "a")
    seat.expect_state("a", "ready")
    seat.press("forget-key")
    expect(page.locator('input[name="api_key"]')).to_be_visible()


def test_a_models_own_page_opens_where_keys_are_set(page: Page, keyed: Proxy) -> None:
    seat = Seat(page, keyed.url)
    page.goto(f"{keyed.url}/")
    give(page, KEY)
    seat.press("load", "a")
    seat.expect_state("a", "ready")
    assert page.context.cookies() == []
    with page.expect_popup() as popup:
        seat.model("a").get_by_role("link").click()
    expect(popup.value.locator("body")).to_contain_text('"path": "/"')
    assert [it["path"] for it in page.context.cookies()] == ["/upstream/"]


class _Silent(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>evil</title>")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def stranger(browser: Browser) -> Iterator[Page]:
    """A page of another site."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    yield page
    context.close()
    server.shutdown()
    server.server_close()


def test_a_page_of_another_site_can_neither_read_nor_do(stranger: Page, stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")})
    tried = """async ([url]) => {
        const ask = (path, more) => fetch(url + path, more).then((it) => it.status, () => "refused");
        const load = { method: "POST", mode: "no-cors", body: '{"model": "a"}' };
        return [await ask("/api/status"), await ask("/"), await ask("/api/events"), await ask("/api/load", load)];
    }"""
    seen = stranger.evaluate(tried, [proxy.url])
    assert seen[:3] == ["refused"] * 3
    assert proxy.state("a") == "stopped"


def test_a_page_of_another_site_cannot_frame_it(stranger: Page, stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")})
    complaints: list[str] = []
    stranger.on("console", lambda message: complaints.append(message.text))
    framed = """(url) => new Promise((resolve) => {
        const frame = document.createElement("iframe");
        frame.onload = resolve;
        frame.src = url;
        document.body.append(frame);
    })"""
    stranger.evaluate(framed, f"{proxy.url}/")
    assert any("frame-ancestors" in it for it in complaints)
