"""A start has one deadline and can be aborted at any point, whatever the backend or its unit does."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from support.stack import Answer, Proxy, Stack, in_background, wait_for

ODD_HEALTH = Path(__file__).parents[1] / "support" / "odd_health.py"
SLOW_TO_START = "ExecStartPre=/bin/sleep 60"
NEVER_STARTED = "Type=notify\nTimeoutStartSec=90"


def odd(stack: Stack, kind: str) -> str:
    """A unit whose backend's `/health` is odd."""
    return stack.unit(kind, shlex.join([sys.executable, str(ODD_HEALTH), str(stack.port), kind]))


def load(proxy: Proxy) -> Answer:
    return proxy.post("/api/load", {"model": "m"})


def memory_peak_mib(pid: int) -> float:
    line = next(it for it in Path(f"/proc/{pid}/status").read_text().splitlines() if it.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("drip", "something accepted the connection and did not answer at http"),
        ("mute", "something accepted the connection and did not answer at http"),
        ("hang-up", "something accepted the connection and closed it without an answer in HTTP at http"),
        ("bomb", "it was still loading at http"),
        ("bomb-302", "it answered /health with 302 instead of 200 at http"),
        ("redirect", "it answered /health with 302 instead of 200 at http"),
        ("odd", "it answered /health with 404 instead of 200 at http"),
    ],
)
def test_a_backend_that_never_gets_ready_ends_at_the_deadline(stack: Stack, kind: str, words: str) -> None:
    """The error says what was seen instead, and the unit is stopped again."""
    unit = odd(stack, kind)
    proxy = stack.run({"m": unit}, health_timeout=5)
    answer = proxy.chat("m")
    assert (answer.status, answer.error["code"]) == (504, "model_start_timeout")
    assert words in answer.error["message"]
    assert answer.error["message"].endswith("was stopped again. See `llm-switch logs m`.")
    assert stack.active_state(unit) != "active"


@pytest.mark.parametrize("kind", ["bomb", "bomb-302", "body"])
def test_of_a_health_body_nothing_is_kept(stack: Stack, kind: str) -> None:
    """Neither of a compressed one nor of one without an end, nor of a redirect's."""
    proxy = stack.run({"m": odd(stack, kind)}, health_timeout=5)
    before = memory_peak_mib(proxy.process.pid)
    load(proxy)
    assert memory_peak_mib(proxy.process.pid) < before + 64


def test_a_backend_that_is_ready_before_its_body_ends_is_used(stack: Stack) -> None:
    """The status counts, and nothing behind it."""
    proxy = stack.run({"m": odd(stack, "body")})
    assert load(proxy).status == 200
    assert proxy.state("m") == "ready"


@pytest.mark.parametrize("service", [SLOW_TO_START, NEVER_STARTED])
def test_a_start_job_that_does_not_end_ends_at_the_deadline(stack: Stack, service: str) -> None:
    unit = stack.unit("m", "/bin/sleep infinity", service=service)
    proxy = stack.run({"m": unit}, health_timeout=2)
    answer = proxy.chat("m")
    assert (answer.status, answer.error["code"]) == (504, "model_start_timeout")
    assert f"unit {unit} was still activating/start" in answer.error["message"]
    assert stack.active_state(unit) in ("inactive", "failed")


@pytest.mark.parametrize("service", [SLOW_TO_START, NEVER_STARTED])
def test_a_start_is_aborted_while_its_job_runs(stack: Stack, service: str) -> None:
    """By a forced unload: long before the job would end."""
    unit = stack.unit("m", "/bin/sleep infinity", service=service)
    proxy = stack.run({"m": unit}, health_timeout=600)
    with in_background(lambda: load(proxy)) as loads:
        wait_for(lambda: stack.active_state(unit) == "activating")
        with in_background(lambda: proxy.post("/api/hold", {"force": True})) as holds:
            wait_for(lambda: stack.active_state(unit) in ("inactive", "failed"), 30)
    assert holds[0].status == 200
    assert loads[0].error["code"] == "on_hold"
    assert "nobody waits for it any more" in [switch["error"] for switch in proxy.status()["switches"]]


@pytest.mark.parametrize("kind", ["drip", "mute"])
def test_a_start_is_aborted_while_its_health_drips(stack: Stack, kind: str) -> None:
    unit = odd(stack, kind)
    proxy = stack.run({"m": unit}, health_timeout=600)
    with in_background(lambda: load(proxy)) as loads:
        wait_for(lambda: stack.active_state(unit) == "active")
        with in_background(lambda: proxy.post("/api/hold", {"force": True})) as holds:
            wait_for(lambda: stack.active_state(unit) in ("inactive", "failed"), 30)
    assert holds[0].status == 200
    assert loads[0].error["code"] == "on_hold"


def test_a_start_is_aborted_before_its_job_begins(stack: Stack) -> None:
    """While the port of the one before is not silent yet; no process of the target is ever made."""
    stranger = stack.standin("stranger")
    stack.systemctl("start", stranger)
    unit = stack.standin("m")
    proxy = stack.run({"m": unit})
    wait_for(stack.answers)
    with in_background(lambda: load(proxy)) as loads:
        wait_for(lambda: proxy.state("m") == "starting")
        assert proxy.post("/api/hold", {"force": True}).status == 200
    assert loads[0].error["code"] == "on_hold"
    assert "nobody waits for it any more" in [switch["error"] for switch in proxy.status()["switches"]]
    assert stack.systemctl("show", "-p", "ExecMainPID", "--value", unit).strip() == "0"
