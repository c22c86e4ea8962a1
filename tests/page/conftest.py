"""A real browser, and a proxy with real units for it to look at."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from page.seat import CHROMIUM, FLAGS, Seat
from support.stack import Proxy, Stack
from systemd_llm_switch.setup.user_manager import UserManager

# What the stand-in answers to the page's chat, which cannot order it.
TALK = [
    {"role": "assistant"},
    {"reasoning_content": "Let me think."},
    {"content": "<b>bold</b> & "},
    {"content": "<img src=x onerror=alert(1)>"},
]
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, with a profile of its own that is gone afterwards."""
    expect.set_options(timeout=60_000)  # only a claim that never comes true reaches it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def bed(
    manager: UserManager, tmp_path_factory: pytest.TempPathFactory, llama_server: Path, model_file: Path
) -> Iterator[Stack]:
    """Units of every kind: a real model, a stand-in that talks, one that loads until it is released, one that fails."""
    stack = Stack(manager.env, tmp_path_factory.mktemp("page"), f"page{os.getpid()}")
    contexts = stack.folder / "contexts"
    contexts.mkdir()
    words = [str(llama_server), "-m", str(model_file), "--host", "127.0.0.1", "--port", str(stack.port), "-t", "1"]
    words += ["-c", "4096", "-np", "1", "--jinja", "--slot-save-path", str(contexts)]
    models: dict[str, Any] = {
        "real": {"unit": stack.unit("real", shlex.join(words)), "streaming": "live"},
        "talker": {"unit": stack.standin("talker"), "streaming": "live", "force": {"standin": {"deltas": TALK}}},
        "caller": {
            "unit": stack.standin("caller"),
            "streaming": "live",
            "force": {"standin": {"deltas": [{"role": "assistant"}, {"tool_calls": [{"index": 0, **CALL}]}]}},
        },
        "endless": {
            "unit": stack.standin("endless"),
            "streaming": "live",
            "force": {"standin": {"deltas": [{"content": "word "}] * 600, "delta_s": 0.2}},
        },
        "holding": {"unit": stack.standin("holding"), "force": {"standin": {"until_released": True}}},
        "slow": stack.standin("slow", "--load-s", "100000"),
        "broken": stack.standin("broken", "--exit", "3", "--say", "no such file: /models/broken.gguf"),
    }
    stack.write_config(models)
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def proxy(bed: Stack) -> Proxy:
    return bed.start_proxy()


@pytest.fixture(scope="module")
def profile(browser: Browser) -> Iterator[BrowserContext]:
    """What the tabs of a module share: the browser's processes. To start those takes a second of CPU time."""
    context = browser.new_context()
    context.set_default_timeout(60_000)
    yield context
    context.close()


@pytest.fixture
def page(profile: BrowserContext) -> Iterator[Page]:
    """An empty tab. What the page stores, but for a cookie, belongs to its tab (`sessionStorage`)."""
    yield profile.new_page()
    for tab in profile.pages:
        tab.close()
    profile.clear_cookies()


@pytest.fixture
def seat(page: Page, proxy: Proxy) -> Iterator[Seat]:
    """The page, open and filled; nothing is loaded. It must not have complained at the end."""
    proxy.post("/api/release", {})
    proxy.post("/api/unload", {"force": True})
    seat = Seat(page, proxy.url)
    seat.open()
    yield seat
    assert seat.complaints == []
