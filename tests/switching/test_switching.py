"""Switching and scheduling over HTTP, on units that run the stand-in backend."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.bus import Between, Fault, Rule
from support.stack import Stack, descriptors_of, free_port, in_background, run_all, wait_for

Bus = Callable[[Rule], dict[str, str]]


@pytest.fixture
def pair(stack: Stack) -> dict[str, str]:
    """Two models on one port."""
    return {"a": stack.standin("a"), "b": stack.standin("b")}


@pytest.fixture
def bus_between(stack: Stack) -> Iterator[Bus]:
    """Makes an environment in which systemd fails as a rule says."""
    with contextlib.ExitStack() as closing:
        yield lambda rule: closing.enter_context(Between(stack.env, rule)).env


def test_several_waiting_requests_share_one_switch(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a", "--load-s", "0.5")})
    answers = run_all(*[lambda: proxy.chat("a") for _ in range(10)])
    assert [answer.status for answer in answers] == [200] * 10
    assert len(proxy.status()["switches"]) == 1


def test_a_switch_asks_systemd_over_one_connection(stack: Stack) -> None:
    """From its look at the unit to the unit's new process; while that loads, nobody stays connected."""
    with Between(stack.env, lambda _words: None) as bus:
        stack.write_config({"a": stack.standin("a"), "b": stack.standin("b", "--load-s", "1")})
        proxy = stack.start_proxy(env=bus.env)
        proxy.chat("a")
        before = bus.connections
        with in_background(lambda: proxy.chat("b")) as answers:
            wait_for(lambda: bus.connections > before)
            wait_for(lambda: not bus.connected)
            assert proxy.state("b") == "starting"
        assert answers[0].text == "hello from b"
        assert bus.connections == before + 1


def test_nothing_is_forwarded_before_the_backend_is_ready(stack: Stack) -> None:
    """Readiness is waited for: the stand-in answers chat at any time, and tells when."""
    proxy = stack.run({"a": stack.standin("a", "--load-s", "1")})
    began = time.monotonic()
    answer = proxy.chat("a")
    assert time.monotonic() - began >= 1
    assert answer.timing("switch") >= 900


def test_thirty_two_requests_run_side_by_side(stack: Stack, pair: dict[str, str]) -> None:
    """The backend has all 32 at once, and the model list answers meanwhile."""
    proxy = stack.run(pair)
    proxy.chat("a")
    calls = [lambda: proxy.chat("a", standin={"until_released": True}) for _ in range(32)]
    with in_background(*calls) as answers:
        wait_for(lambda: stack.seen()["running"] == 32)
        assert proxy.get("/v1/models").status == 200
        assert proxy.get("/health").status == 200
        assert stack.seen()["running"] == 32
        stack.release()
    assert [answer.status for answer in answers] == [200] * 32
    assert stack.seen()["most_running"] == 32


def test_a_model_is_not_stopped_while_a_request_runs_on_it(stack: Stack, pair: dict[str, str]) -> None:
    """The running request ends in peace, then the switch."""
    proxy = stack.run(pair)
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"delay_s": 1.5})) as first:
        wait_for(lambda: stack.seen()["running"] == 1)
        second = proxy.chat("b")
    assert first[0].text == "hello from a"
    assert second.text == "hello from b"
    assert second.timing("queue") > 500


def test_nobody_starves_behind_a_busy_model(stack: Stack, pair: dict[str, str]) -> None:
    """A stream of requests for the loaded model holds another one off for a bounded time only."""
    proxy = stack.run(pair, max_wait=0.5, min_resident=0.5)
    proxy.chat("a")
    stop_at = time.monotonic() + 60
    is_served = threading.Event()

    def keep_busy() -> int:
        served = 0
        while not is_served.is_set() and time.monotonic() < stop_at:
            assert proxy.chat("a", standin={"delay_s": 0.2}).text == "hello from a"
            served += 1
        return served

    with in_background(*[keep_busy] * 4) as busy:
        time.sleep(0.5)
        waited = proxy.chat("b")
        assert time.monotonic() < stop_at, "b was served only after the load on a had ended"
        is_served.set()
    assert waited.text == "hello from b"
    assert all(isinstance(count, int) and count > 0 for count in busy), busy


def test_switching_back_and_forth_beats_the_start_limit(stack: Stack, pair: dict[str, str]) -> None:
    """systemd refuses a sixth start within ten seconds; that limit is for crash loops, not for us."""
    keeper = stack.unit("keeper", "/bin/sleep infinity", service=f"[Unit]\nAfter={pair['a']} {pair['b']}")
    stack.systemctl("start", keeper)  # what nothing refers to, systemd forgets between two starts, its count included
    proxy = stack.run(pair)
    for _ in range(7):
        assert proxy.chat("a").text == "hello from a"
        assert proxy.chat("b").text == "hello from b"


def test_what_was_unloaded_leaves_no_descriptor(stack: Stack) -> None:
    """Neither a switch nor a failed request keeps a process or a connection open after its end."""
    proxy = stack.run({"a": stack.standin("a", "--load-s", "0.1"), "b": stack.standin("b", "--load-s", "0.1")})
    proxy.chat("a")
    proxy.post("/api/unload", {})
    pid = proxy.process.pid
    wait_for(lambda: descriptors_of(pid).get("socket:[]") == 1 and "anon_inode:[pidfd]" not in descriptors_of(pid))
    before = descriptors_of(pid)
    for _ in range(8):
        assert proxy.chat("a").status == 200
        assert proxy.chat("b", standin={"cut": True}).status == 502
        assert proxy.chat("b", standin={"crash": 1}).status == 502
    proxy.chat("b")
    with in_background(*[lambda: proxy.chat("b", standin={"hang": True})] * 3) as interrupted:
        wait_for(lambda: stack.seen()["running"] == 3)
        proxy.post("/api/unload", {"force": True})
    assert [answer.status for answer in interrupted] == [503] * 3
    assert proxy.post("/api/unload", {}).status == 200
    wait_for(lambda: descriptors_of(pid) == before, what=f"{descriptors_of(pid)} instead of {before}")


def test_the_queue_is_bounded(stack: Stack, pair: dict[str, str]) -> None:
    """Beyond queue_limit: 429 at once, with Retry-After under a minute; the others are served."""
    proxy = stack.run(pair, queue_limit=2)
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"delay_s": 3})) as running:
        wait_for(lambda: stack.seen()["running"] == 1)
        with in_background(*[lambda: proxy.chat("b")] * 2) as waiting:
            wait_for(lambda: proxy.status()["waiting"] == 2)
            refused = proxy.chat("b")
    assert refused.status == 429
    assert refused.error["code"] == "queue_full"
    assert 1 <= int(refused.headers["retry-after"]) < 60
    assert [answer.status for answer in [*running, *waiting]] == [200] * 3


def test_an_edit_takes_effect_at_the_next_request(stack: Stack, pair: dict[str, str]) -> None:
    """A model whose line is removed is unknown at once; the running one is not touched."""
    proxy = stack.run(pair)
    proxy.chat("a")
    pid = stack.main_pid(pair["a"])
    stack.write_config({"b": pair["b"], "new": pair["a"]})
    gone = proxy.chat("a")
    assert gone.status == 404
    assert gone.error["code"] == "model_not_found"
    assert proxy.chat("new").text == "hello from a"
    assert stack.main_pid(pair["a"]) == pid
    assert [model["id"] for model in proxy.get("/v1/models").json["data"]] == ["b", "new"]


def test_a_model_gone_from_the_config_still_makes_room(stack: Stack, pair: dict[str, str]) -> None:
    """It stays loaded until its place is needed, and then it is stopped."""
    proxy = stack.run(pair)
    proxy.chat("a")
    stack.write_config({"b": pair["b"]})
    assert proxy.chat("b").text == "hello from b"
    assert stack.active_state(pair["a"]) == "inactive"


def test_a_broken_edit_is_told_and_the_last_good_config_stays(stack: Stack, pair: dict[str, str]) -> None:
    proxy = stack.run(pair)
    good = stack.config_path.read_text()
    stack.config_path.write_text("models: {a: [nonsense")
    assert proxy.chat("a").status == 200
    assert "not valid YAML" in proxy.status()["config"]["error"]
    wait_for(lambda: "config_broken" in proxy.log)
    stack.config_path.write_text(good)
    assert proxy.chat("a").status == 200
    assert proxy.status()["config"]["error"] is None


@pytest.mark.parametrize(("server", "waits"), [({"port": 1}, True), ({"queue_limit": 7}, False)])
def test_another_port_waits_for_a_restart(
    stack: Stack, pair: dict[str, str], server: dict[str, int], waits: bool
) -> None:
    proxy = stack.run(pair)
    stack.write_config(pair, **server)
    assert proxy.chat("a").status == 200
    wait_for(lambda: "request model=a" in proxy.log)
    assert "config_reloaded" in proxy.log
    assert ("config_waits" in proxy.log) is waits


def test_a_time_out_may_be_as_long_as_one_likes(stack: Stack, pair: dict[str, str]) -> None:
    """Longer than poll(2) can wait, too."""
    times = {"health_timeout": 3e6, "request_timeout": 1e300, "drain_timeout": 604_800}
    stack.write_config({model: {"unit": unit, "ttl": 1e300} for model, unit in pair.items()}, **times)
    proxy = stack.start_proxy()
    for model in "aab":
        assert proxy.chat(model).text == f"hello from {model}"
    assert "Traceback" not in proxy.log


def test_a_model_that_was_stopped_is_told_to_be_while_the_next_loads(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a"), "b": stack.standin("b", "--load-s", "1")})
    proxy.chat("a")
    with in_background(lambda: proxy.chat("b")):
        wait_for(lambda: proxy.state("a") == "stopped")
        assert proxy.state("b") == "starting"


def test_a_proxy_killed_in_the_middle_of_a_switch_finds_its_way(stack: Stack, pair: dict[str, str]) -> None:
    """kill -9 while a model loads: the next proxy serves it, and any other."""
    slow = stack.standin("slow", "--load-s", "2")
    first = stack.run({**pair, "slow": slow})
    first.chat("a")
    with in_background(lambda: first.chat("slow")):
        wait_for(lambda: stack.active_state(slow) == "active")
        first.kill()
    second = stack.start_proxy()
    assert second.chat("slow").text == "hello from slow"
    assert second.chat("a").text == "hello from a"
    assert stack.active_state(slow) == "inactive"


def test_two_units_started_by_hand_on_one_port_never_answer_for_each_other(stack: Stack, pair: dict[str, str]) -> None:
    """Whoever answers is the model that was asked for, in any order of shell commands."""
    proxy = stack.run(pair)
    proxy.chat("a")
    stack.systemctl("start", pair["b"])  # it cannot bind the port, and fails
    assert proxy.chat("b").text == "hello from b"
    stack.systemctl("restart", pair["b"])
    assert proxy.chat("b").text == "hello from b"
    stack.systemctl("kill", "--signal=SIGKILL", pair["b"])
    stack.systemctl("start", pair["a"], check=False)
    wait_for(stack.answers)
    assert proxy.chat("b").text == "hello from b"
    assert proxy.chat("a").text == "hello from a"


def test_a_unit_deleted_at_run_time_is_a_clear_error(stack: Stack, pair: dict[str, str]) -> None:
    proxy = stack.run(pair)
    proxy.chat("a")
    stack.delete_unit(pair["b"])
    answer = proxy.chat("b")
    assert answer.status == 503
    assert pair["b"] in answer.error["message"]
    assert proxy.chat("a").text == "hello from a"
    stack.standin("b")
    assert proxy.chat("b").text == "hello from b"


def test_unload_drains_and_force_does_not(stack: Stack, pair: dict[str, str]) -> None:
    proxy = stack.run(pair)
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"delay_s": 1.5})) as drained:
        wait_for(lambda: stack.seen()["running"] == 1)
        assert proxy.post("/api/unload", {"model": "a"}).status == 200
    assert drained[0].text == "hello from a"
    assert stack.active_state(pair["a"]) == "inactive"
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"hang": True})) as forced:
        wait_for(lambda: stack.seen()["running"] == 1)
        assert proxy.post("/api/unload", {"force": True}).status == 200
    assert forced[0].status == 503
    assert forced[0].error["code"] == "model_unloaded"


def test_an_unload_ends_though_a_waiting_request_loads_the_model_again(stack: Stack, pair: dict[str, str]) -> None:
    proxy = stack.run(pair)
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"delay_s": 2})) as running:
        wait_for(lambda: stack.seen()["running"] == 1)
        with in_background(lambda: proxy.post("/api/unload", {"model": "a"}, timeout_s=30)) as unloads:
            wait_for(lambda: proxy.state("a") == "draining")
            waited = proxy.chat("a")
    assert running[0].text == waited.text == "hello from a"
    assert unloads[0].status == 200
    assert len(proxy.status()["switches"]) == 3


def test_an_unload_ends_though_a_waiting_request_loads_another_model(stack: Stack, pair: dict[str, str]) -> None:
    """It was not loaded when the unload came, and it stays."""
    proxy = stack.run(pair)
    proxy.chat("a")
    with in_background(lambda: proxy.chat("a", standin={"delay_s": 1})) as running:
        wait_for(lambda: stack.seen()["running"] == 1)
        with in_background(lambda: proxy.chat("b")) as waiting:
            wait_for(lambda: proxy.status()["waiting"] == 1)
            assert proxy.post("/api/unload", {}, timeout_s=30).status == 200
    assert (running[0].text, waiting[0].text) == ("hello from a", "hello from b")
    assert proxy.state("b") == "ready"


def test_an_unload_that_lets_another_model_load_at_once_does_not_wait_for_it(
    stack: Stack, pair: dict[str, str]
) -> None:
    proxy = stack.run(pair, min_resident=60)
    proxy.chat("a")
    with in_background(lambda: proxy.chat("b")) as waiting:
        wait_for(lambda: proxy.status()["waiting"] == 1)
        assert proxy.post("/api/unload", {}, timeout_s=30).status == 200
    assert waiting[0].text == "hello from b"
    assert proxy.state("b") == "ready"


def test_unload_frees_what_was_started_by_hand(stack: Stack, pair: dict[str, str]) -> None:
    proxy = stack.run(pair)
    stack.systemctl("start", pair["b"])
    wait_for(stack.answers)
    assert proxy.post("/api/unload", {}).status == 200
    assert stack.active_state(pair["b"]) == "inactive"


def test_unload_frees_what_still_loads(stack: Stack) -> None:
    """Started by hand, or by a proxy that was killed meanwhile: nobody knows yet that it is there."""
    slow = stack.standin("slow", "--load-s", "60")
    proxy = stack.run({"slow": slow})
    stack.systemctl("start", slow)
    assert proxy.post("/api/unload", {"model": "slow"}).status == 200
    assert stack.active_state(slow) == "inactive"


def test_unload_leaves_what_is_not_named(stack: Stack, pair: dict[str, str]) -> None:
    proxy = stack.run(pair)
    stack.systemctl("start", pair["b"])
    assert proxy.post("/api/unload", {"model": "a"}).status == 200
    assert stack.active_state(pair["b"]) == "active"
    assert proxy.chat("b").text == "hello from b"


def test_a_hold_frees_all_and_turns_requests_away_until_release(stack: Stack, pair: dict[str, str]) -> None:
    """What loads by hand goes, too; a request that runs ends in peace, and one that waits is told."""
    slow = stack.standin("slow", "--load-s", "60", port=free_port())
    proxy = stack.run({**pair, "slow": slow})
    proxy.chat("a")
    stack.systemctl("start", slow)
    with in_background(lambda: proxy.chat("a", standin={"delay_s": 1})) as running:
        wait_for(lambda: stack.seen()["running"] == 1)
        assert proxy.post("/api/hold", {}).status == 200
        assert [stack.active_state(unit) for unit in (pair["a"], slow)] == ["inactive"] * 2
    assert running[0].text == "hello from a"
    refused = proxy.chat("a")
    assert (refused.status, refused.error["code"]) == (503, "on_hold")
    assert 1 <= int(refused.headers["retry-after"]) < 60
    assert proxy.status()["on_hold"] is True
    assert proxy.post("/api/release", {}).status == 200
    assert proxy.chat("a").text == "hello from a"


def test_a_hold_survives_a_kill_and_still_frees_the_memory(stack: Stack, pair: dict[str, str]) -> None:
    """The proxy died before it had stopped the model: the next one does, and turns requests away."""
    first = stack.run(pair)
    first.chat("a")
    with in_background(lambda: first.chat("a", standin={"hang": True})):
        wait_for(lambda: stack.seen()["running"] == 1)
        with in_background(lambda: first.post("/api/hold", {"minutes": 9})):
            wait_for(lambda: first.status()["on_hold"])
            first.kill()
    assert stack.active_state(pair["a"]) == "active"
    second = stack.start_proxy()
    wait_for(lambda: stack.active_state(pair["a"]) == "inactive")
    assert second.chat("a").error["code"] == "on_hold"
    second.kill()
    third = stack.start_proxy()
    assert third.chat("a").error["code"] == "on_hold"
    assert third.post("/api/release", {}).status == 200
    assert third.chat("a").text == "hello from a"


def test_an_unload_that_waits_is_told_that_the_proxy_stops(stack: Stack, pair: dict[str, str]) -> None:
    proxy = stack.run(pair)
    proxy.chat("a")
    with in_background(
        lambda: proxy.chat("a", standin={"delay_s": 2}), lambda: proxy.post("/api/unload", {"model": "a"})
    ) as answers:
        wait_for(lambda: proxy.state("a") == "draining")
        proxy.process.send_signal(signal.SIGTERM)
    assert answers[0].status == 200
    assert (answers[1].status, answers[1].error["code"]) == (503, "shutting_down")


def test_a_unit_started_by_hand_does_not_pass_for_the_one_that_is_about_to_listen(stack: Stack) -> None:
    """The other model takes the port while ours is still starting: its answers are not ours."""
    late, other = stack.standin("late", "--bind-s", "1.5"), stack.standin("other")
    proxy = stack.run({"late": late, "other": other})
    with in_background(lambda: proxy.chat("late")) as answers:
        wait_for(lambda: stack.active_state(late) == "active")
        stack.systemctl("start", other)
        wait_for(stack.answers)
    assert answers[0].status == 503
    assert answers[0].error["code"] == "model_start_failed"
    assert "Address already in use" in answers[0].error["message"]
    assert proxy.chat("late").text == "hello from late"


def test_the_status_knows_what_was_started_by_hand_before_a_request_asks(stack: Stack) -> None:
    """Also what was still loading when the proxy started; and what was stopped by hand."""
    slow, other = stack.standin("slow", "--load-s", "600"), stack.standin("other")
    stack.systemctl("start", slow)
    proxy = stack.run({"slow": slow, "other": other})
    assert proxy.state("slow") == "stopped"  # it is not ready
    wait_for(stack.answers)
    stack.release()
    wait_for(lambda: proxy.state("slow") == "ready")
    stack.systemctl("stop", slow)
    stack.systemctl("start", other)
    wait_for(stack.answers)
    time.sleep(0.3)  # beyond the pause between two looks
    assert {name: it["state"] for name, it in proxy.status()["models"].items()} == {"slow": "stopped", "other": "ready"}
    assert [it["status"]["value"] for it in proxy.get("/v1/models").json["data"]] == ["unloaded", "loaded"]
    answer = proxy.chat("other")
    assert (answer.text, answer.timing("switch")) == ("hello from other", 0)


def test_to_ask_for_the_status_never_stops_a_model(stack: Stack) -> None:
    """Two that do not fit together: the one that was started by hand is left to the next switch."""
    port = free_port()
    byhand = stack.standin("byhand", port=port)
    long_form = {"unit": byhand, "llama_url": f"http://127.0.0.1:{port}"}
    proxy = stack.run({"a": stack.standin("a"), "byhand": long_form})
    proxy.chat("a")
    stack.systemctl("start", byhand)
    wait_for(lambda: stack.answers(port))
    for _ in range(3):
        assert (proxy.state("a"), proxy.state("byhand")) == ("ready", "stopped")
        time.sleep(0.3)  # beyond the pause between two looks
    assert stack.active_state(byhand) == "active"
    assert [switch["to"] for switch in proxy.status()["switches"]] == ["a"]


def test_a_model_started_by_hand_while_the_other_one_stops_is_used(stack: Stack) -> None:
    """It was not there when the switch began, and is no stranger on the port."""
    slow, other = stack.standin("slow", "--stop-s", "1.5"), stack.standin("other")
    proxy = stack.run({"slow": slow, "other": other})
    proxy.chat("slow")
    with in_background(lambda: proxy.chat("other")) as answers:
        wait_for(lambda: stack.active_state(slow) == "deactivating" and not stack.answers())
        stack.systemctl("start", other)
        pid = stack.main_pid(other)
    assert answers[0].text == "hello from other"
    assert stack.main_pid(other) == pid


def test_a_model_that_ends_while_a_start_is_refused_is_served_again(
    stack: Stack, tmp_path: Path, bus_between: Bus
) -> None:
    """Its loss is seen while a switch away from it is considered; the switch comes to nothing."""
    slow = tmp_path / "slow"
    unit = stack.standin("a")
    stack.write_config({"a": unit, "lost": "no-such-unit.service"})

    def be_slow(words: str) -> None:
        while "no_2dsuch" in words and slow.exists():
            time.sleep(0.05)

    proxy = stack.start_proxy(env=bus_between(be_slow))
    assert proxy.chat("a").status == 200
    slow.touch()
    with in_background(lambda: proxy.chat("lost"), lambda: _after(1, lambda: proxy.chat("a"))) as answers:
        wait_for(lambda: proxy.state("lost") == "starting")
        os.kill(stack.main_pid(unit), signal.SIGKILL)
        wait_for(lambda: stack.active_state(unit) == "failed")
        proxy.status()
        time.sleep(1.5)
        slow.unlink()
    assert answers[0].error["code"] == "model_start_failed"
    assert answers[1].text == "hello from a"
    assert "Traceback" not in proxy.log


def test_nothing_is_started_beside_what_did_not_stop(
    stack: Stack, pair: dict[str, str], tmp_path: Path, bus_between: Bus
) -> None:
    """systemd said yes and the unit still runs: it keeps its place, serves nobody, and is stopped again later."""
    deaf = tmp_path / "deaf"
    stack.write_config(pair)
    proxy = stack.start_proxy(env=bus_between(_while_there(deaf, "StopUnit", Fault.PRETEND)))
    assert proxy.chat("a").status == 200
    deaf.touch()
    answer = proxy.chat("b")
    assert (answer.status, answer.error["code"]) == (503, "model_start_failed")
    assert f"unit {pair['a']} did not stop" in answer.error["message"]
    assert stack.active_state(pair["b"]) == "inactive"
    assert proxy.state("a") == "stopping"
    deaf.unlink()
    assert proxy.chat("b").text == "hello from b"
    assert stack.active_state(pair["a"]) == "inactive"


def test_a_stop_that_systemd_refuses_is_no_stop(stack: Stack, pair: dict[str, str]) -> None:
    """The operator is told so, the model keeps its place, nothing is started beside it; once it can be stopped, all
    goes on."""
    proxy = stack.run(pair)
    assert proxy.chat("a").status == 200
    pid = stack.main_pid(pair["a"])
    stack.standin("a", service="[Unit]\nRefuseManualStop=yes")
    for path in ("/api/unload", "/api/hold"):
        answer = proxy.post(path, {})
        assert answer.status == 503
        assert f"unit {pair['a']} did not stop (active/running)" in answer.error["message"]
        assert "Operation refused" in answer.error["message"]
        assert (proxy.state("a"), stack.main_pid(pair["a"])) == ("stopping", pid)
    proxy.post("/api/release", {})
    answer = proxy.chat("b")
    assert (answer.status, answer.error["code"]) == (503, "model_start_failed")
    assert "Operation refused" in answer.error["message"]
    assert stack.active_state(pair["b"]) == "inactive"
    stack.standin("a")
    assert proxy.chat("b").text == "hello from b"
    assert stack.active_state(pair["a"]) == "inactive"
    assert proxy.chat("a").text == "hello from a"
    assert proxy.post("/api/unload", {}).status == 200


def test_a_stop_that_fails_though_the_unit_ended_is_one(stack: Stack, pair: dict[str, str], bus_between: Bus) -> None:
    """What counts is the unit's state."""
    stack.write_config(pair)
    proxy = stack.start_proxy(env=bus_between(lambda words: Fault.FAIL_LATER if "StopUnit" in words else None))
    for model in "aba":
        assert proxy.chat(model).text == f"hello from {model}"
    assert proxy.post("/api/unload", {}).status == 200


def test_a_stop_that_nobody_can_confirm_is_none(
    stack: Stack, pair: dict[str, str], tmp_path: Path, bus_between: Bus
) -> None:
    """The stop fails, and then systemd cannot even be asked: all that was to stop counts as loaded."""
    dead = tmp_path / "dead"
    stack.write_config(pair)
    is_gone = threading.Event()

    def die(words: str) -> Fault | None:
        if "StopUnit" in words and dead.exists():
            is_gone.set()
        return Fault.HANG_UP if is_gone.is_set() else None

    proxy = stack.start_proxy(env=bus_between(die))
    assert proxy.chat("a").status == 200
    dead.touch()
    answer = proxy.chat("b")
    assert (answer.status, answer.error["code"]) == (503, "model_start_failed")
    assert f"unit {pair['a']} did not stop" in answer.error["message"]
    assert proxy.state("a") == "stopping"
    assert stack.active_state(pair["a"]) == "active"
    dead.unlink()
    is_gone.clear()
    assert proxy.chat("b").text == "hello from b"


def test_a_switch_before_which_systemd_cannot_be_asked_touches_nothing(
    stack: Stack, pair: dict[str, str], tmp_path: Path, bus_between: Bus
) -> None:
    """The request is told why, and the loaded model goes on."""
    dead = tmp_path / "dead"
    stack.write_config(pair)
    proxy = stack.start_proxy(env=bus_between(_while_there(dead, "", Fault.REFUSE)))
    assert proxy.chat("a").status == 200
    pid = stack.main_pid(pair["a"])
    dead.touch()
    answer = proxy.chat("b")
    assert (answer.status, answer.error["code"]) == (503, "model_start_failed")
    assert "bus is gone" in answer.error["message"]
    assert proxy.state("a") == "ready"
    assert proxy.status()["models"]["a"]["last_error"] is None
    assert proxy.chat("a").text == "hello from a"
    assert stack.main_pid(pair["a"]) == pid
    dead.unlink()
    assert proxy.chat("b").text == "hello from b"


def test_a_model_started_by_hand_serves_nobody_before_it_was_started_anew(
    stack: Stack, pair: dict[str, str], tmp_path: Path, bus_between: Bus
) -> None:
    """A stop of it fails, and then a switch that comes to nothing: neither makes it one that is known to serve."""
    refused = tmp_path / "refused"
    stack.write_config({**pair, "lost": "no-such-unit.service"})
    proxy = stack.start_proxy(env=bus_between(_while_there(refused, "StopUnit", Fault.REFUSE)))
    stack.systemctl("start", pair["a"])
    wait_for(stack.answers)
    pid = stack.main_pid(pair["a"])
    refused.touch()
    assert proxy.post("/api/unload", {"model": "a"}).status == 503
    assert proxy.chat("lost").error["code"] == "model_start_failed"
    assert proxy.state("a") == "stopping"
    refused.unlink()
    assert proxy.chat("a").text == "hello from a"
    assert stack.main_pid(pair["a"]) != pid
    assert "Traceback" not in proxy.log


def test_idle_connections_to_a_backend_go_when_they_are_old(stack: Stack, pair: dict[str, str]) -> None:
    """After a burst one connection serves the few requests that follow; the others do not stay."""
    proxy = stack.run(pair)
    proxy.chat("a")
    run_all(*[lambda: proxy.chat("a", standin={"delay_s": 0.5})] * 12)

    def sockets() -> int:
        return descriptors_of(proxy.process.pid)["socket:[]"]

    assert sockets() > 10
    wait_for(lambda: proxy.chat("a").status == 200 and sockets() < 5)


def test_the_proxy_may_have_as_many_descriptors_as_it_needs(stack: Stack) -> None:
    """Hundreds of clients and as many connections to backends do not fit into the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        proxy = stack.run({"m": "m.service"})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limits = Path(f"/proc/{proxy.process.pid}/limits").read_text()
    allowed = next(line.split()[3] for line in limits.splitlines() if line.startswith("Max open files"))
    assert int(allowed) >= min(1300, hard)


def test_a_stopping_proxy_finishes_what_runs_and_tells_who_waits(stack: Stack, pair: dict[str, str]) -> None:
    """SIGTERM: running requests end, waiting ones get a 503 to retry, models stay, exit code 0."""
    proxy = stack.run(pair)
    proxy.chat("a")
    running = lambda: proxy.chat("a", standin={"delay_s": 2})  # noqa: E731
    with in_background(running, lambda: _after(0.5, lambda: proxy.chat("b"))) as answers:
        wait_for(lambda: proxy.status()["waiting"] == 1)
        proxy.process.send_signal(signal.SIGTERM)
    assert answers[0].text == "hello from a"
    assert answers[1].status == 503
    assert answers[1].error["code"] == "shutting_down"
    assert "retry-after" in answers[1].headers
    assert proxy.process.wait(30) == 0
    assert stack.active_state(pair["a"]) == "active"


def test_a_port_that_is_taken_is_told(stack: Stack, pair: dict[str, str]) -> None:
    first = stack.run(pair)
    second = stack.start_proxy("--port", str(first.port), wait=False)
    assert second.process.wait(20) == 1
    assert f"port {first.port} is taken" in second.log


def test_models_tell_whether_they_are_loaded(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a"), "slow": stack.standin("slow", "--load-s", "1.5")})
    proxy.chat("a")
    assert _values(proxy) == {"a": "loaded", "slow": "unloaded"}
    with in_background(lambda: proxy.chat("slow")):
        wait_for(lambda: _values(proxy)["slow"] == "loading")
    assert _values(proxy) == {"a": "unloaded", "slow": "loaded"}


def test_a_daemon_reload_disturbs_nothing(stack: Stack, pair: dict[str, str]) -> None:
    proxy = stack.run(pair)
    with in_background(lambda: proxy.chat("a", standin={"delay_s": 1})) as answers:
        stack.systemctl("daemon-reload")
    assert answers[0].status == 200
    assert proxy.chat("a").text == "hello from a"


def test_sigkill_of_the_backend_between_requests_costs_one_load(stack: Stack, pair: dict[str, str]) -> None:
    proxy = stack.run(pair)
    proxy.chat("a")
    stack.kill_main(pair["a"])
    assert proxy.chat("a").text == "hello from a"
    assert len(proxy.status()["switches"]) == 2


def _while_there(mark: Path, word: str, fault: Fault) -> Rule:
    """The fault for calls with that word in them, as long as a file exists."""
    return lambda words: fault if word in words and mark.exists() else None


def _after(seconds: float, call: object) -> object:
    time.sleep(seconds)
    return call()  # type: ignore[operator]


def _values(proxy: object) -> dict[str, str]:
    return {model["id"]: model["status"]["value"] for model in proxy.get("/v1/models").json["data"]}  # type: ignore[attr-defined]
