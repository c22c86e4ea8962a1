"""A hold: the VRAM is kept free for something else, and no client steals it back, until it is released."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from support.stack import Answer, Proxy, Stack, in_background, wait_for
from systemd_llm_switch.quoting import printable
from systemd_llm_switch.switching.hold_file import HoldFile


@pytest.fixture
def pair(stack: Stack) -> dict[str, str]:
    """Two models on one port."""
    return {"a": stack.standin("a"), "b": stack.standin("b")}


@pytest.fixture
def state_home(tmp_path: Path) -> Path:
    """Where the proxies of a test remember a hold."""
    return tmp_path / "state"


def start(stack: Stack, state_home: Path) -> Proxy:
    return stack.start_proxy(env={"STATE_DIRECTORY": str(state_home)})


@pytest.fixture
def proxy(stack: Stack, pair: dict[str, str], state_home: Path) -> Proxy:
    stack.write_config(pair)
    return start(stack, state_home)


def hold(proxy: Proxy, **body: Any) -> Answer:
    return proxy.post("/api/hold", body)


def assert_on_hold(answer: Answer) -> None:
    assert (answer.status, answer.error["code"], answer.error["type"]) == (503, "on_hold", "server_error")
    assert "`llm-switch release` or `POST /api/release`" in answer.error["message"]
    assert 1 <= int(answer.headers["retry-after"]) < 60
    assert "x-should-retry" not in answer.headers


def loaded(stack: Stack, units: dict[str, str]) -> set[str]:
    return {name for name, unit in units.items() if stack.active_state(unit) == "active"}


def listens(stack: Stack) -> bool:
    try:
        return bool(stack.seen())
    except OSError:
        return False


# --- while it lasts ---------------------------------------------------------------------------------


def test_everything_is_unloaded_and_every_request_turned_away_until_it_is_released(
    stack: Stack, proxy: Proxy, pair: dict[str, str]
) -> None:
    """It answers when the VRAM is free. A stream has the same real status: the refusal is quick."""
    proxy.chat("a")
    held = hold(proxy)
    assert loaded(stack, pair) == set()
    assert (held.status, held.json) == (200, {"success": True, "on_hold": True, "minutes": None})
    for model in ("a", "b"):
        assert_on_hold(proxy.chat(model))
        assert_on_hold(proxy.chat(model, stream=True))
    assert_on_hold(proxy.post("/v1/embeddings", {"model": "a", "input": "x"}))
    assert_on_hold(proxy.post("/api/load", {"model": "a"}))
    assert loaded(stack, pair) == set()
    released = proxy.post("/api/release", {})
    assert (released.status, released.json) == (200, {"success": True, "on_hold": False})
    assert proxy.chat("a").text == "hello from a"


def test_what_needs_no_model_answers_meanwhile(proxy: Proxy) -> None:
    assert proxy.status()["on_hold"] is False
    hold(proxy)
    assert proxy.get("/health").json == {"status": "ok"}
    assert [model["status"]["value"] for model in proxy.get("/v1/models").json["data"]] == ["unloaded", "unloaded"]
    status = proxy.status()
    assert (status["on_hold"], status["waiting"]) == (True, 0)
    assert {model["state"] for model in status["models"].values()} == {"stopped"}
    assert proxy.chat("nope").status == 404  # a wrong request is told as such
    proxy.post("/api/release", {})
    assert proxy.status()["on_hold"] is False


def test_it_ends_by_itself_after_its_minutes(stack: Stack, proxy: Proxy, pair: dict[str, str]) -> None:
    """And is forgotten then, also by the next proxy."""
    proxy.chat("a")
    held = hold(proxy, minutes=0.02)
    assert held.json == {"success": True, "on_hold": True, "minutes": 0.02}
    refused = proxy.chat("a")
    assert_on_hold(refused)
    assert int(refused.headers["retry-after"]) <= 2
    wait_for(lambda: not proxy.status()["on_hold"])
    assert proxy.chat("a").text == "hello from a"


def test_the_status_tells_when_it_ends_and_the_journal_that_it_did(proxy: Proxy) -> None:
    """One that was released did not end by itself; one that must be released has no time."""
    assert proxy.status()["hold_until"] is None
    before = time.time()
    hold(proxy, minutes=10)
    assert before + 600 - 0.1 <= proxy.status()["hold_until"] <= time.time() + 600 + 0.1  # it is rounded
    hold(proxy)
    assert (proxy.status()["on_hold"], proxy.status()["hold_until"]) == (True, None)
    proxy.post("/api/release", {})
    hold(proxy, minutes=0.02)
    wait_for(lambda: not proxy.status()["on_hold"])
    assert proxy.status()["hold_until"] is None
    wait_for(lambda: "hold_ended" in proxy.log)
    assert proxy.log.count("hold_ended") == 1


def test_retry_after_stays_under_a_minute_however_long_the_hold(proxy: Proxy) -> None:
    hold(proxy, minutes=600)
    assert_on_hold(proxy.chat("a"))
    assert proxy.chat("a").headers["retry-after"] == "59"


def test_a_second_hold_replaces_the_first(proxy: Proxy) -> None:
    """A longer one, too: who asks for an hour gets it, though a minute was asked for before."""
    hold(proxy, minutes=0.02)
    hold(proxy, minutes=60)
    began = time.monotonic()
    while time.monotonic() - began < 1.5:  # the first one would have ended
        assert_on_hold(proxy.chat("a"))
        time.sleep(0.1)


def test_a_release_without_a_hold_is_no_error(proxy: Proxy) -> None:
    proxy.chat("a")
    assert proxy.post("/api/release", {}).json == {"success": True, "on_hold": False}
    assert proxy.request("POST", "/api/release").status == 200  # with no body at all
    answer = proxy.chat("a")
    assert (answer.text, answer.timing("switch")) == ("hello from a", 0)


# --- what is wrong ----------------------------------------------------------------------------------


WRONG_MINUTES: tuple[object, ...] = (0, -5, "5", True, [], 10**9, 10**400)
WRONG: tuple[tuple[object, str | None], ...] = (
    *(({"minutes": minutes}, "minutes") for minutes in WRONG_MINUTES),
    ({"force": "yes"}, "force"),
    ({"minuts": 30}, "minuts"),
    ({"force": True, "x" * 999: 1}, printable("x" * 999)),
    ({"minutes": 5, "force": 1}, "force"),
    ([], None),
)


def test_a_wrong_hold_is_a_400_and_no_hold(proxy: Proxy, state_home: Path) -> None:
    """Not for the next proxy either."""
    for body, param in WRONG:
        answer = proxy.post("/api/hold", body)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_request", param), body
        assert proxy.status()["on_hold"] is False
        assert HoldFile(state_home).read() is None


def test_a_key_that_it_does_not_know_is_told_with_those_that_it_does(proxy: Proxy) -> None:
    message = hold(proxy, minuts=30).error["message"]
    known = "`minutes` and `force` and `pause` and `wait`"
    assert message == f"'minuts' is not a key of /api/hold; known keys: {known}"


def test_too_many_minutes_are_told_with_the_most_that_may_be(proxy: Proxy) -> None:
    assert "at most 527040" in hold(proxy, minutes=10**9).error["message"]


# --- what runs, loads or waits when it begins -------------------------------------------------------


def test_running_requests_are_drained_first(stack: Stack, proxy: Proxy, pair: dict[str, str]) -> None:
    """The hold answers after them; meanwhile new requests are turned away."""
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"delay_s": 1.5})) as running:
        wait_for(lambda: stack.seen()["running"] == 1)
        with in_background(lambda: hold(proxy)) as held:
            wait_for(lambda: proxy.status()["on_hold"])
            assert_on_hold(proxy.chat("a"))
            assert stack.seen()["running"] == 1
    assert running[0].text == "hello from a"
    assert held[0].status == 200
    assert loaded(stack, pair) == set()


def test_force_does_not_wait_for_them(stack: Stack, proxy: Proxy, pair: dict[str, str]) -> None:
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"hang": True})) as running:
        wait_for(lambda: stack.seen()["running"] == 1)
        assert hold(proxy, force=True).status == 200
        assert loaded(stack, pair) == set()
    assert (running[0].status, running[0].error["code"]) == (503, "model_unloaded")


def test_a_model_that_loads_is_stopped(stack: Stack, proxy: Proxy, pair: dict[str, str]) -> None:
    pair["slow"] = stack.standin("slow", "--load-s", "60")
    stack.write_config(pair)
    wait_for(lambda: "slow" in proxy.status()["models"])  # only one request waits for an edit
    with in_background(lambda: proxy.chat("slow")) as waiting:
        wait_for(lambda: proxy.state("slow") == "starting" and stack.active_state(pair["slow"]) == "active")
        assert hold(proxy).status == 200
        assert loaded(stack, pair) == set()
    assert_on_hold(waiting[0])


def test_waiting_requests_are_turned_away_at_once(stack: Stack, proxy: Proxy) -> None:
    """Also one whose stream has begun: it is told in the stream."""
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"until_released": True})) as running:
        wait_for(lambda: stack.seen()["running"] == 1)
        with in_background(lambda: proxy.chat("b", stream=True)) as streamed:
            wait_for(lambda: proxy.status()["waiting"] == 1)
            time.sleep(2.2)  # beyond the grace: its 200 is sent
            with in_background(lambda: proxy.chat("b")) as waiting:
                wait_for(lambda: proxy.status()["waiting"] == 2)
                with in_background(lambda: hold(proxy)):
                    wait_for(lambda: proxy.status()["waiting"] == 0)
                    assert stack.seen()["running"] == 1
                    stack.release()
    assert_on_hold(waiting[0])
    assert streamed[0].status == 200
    assert streamed[0].events[-1]["error"]["code"] == "on_hold"
    assert running[0].text == "hello from a"


def test_released_while_it_still_drains_it_ends_and_the_model_stays(
    stack: Stack, proxy: Proxy, pair: dict[str, str]
) -> None:
    """Who asked for the hold is answered, too, and told that it is over."""
    proxy.chat("a")
    pid = stack.main_pid(pair["a"])
    with in_background(lambda: proxy.chat("a", standin={"delay_s": 1.5})) as running:
        wait_for(lambda: stack.seen()["running"] == 1)
        with in_background(lambda: hold(proxy)) as held:
            wait_for(lambda: proxy.status()["on_hold"])
            proxy.post("/api/release", {})
            assert proxy.chat("a").text == "hello from a"
    assert running[0].text == "hello from a"
    assert held[0].json["on_hold"] is False
    assert stack.main_pid(pair["a"]) == pid


# --- the person at the shell ------------------------------------------------------------------------


def test_what_was_started_by_hand_before_goes_too(stack: Stack, proxy: Proxy, pair: dict[str, str]) -> None:
    """Ready or not: the proxy need not have known of it."""
    pair["slow"] = stack.standin("slow", "--load-s", "60")
    stack.write_config(pair)
    stack.systemctl("start", pair["slow"])
    assert hold(proxy).status == 200
    assert loaded(stack, pair) == set()
    proxy.post("/api/release", {})
    stack.systemctl("start", pair["b"])
    wait_for(lambda: listens(stack))
    assert hold(proxy).status == 200
    assert loaded(stack, pair) == set()


def test_a_model_started_by_hand_during_a_hold_is_the_persons_own(
    stack: Stack, proxy: Proxy, pair: dict[str, str]
) -> None:
    """It runs on, no client of the proxy gets at it, and after the release it is used as it is."""
    hold(proxy)
    stack.systemctl("start", pair["b"])
    wait_for(lambda: listens(stack))
    pid = stack.main_pid(pair["b"])
    assert_on_hold(proxy.chat("b"))
    assert_on_hold(proxy.chat("a"))
    assert stack.main_pid(pair["b"]) == pid
    proxy.post("/api/release", {})
    assert proxy.chat("b").text == "hello from b"
    assert stack.main_pid(pair["b"]) == pid


def test_unload_frees_a_model_that_still_loads_by_hand(stack: Stack, proxy: Proxy, pair: dict[str, str]) -> None:
    pair["slow"] = stack.standin("slow", "--load-s", "60")
    stack.write_config(pair)
    stack.systemctl("start", pair["slow"])
    assert proxy.post("/api/unload", {}).status == 200
    assert loaded(stack, pair) == set()


def test_an_old_failure_does_not_end_the_wait_for_a_drain(stack: Stack, proxy: Proxy, pair: dict[str, str]) -> None:
    """A model that once failed, was mended and started by hand, is unloaded like any other."""
    stack.standin("a", "--exit", "1")
    assert proxy.chat("a").status == 503
    stack.standin("a")
    stack.systemctl("start", pair["a"])
    wait_for(lambda: listens(stack))
    assert proxy.chat("a").status == 200
    assert proxy.status()["models"]["a"]["last_error"] is None
    with in_background(lambda: proxy.chat("a", standin={"delay_s": 1})) as running:
        wait_for(lambda: stack.seen()["running"] == 1)
        assert hold(proxy).status == 200
    assert running[0].status == 200
    assert loaded(stack, pair) == set()


def test_without_a_user_manager_the_hold_is_in_force_and_the_reason_is_told(
    stack: Stack, pair: dict[str, str], state_home: Path
) -> None:
    """Unload has the same reason; neither is a fault of the proxy's own."""
    stack.write_config(pair)
    proxy = stack.start_proxy(env={"STATE_DIRECTORY": str(state_home), "XDG_RUNTIME_DIR": str(stack.folder)})
    for path in ("/api/unload", "/api/hold"):
        answer = proxy.post(path, {})
        assert answer.status == 503
        assert "systemctl --user" in answer.error["message"]
    assert "on hold" in answer.error["message"]
    assert_on_hold(proxy.chat("a"))
    assert "Traceback" not in proxy.log


# --- the next proxy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "body"), [("stop", {}), ("kill", {"minutes": 60})])
def test_it_survives_the_proxy(
    stack: Stack, proxy: Proxy, state_home: Path, pair: dict[str, str], end: str, body: dict[str, Any]
) -> None:
    """Restarted, or killed with kill -9; and so does its end."""
    proxy.chat("a")
    hold(proxy, **body)
    proxy.stop() if end == "stop" else proxy.kill()
    second = start(stack, state_home)
    assert second.status()["on_hold"] is True
    assert_on_hold(second.chat("a"))
    assert loaded(stack, pair) == set()
    second.post("/api/release", {})
    second.kill()
    third = start(stack, state_home)
    assert third.status()["on_hold"] is False
    assert third.chat("a").text == "hello from a"


def test_its_minutes_go_on_while_no_proxy_runs(stack: Stack, proxy: Proxy, state_home: Path) -> None:
    hold(proxy, minutes=0.03)
    proxy.kill()
    second = start(stack, state_home)
    wait_for(lambda: not second.status()["on_hold"])
    assert second.chat("a").text == "hello from a"


def test_killed_while_it_drains_the_next_proxy_frees_the_rest(
    stack: Stack, proxy: Proxy, state_home: Path, pair: dict[str, str]
) -> None:
    """What the person wanted free becomes free."""
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"hang": True})):
        wait_for(lambda: stack.seen()["running"] == 1)
        with in_background(lambda: hold(proxy)):
            wait_for(lambda: proxy.status()["on_hold"])
            assert loaded(stack, pair) == {"a"}
            proxy.kill()
    second = start(stack, state_home)
    assert_on_hold(second.chat("a"))
    wait_for(lambda: loaded(stack, pair) == set())


def test_a_restart_during_a_hold_leaves_what_was_started_by_hand(
    stack: Stack, proxy: Proxy, state_home: Path, pair: dict[str, str]
) -> None:
    """Once all was freed for it, a hold stops nothing more."""
    hold(proxy)
    stack.systemctl("start", pair["b"])
    wait_for(lambda: listens(stack))
    pid = stack.main_pid(pair["b"])
    proxy.stop()
    second = start(stack, state_home)
    assert_on_hold(second.chat("b"))
    second.stop()
    assert stack.main_pid(pair["b"]) == pid


def test_preload_does_not_break_a_hold(stack: Stack, pair: dict[str, str], state_home: Path) -> None:
    stack.write_config(pair, preload=["a"])
    first = start(stack, state_home)
    wait_for(lambda: first.state("a") == "ready")
    hold(first)
    first.stop()
    second = start(stack, state_home)
    assert second.status()["on_hold"] is True
    assert_on_hold(second.chat("b"))
    second.stop()  # whatever it began is over
    assert loaded(stack, pair) == set()
    assert "preload_failed" not in second.log


def test_a_hold_that_cannot_be_remembered_is_in_force_all_the_same(
    stack: Stack, pair: dict[str, str], tmp_path: Path
) -> None:
    """The VRAM is wanted now; that it would not survive a restart is told in the reply and the journal."""
    (tmp_path / "file").touch()
    stack.write_config(pair)
    proxy = stack.start_proxy(env={"STATE_DIRECTORY": str(tmp_path / "file" / "below")})
    proxy.chat("a")
    held = hold(proxy)
    assert (held.status, held.json["on_hold"]) == (200, True)
    assert "restart" in held.json["warning"]
    assert loaded(stack, pair) == set()
    assert_on_hold(proxy.chat("a"))
    assert "hold_not_saved" in proxy.log
    assert proxy.post("/api/release", {}).status == 200
    assert proxy.chat("a").status == 200


# --- the file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "5", '"x"', "{}", '{"until": "soon"}', '{"until": true}', '{"until": NaN}', '{"until": 5}',
        '{"until": [9e9]}', '{"until": -1e400}', "[" * 100_000, "\xff\xfe",
    ],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_no_hold(tmp_path: Path, text: str) -> None:
    """Whatever it holds, the proxy starts."""
    (tmp_path / "hold.json").write_text(text, encoding="latin-1")
    assert HoldFile(tmp_path).read() is None


def test_a_date_beyond_all_numbers_is_for_ever(tmp_path: Path) -> None:
    for text in ('{"until": 1e400}', '{"until": 1%s}' % ("0" * 400), '{"until": null}'):
        (tmp_path / "hold.json").write_text(text)
        held = HoldFile(tmp_path).read()
        assert held is not None
        assert held.until == float("inf")


def test_the_file_is_in_the_units_state_directory_or_the_users(tmp_path: Path) -> None:
    """systemd may name several; the first one is ours."""
    for environ, folder in (
        ({"STATE_DIRECTORY": f"{tmp_path}/unit:/elsewhere", "XDG_STATE_HOME": "/elsewhere"}, tmp_path / "unit"),
        ({"XDG_STATE_HOME": str(tmp_path / "xdg")}, tmp_path / "xdg/systemd-llm-switch"),
        ({}, Path.home() / ".local/state/systemd-llm-switch"),
    ):
        file = HoldFile.find(environ)
        assert file.path == folder / "hold.json"
    file = HoldFile.find({"STATE_DIRECTORY": f"{tmp_path}/unit"})
    file.write(time.time() + 60)
    assert json.loads((tmp_path / "unit/hold.json").read_text())["until"] > time.time()
    assert [path.name for path in (tmp_path / "unit").iterdir()] == ["hold.json"]  # nothing half-written stays behind


def test_a_fifo_in_the_files_place_holds_nobody_up(tmp_path: Path) -> None:
    """Reading it, and writing what replaces it, would wait for its other end for ever."""
    os.mkfifo(tmp_path / "hold.json")
    os.mkfifo(tmp_path / "hold.new")
    file = HoldFile(tmp_path)
    assert file.read() is None
    file.write(time.time() + 60)
    assert file.read() is not None


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "hold.new").symlink_to(tmp_path / "mine")
    HoldFile(tmp_path).write(time.time() + 60)
    assert (tmp_path / "mine").read_text() == "precious"
    assert not (tmp_path / "hold.json").is_symlink()
