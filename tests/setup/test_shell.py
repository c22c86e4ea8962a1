"""The person at the shell, in any state of a model: the right answer or a clear error, never another model's answer,
never a hang."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.stack import Answer, Proxy, Stack, in_background, run_all, wait_for

# What a request may get when its model is taken away; anything else must be the right answer.
FAIR = {"backend_crashed": 502, "backend_error": 502, "model_start_failed": 503}
STATES = ("loading", "ready", "busy", "draining", "stopping")


class Bed:
    """Two models on one port, one of them in a given state."""

    def __init__(self, stack: Stack, state: str) -> None:
        self.stack = stack
        self.options = {"loading": ["--load-s", "0.5"], "stopping": ["--stop-s", "0.7"]}.get(state, [])
        self.units = {"a": self.write("a"), "b": self.write("b")}
        self.proxy: Proxy = stack.run(self.units, max_wait=0, min_resident=0, health_timeout=10, request_timeout=20)
        self.background: list[Callable[[], Any]] = []

    def write(self, name: str) -> str:
        """A unit; model a loads, or does not stop, for as long as its state must last."""
        return self.stack.standin(name, *(self.options if name == "a" else []))

    def ask(self, model: str, delay_s: float = 0) -> tuple[str, Answer]:
        return model, self.proxy.chat(model, standin={"delay_s": delay_s})

    def requests_of(self, state: str) -> list[Callable[[], Any]]:
        """What must run meanwhile so that model a is in a state."""
        return {
            "loading": [lambda: self.ask("a")],
            "ready": [],
            "busy": [lambda: self.ask("a", 0.6)],
            "draining": [lambda: self.ask("a", 0.6), lambda: self._when("busy", "b")],
            "stopping": [lambda: self.ask("b")],
        }[state]

    def _when(self, state: str, model: str) -> tuple[str, Answer]:
        self.wait_until(state)
        return self.ask(model)

    def wait_until(self, state: str) -> None:
        if state == "busy":
            wait_for(lambda: self.proxy.status()["models"]["a"]["in_flight"] and self.stack.seen()["running"] == 1)
        elif state == "loading":
            wait_for(lambda: self.stack.active_state(self.units["a"]) == "active")
        elif state == "stopping":
            wait_for(lambda: self.stack.active_state(self.units["a"]) == "deactivating")
        else:
            wait_for(lambda: self.proxy.state("a") == state)

    def do(self, action: str) -> None:
        unit = self.units["a"]
        if action == "start the other":
            self.stack.systemctl("start", self.units["b"], check=False)
        elif action == "kill":
            self.stack.systemctl("kill", "--signal=SIGKILL", unit, check=False)
        elif action == "delete":
            self.stack.delete_unit(unit)
        elif action == "daemon-reload":
            self.stack.systemctl("daemon-reload")
        else:
            self.stack.systemctl(action, unit, check=False)


def _check(asked: str, answer: Answer) -> None:
    if answer.status == 200:
        assert answer.json["model"] == asked
        assert answer.text == f"hello from {asked}"
    else:
        assert FAIR.get(answer.error["code"]) == answer.status, answer.body


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("action", ["stop", "start the other", "restart", "kill", "daemon-reload", "delete"])
def test_whatever_a_shell_does_the_right_model_answers_or_an_error_does(stack: Stack, state: str, action: str) -> None:
    """In each state; and once the shell is done, both models are served again."""
    bed = Bed(stack, state)
    if state != "loading":
        bed.ask("a")
    with in_background(*bed.requests_of(state)) as running:
        bed.wait_until(state)
        bed.do(action)
        asked = run_all(lambda: bed.ask("a"), lambda: bed.ask("b"))
    for model, answer in [*running, *asked]:
        _check(model, answer)
        if action == "daemon-reload":
            assert answer.status == 200
    if action == "delete":
        bed.write("a")
    for model in ("a", "b"):
        assert bed.ask(model)[1].text == f"hello from {model}"
    status = bed.proxy.status()
    assert [status["models"][name]["in_flight"] for name in "ab"] == [0, 0]
    assert status["waiting"] == 0
    assert "Traceback" not in bed.proxy.log
