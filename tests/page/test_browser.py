"""The page in a real browser, on real units."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from page.seat import Seat
from support.stack import ROOT, Proxy, Stack, in_background, wait_for

pytestmark = pytest.mark.slow

LONG = "The sea is wide and old and full of ships. " * 14  # so long that its context is worth a file


def test_each_model_is_shown_with_its_state(seat: Seat) -> None:
    assert "llm-switch" in seat.page.title()
    names = ["real", "talker", "caller", "endless", "holding", "slow", "broken"]
    shown = [it.get_attribute("data-model") for it in seat.page.locator("[data-model]").all()]
    assert shown == names
    seat.expect_state("talker", "stopped")


def test_a_model_is_loaded_and_unloaded_by_its_buttons(seat: Seat) -> None:
    seat.press("load", "talker")
    seat.expect_state("talker", "ready")
    seat.press("unload", "talker")
    seat.expect_state("talker", "stopped")


def test_unload_now_ends_the_running_requests(seat: Seat, proxy: Proxy) -> None:
    with in_background(lambda: proxy.chat("holding")) as answers:
        expect(seat.model("holding").locator('[data-part="running"]')).to_have_text("1")
        seat.press("unload", "holding")
        seat.expect_state("holding", "draining")
        seat.model("holding").get_by_role("button", name="Unload holding now, and end its requests").click()
        seat.expect_state("holding", "stopped")
    assert answers[0].error["code"] == "model_unloaded"


def test_what_others_do_is_shown_without_a_reload(seat: Seat, proxy: Proxy) -> None:
    proxy.chat("talker")
    seat.expect_state("talker", "ready")
    row = seat.role("requests").locator("tr").first
    expect(row).to_contain_text("talker")
    expect(seat.role("switches").locator("li").first).to_contain_text("talker")


def test_a_load_shows_its_progress(seat: Seat, bed: Stack) -> None:
    seat.press("load", "slow")
    seat.expect_state("slow", "starting")
    expect(seat.model("slow").get_by_role("progressbar")).to_be_visible()
    wait_for(lambda: has_released(bed))
    seat.expect_state("slow", "ready")
    expect(seat.model("slow").get_by_role("progressbar")).to_be_hidden()


def has_released(bed: Stack) -> bool:
    """The stand-in may not listen yet."""
    with contextlib.suppress(OSError):
        bed.release()
        return True
    return False


def test_a_model_that_fails_to_start_shows_the_journals_lines(seat: Seat) -> None:
    seat.press("load", "broken")
    seat.expect_state("broken", "failed")
    expect(seat.model("broken")).to_contain_text("exit status 3")
    expect(seat.model("broken").locator("pre")).to_contain_text("no such file: /models/broken.gguf")


def test_what_the_proxy_refuses_is_shown_in_its_words(seat: Seat) -> None:
    seat.page.locator('input[name="minutes"]').fill("1")
    seat.press("hold")
    expect(seat.role("hold-banner")).to_be_visible()
    seat.say("Hi.", "talker")
    expect(seat.role("chat-state")).to_contain_text("the models are on hold")
    wait_for(lambda: seat.complaints)
    assert all("503" in it for it in seat.complaints)  # Chromium's own line for each error status
    seat.complaints.clear()


def test_a_hold_frees_the_vram_until_it_is_released(seat: Seat, proxy: Proxy) -> None:
    proxy.chat("talker")
    seat.expect_state("talker", "ready")
    seat.page.locator('input[name="minutes"]').fill("90")
    seat.press("hold")
    seat.expect_state("talker", "stopped")
    expect(seat.role("hold-banner")).to_contain_text("1 h 29 min to go")
    assert proxy.status()["on_hold"]
    seat.press("release")
    expect(seat.role("hold-banner")).to_be_hidden()
    assert not proxy.status()["on_hold"]


def test_a_hold_that_pauses_chats_lets_an_answer_go_on_afterwards(seat: Seat, bed: Stack) -> None:
    """Without the pause, the hold would wait for the answer, which does not end by itself."""
    seat.say("Hi.", "holding")
    expect(seat.model("holding").locator('[data-part="running"]')).to_have_text("1")
    seat.page.get_by_label("pause chats").check()
    seat.press("hold")
    seat.expect_state("holding", "stopped")
    seat.press("release")
    expect(seat.model("holding").locator('[data-part="running"]')).to_have_text("1")
    wait_for(lambda: has_released(bed))
    expect(seat.role("answer")).to_have_text("hello from holding")
    expect(seat.role("chat-state")).to_contain_text("holding · ")


def test_how_fast_a_model_wrote_is_shown_although_no_status_follows(seat: Seat) -> None:
    """The last status may be older than the end of the request."""
    expect(seat.model("talker")).to_be_visible()
    shown = seat.page.evaluate("""async () => {
        (await import("/static/models.js")).noteRate({ model: "talker", tokens_per_s: 5 });
        return document.querySelector('[data-model="talker"] [data-part="rate"]').textContent;
    }""")
    assert shown == "5.0"


def test_a_real_model_answers_in_the_chat(seat: Seat) -> None:
    seat.say("Say hello.", "real")
    expect(seat.role("chat-state")).to_contain_text("tokens/s")
    expect(seat.role("answer")).not_to_be_empty()
    expect(seat.model("real").locator('[data-part="rate"]')).not_to_have_text("–")
    first = seat.role("answer").inner_text()
    seat.say("And again.", "real")
    expect(seat.role("turns")).to_contain_text(first[:20])
    expect(seat.role("answer")).not_to_be_empty()


def test_an_answer_comes_as_it_is_written_and_stop_ends_it(seat: Seat, proxy: Proxy) -> None:
    seat.say("Go on.", "endless")  # a real small model may have ended before the button is pressed
    expect(seat.role("answer")).to_contain_text("word word")
    seat.press("stop")
    expect(seat.role("chat-state")).to_have_text("Stopped.")
    wait_for(lambda: proxy.status()["models"]["endless"]["in_flight"] == 0)


def test_a_new_conversation_starts_from_nothing(seat: Seat, bed: Stack) -> None:
    for text in ("First.", "Second."):
        seat.say(text, "talker")
        expect(seat.role("chat-state")).to_contain_text("talker · ")
    assert [it["content"] for it in bed.seen()["bodies"][-1]["messages"] if it["role"] == "user"] == [
        "First.",
        "Second.",
    ]
    seat.press("clear")
    expect(seat.role("reply")).to_be_hidden()
    expect(seat.role("turns")).to_be_empty()
    expect(seat.page.locator('textarea[name="prompt"]')).to_be_focused()
    seat.say("Third.", "talker")
    expect(seat.role("chat-state")).to_contain_text("talker · ")
    assert [it["content"] for it in bed.seen()["bodies"][-1]["messages"]] == ["Third."]


def test_a_new_conversation_ends_the_answer_that_is_being_written(seat: Seat, proxy: Proxy) -> None:
    seat.say("First.", "holding")
    expect(seat.model("holding").locator('[data-part="running"]')).to_have_text("1")
    seat.press("clear")
    wait_for(lambda: proxy.status()["models"]["holding"]["in_flight"] == 0)
    expect(seat.role("chat-state")).to_be_empty()
    seat.say("Second.", "talker")
    expect(seat.role("answer")).not_to_be_empty()


def test_thoughts_are_shown_and_nothing_is_read_as_html(seat: Seat) -> None:
    seat.say("Hi.", "talker")
    expect(seat.role("answer")).to_have_text("<b>bold</b> & <img src=x onerror=alert(1)>")
    expect(seat.role("answer").locator("*")).to_have_count(0)
    seat.role("thoughts").locator("summary").click()
    expect(seat.role("reasoning")).to_have_text("Let me think.")


def test_a_tool_call_is_shown(seat: Seat, bed: Stack) -> None:
    seat.page.locator('input[name="tool"]').check()
    seat.say("The weather in Rome?", "caller")
    expect(seat.role("calls")).to_have_text('get_weather {"city": "Rome"}')
    assert bed.seen()["bodies"][-1]["tools"][0]["function"]["name"] == "get_weather"


def test_a_waiting_request_is_shown_and_can_be_cancelled(seat: Seat, proxy: Proxy, bed: Stack) -> None:
    with in_background(lambda: proxy.chat("holding")):
        expect(seat.model("holding").locator('[data-part="running"]')).to_have_text("1")
        with in_background(lambda: proxy.chat("talker")) as answers:
            row = seat.role("queue").locator("li")
            expect(row).to_contain_text("talker")
            expect(row).to_contain_text("waits for holding to finish running requests")
            row.locator('[data-action="cancel"]').click()
            expect(row).to_have_count(0)
        bed.release()
    assert answers[0].error["code"] == "request_cancelled"


def test_kept_contexts_are_shown_and_forgotten(seat: Seat, proxy: Proxy) -> None:
    proxy.chat("real", LONG)
    seat.press("unload", "real")
    context = seat.model("real").locator('[data-part="context"]')
    expect(context).to_contain_text("tokens")
    seat.press("forget", "real")
    expect(context).to_have_text("none yet")
    assert proxy.status()["models"]["real"]["contexts"]["kept"] == 0


def test_the_journal_comes_live_and_for_one_model(seat: Seat, proxy: Proxy) -> None:
    proxy.chat("talker")
    expect(seat.role("log")).to_contain_text("request model=talker")
    seat.press("journal", "talker")
    expect(seat.role("log")).to_contain_text("Started")
    expect(seat.role("log")).not_to_contain_text("request model=talker")
    seat.press("unload", "talker")
    expect(seat.role("log")).to_contain_text("Stopped")


def test_llama_servers_own_page_opens_and_talks_to_its_model(seat: Seat, proxy: Proxy) -> None:
    proxy.post("/api/load", {"model": "real"})
    with seat.page.expect_popup() as popup:
        seat.model("real").get_by_role("link").click()
    own = Seat(popup.value, proxy.url)
    box = own.page.get_by_role("textbox").first
    box.fill("Say hello.")
    with own.page.expect_response(f"{proxy.url}/upstream/real/v1/chat/completions") as answer:
        box.press("Enter")
    assert answer.value.headers["content-type"].startswith("text/event-stream")
    assert {it for it in own.asked if it.startswith("http") and "/upstream/real/" not in it} == set()


def test_the_vram_is_shown_or_said_to_be_unknown(seat: Seat) -> None:
    expect(seat.role("vram")).to_have_text(re.compile(r"VRAM (not known|[0-9.]+ of [0-9.]+ GiB.*)"))


def test_a_link_leads_to_the_metrics(seat: Seat) -> None:
    seat.page.get_by_role("link", name="Metrics").click()
    expect(seat.page.get_by_text("llm_switch_model_loaded")).to_be_visible()


def test_the_page_asks_no_other_host(seat: Seat) -> None:
    expect(seat.role("connection")).to_have_text("live")
    assert {it for it in seat.asked if not it.startswith(f"{seat.url}/")} == set()


def test_the_keyboard_alone_loads_a_model(seat: Seat) -> None:
    load = seat.model("talker").locator('[data-action="load"]')
    for _ in range(40):
        seat.page.keyboard.press("Tab")
        if load.evaluate("it => it === document.activeElement"):
            break
    seat.page.keyboard.press("Enter")
    seat.expect_state("talker", "ready")
    assert load.evaluate("it => it === document.activeElement")


def test_a_change_is_announced_politely(seat: Seat, proxy: Proxy) -> None:
    proxy.post("/api/load", {"model": "talker"})
    expect(seat.page.get_by_role("status").filter(has_text="talker: ready")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(seat: Seat, proxy: Proxy, scheme: Any) -> None:
    """On a desk and on a phone."""
    proxy.post("/api/load", {"model": "broken"})
    proxy.chat("talker")
    seat.page.emulate_media(color_scheme=scheme)
    expect(seat.model("broken").locator("pre")).to_be_visible()
    seat.page.evaluate((ROOT / "tests/clients/node_modules/axe-core/axe.min.js").read_text())
    for width in (1360, 390):
        seat.page.set_viewport_size({"width": width, "height": 900})
        found = seat.page.evaluate("axe.run().then(it => it.violations)")
        serious = [it for it in found if it["impact"] in ("serious", "critical")]
        assert [(it["id"], [node["html"][:200] for node in it["nodes"]]) for it in serious] == [], width
    seat.complaints.clear()  # axe itself tries what the page's policy forbids


def test_a_phone_shows_all_of_it_without_scrolling_sideways(seat: Seat, tmp_path: Path) -> None:
    seat.page.set_viewport_size({"width": 360, "height": 740})
    assert seat.page.evaluate("document.documentElement.scrollWidth") == 360
