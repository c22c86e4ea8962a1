"""`contexts.warm`: what all conversations begin with is read before anybody asks."""

from __future__ import annotations

import json
import re
import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contexts.bed import story
from support.stack import Answer, Proxy, Stack, wait_for
from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.config.records import Config, ContextSettings, Model, ServerSettings
from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.contexts.records import Loaded
from systemd_llm_switch.contexts.unit import Command

STANDIN = Path(__file__).with_name("slots_standin.py")


CHAT = "/v1/chat/completions"


def ask(proxy: Proxy, question: str, system: str = story(1), path: str = CHAT) -> Answer:
    """A new conversation, with the same long system prompt each time."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = {"model": "a", "messages": messages, "max_tokens": 4, "temperature": 0}
    reply = proxy.post(path, body, timeout_s=300)
    assert reply.status == 200, (reply.body, proxy.log)
    return reply


def load_again(proxy: Proxy) -> None:
    """An idle process that has read nothing."""
    proxy.post("/api/unload", {})
    assert proxy.post("/api/load", {"model": "a"}).status == 200


def warmed(proxy: Proxy) -> int:
    """How many tokens were read ahead, once that is done."""
    wait_for(lambda: "context_warmed model=a" in proxy.log, 120)
    return int(re.findall(r"context_warmed model=a tokens=(\d+)", proxy.log)[0])


def test_a_new_conversation_finds_its_system_prompt_read(stack: Stack, real_unit: Callable[..., str]) -> None:
    proxy = stack.run({"a": real_unit("a")}, contexts={"warm": True})
    for question in ("What is a river?", "Who built the house?"):
        ask(proxy, question)
    load_again(proxy)
    tokens = warmed(proxy)
    assert tokens > 200
    assert ask(proxy, "When is the letter read?").json["timings"]["cache_n"] >= tokens - 1


class Counted:
    """A model whose backend notes what it is asked; two conversations were had with it."""

    def __init__(self, stack: Stack, *options: str, **contexts: object) -> None:
        self._calls = stack.folder / "calls"
        words = [sys.executable, str(STANDIN), "--port", str(stack.port), "--calls", str(self._calls), *options]
        self.proxy = stack.run({"a": stack.unit("a", shlex.join(words), service="TimeoutStopSec=1")}, contexts=contexts)
        for question in ("What?", "Why?"):
            ask(self.proxy, question)

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()

    @property
    def pieces(self) -> list[str]:
        return [call for call in self.calls if call.startswith("/completion ")]


@pytest.mark.parametrize("path", [CHAT, f"/upstream/a{CHAT}"])
def test_a_request_goes_first(stack: Stack, path: str) -> None:
    """The backend takes longer for each piece than it should, so the whole would take many."""
    bed = Counted(stack, "--piece-s", "0.3", warm=True)
    load_again(bed.proxy)
    wait_for(lambda: bed.pieces)
    ask(bed.proxy, "How?", path=path)
    wait_for(lambda: "tokens were read ahead" in bed.proxy.log)
    assert bed.calls[-1] == CHAT, "a piece was read after the request came"


def test_a_process_that_somebody_asked_is_left_alone(stack: Stack) -> None:
    bed = Counted(stack, warm=True)
    bed.proxy.post("/api/unload", {})
    ask(bed.proxy, "How?")
    wait_for(lambda: "/slots" in bed.calls)
    ask(bed.proxy, "Who?")
    assert set(bed.calls) == {CHAT, "/slots"}


@pytest.mark.parametrize(("settings", "contexts", "is_read"), [
    ({"warm": True}, True, True),
    ({}, True, False),
    ({"warm": True, "max_gb": 0}, True, False),
    ({"warm": True}, False, False),
])  # fmt: skip
def test_nothing_is_read_ahead_unless_asked_for(settings: dict[str, Any], contexts: bool, is_read: bool) -> None:
    """Where nothing is, a thread for it is not even started."""
    model = Model("a", "a.service", "http://127.0.0.1:1", contexts=contexts)
    keeper = Contexts(Config(ServerSettings(contexts=ContextSettings(**settings)), {"a": model}, {"a": model}))
    for question in ("What?", "Why?"):
        said = [{"role": "system", "content": story(1)}, {"role": "user", "content": question}]
        body = {"messages": said}
        keeper.note_chat("a.service", json.dumps(body).encode())
    before = readers()
    keeper.restore(Loaded(model, Backend("http://127.0.0.1:1"), Command(), "start", 1), [])
    assert (readers() > before) is is_read
    keeper.make_way()


def readers() -> int:
    return sum(thread.name == "warm" for thread in threading.enumerate())


def test_what_was_forgotten_is_not_read_ahead(stack: Stack) -> None:
    bed = Counted(stack, warm=True)
    bed.proxy.post("/api/contexts/forget", {})
    shorter = story(2, 150)
    for question in ("What?", "Why?"):
        ask(bed.proxy, question, shorter)
    load_again(bed.proxy)
    assert len(shorter) <= warmed(bed.proxy) < len(story(1))


def test_a_chat_that_failed_is_not_read_ahead(stack: Stack) -> None:
    """The backend may have failed because of it."""
    bed = Counted(stack, warm=True)
    bed.proxy.post("/api/contexts/forget", {})
    failing, shorter = story(1), story(2, 150)
    for question in ("What?", "Why?"):
        messages = [{"role": "system", "content": failing}, {"role": "user", "content": question}]
        assert bed.proxy.post(CHAT, {"model": "a", "messages": messages, "fails": True}).status == 400
        ask(bed.proxy, question, shorter)
    load_again(bed.proxy)
    assert len(shorter) <= warmed(bed.proxy) < len(failing)
