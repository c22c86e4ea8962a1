"""Contexts across real switches: real units, a real llama-server, a real model, the proxy as a process."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contexts.bed import TITLE, conversation, goes_on
from support.stack import Answer, Proxy, Stack, wait_for

WriteUnit = Callable[..., str]


@pytest.fixture
def folder(stack: Stack) -> Path:
    """Where the llama-servers save; as a plain `mkdir` leaves it."""
    folder = stack.folder / "contexts"
    folder.mkdir(mode=0o755)
    return folder


@pytest.fixture
def models(stack: Stack, real_unit: WriteUnit, folder: Path) -> dict[str, Any]:
    """Two models that exclude each other: a has contexts, b is there to be switched to."""
    return {"a": real_unit("a", "--slot-save-path", str(folder)), "b": stack.standin("b")}


def ask(proxy: Proxy, messages: list[dict[str, str]], **fields: Any) -> Answer:
    body = {"model": "a", "messages": messages, "max_tokens": 4, "temperature": 0, **fields}
    reply = proxy.post("/v1/chat/completions", body, timeout_s=300)
    assert reply.status == 200, (reply.body, proxy.log)
    return reply


def cached(reply: Answer) -> int:
    return int(reply.json["timings"]["cache_n"])


def saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ctx"))


def test_a_conversation_survives_a_switch(stack: Stack, models: dict[str, Any], folder: Path) -> None:
    proxy = stack.run(models)
    first = conversation(1)
    more = goes_on(first, ask(proxy, first).text)
    proxy.chat("b")
    assert re.search(r"context_saved model=a slot=\d+ tokens=\d+ bytes=\d+ ms=\d+", proxy.log)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    size = saved(folder)[0].stat().st_size
    kept = {"supported": True, "why": None, "kept": 1, "tokens": saved_tokens(proxy), "bytes": size}
    assert proxy.status()["models"]["a"]["contexts"] == kept
    reply = ask(proxy, more)
    assert cached(reply) > 200
    assert reply.timing("restore") > 0
    assert reply.timing("switch") >= reply.timing("restore")
    assert "context_restored model=a" in proxy.log
    # The observer runs after the answer.
    wait_for(lambda: proxy.status()["contexts"]["tokens_reused"] == cached(reply))
    totals = proxy.status()["contexts"]
    assert set(totals) == {
        "bytes", "limit_bytes", "saves", "restores", "tokens_restored", "tokens_reused", "saved_s",
    }  # fmt: skip
    assert (totals["saves"], totals["restores"], totals["limit_bytes"]) == (1, 1, 8_000_000_000)
    assert totals["saved_s"] > 0


def test_a_short_prompt_is_left_alone_and_the_journal_says_so(stack: Stack, models: dict[str, Any]) -> None:
    proxy = stack.run(models)
    first = ask(proxy, TITLE)
    assert "restore" not in first.headers["server-timing"]  # there was nothing to wait for
    proxy.chat("b")
    assert re.search(r"context_skipped model=a reason='\d+ tokens are too few'", proxy.log)


def saved_tokens(proxy: Proxy) -> int:
    return int(re.findall(r"context_saved model=a slot=\d+ tokens=(\d+)", proxy.log)[-1])


def test_the_answer_after_a_restore_is_that_of_a_model_that_stayed_loaded(stack: Stack, models: dict[str, Any]) -> None:
    proxy = stack.run(models)
    first = conversation(1)
    more = goes_on(first, ask(proxy, first).text)
    stayed = ask(proxy, more, max_tokens=24).text
    proxy.chat("b")
    restored = ask(proxy, more, max_tokens=24)
    assert cached(restored) > 200
    assert restored.text == stayed


def test_a_title_request_before_the_switch_does_not_cost_the_conversation(stack: Stack, models: dict[str, Any]) -> None:
    proxy = stack.run(models)
    first = conversation(1)
    more = goes_on(first, ask(proxy, first).text)
    ask(proxy, TITLE)
    proxy.chat("b")
    assert cached(ask(proxy, more)) > 200


def test_a_live_stream_is_noted_too(stack: Stack, models: dict[str, Any]) -> None:
    proxy = stack.run(models, streaming="live")
    body = {"model": "a", "messages": conversation(1), "max_tokens": 4, "stream": True}
    assert proxy.post("/v1/chat/completions", body, timeout_s=300).status == 200
    proxy.chat("b")
    assert "context_saved model=a" in proxy.log


@pytest.mark.parametrize("way", ["unload", "hold", "ttl"])
def test_every_orderly_end_saves(stack: Stack, models: dict[str, Any], way: str) -> None:
    if way == "ttl":
        models["a"] = {"unit": models["a"], "ttl": 0.5}
    proxy = stack.run(models)
    ask(proxy, conversation(1))
    if way == "unload":
        proxy.post("/api/unload", {"model": "a"})
    elif way == "hold":
        proxy.post("/api/hold", {})
    wait_for(lambda: proxy.state("a") == "stopped")
    assert "context_saved model=a" in proxy.log


def test_a_restarted_proxy_adopts_and_restores(stack: Stack, models: dict[str, Any], folder: Path) -> None:
    proxy = stack.run(models)
    first = conversation(1)
    more = goes_on(first, ask(proxy, first).text)
    proxy.stop()
    proxy = stack.start_proxy()
    wait_for(lambda: "adopted model=a" in proxy.log)
    wait_for(lambda: proxy.status()["models"]["a"]["contexts"]["supported"])
    proxy.chat("b")
    assert len(saved(folder)) == 1
    proxy.stop()
    proxy = stack.start_proxy()
    assert cached(ask(proxy, more)) > 200


def test_forgetting_leaves_no_file(stack: Stack, models: dict[str, Any], folder: Path) -> None:
    proxy = stack.run(models)
    ask(proxy, conversation(1))
    proxy.chat("b")
    size = saved(folder)[0].stat().st_size
    assert proxy.post("/api/contexts/forget", {"model": "b"}).json == {"models": [], "bytes": 0}
    assert proxy.post("/api/contexts/forget", {"model": "a"}).json == {"models": ["a"], "bytes": size}
    assert list(folder.iterdir()) == []


def test_forgetting_an_unknown_model_is_an_error(stack: Stack, models: dict[str, Any]) -> None:
    proxy = stack.run(models)
    assert proxy.post("/api/contexts/forget", {"model": "c"}).status == 404
    assert proxy.post("/api/contexts/forget", {"modle": "a"}).status == 400


def test_without_the_flag_the_status_says_what_to_add(stack: Stack) -> None:
    proxy = stack.run({"b": stack.standin("b")})
    wait_for(lambda: "--slot-save-path" in str(proxy.status()["models"]["b"]["contexts"]["why"]))
    assert proxy.status()["models"]["b"]["contexts"]["supported"] is False


def test_a_read_only_folder_is_named(stack: Stack, real_unit: WriteUnit) -> None:
    proxy = stack.run({"a": real_unit("a", "--slot-save-path", "/proc/self")})
    wait_for(lambda: "/proc/self" in str(proxy.status()["models"]["a"]["contexts"]["why"]))


def test_a_read_only_disk_costs_only_the_context(stack: Stack, models: dict[str, Any], folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m,mode=0700", "tmpfs", str(folder)], check=True)
    try:
        proxy = stack.run(models)
        ask(proxy, conversation(1))
        assert proxy.chat("b").status == 200
        contexts = proxy.status()["models"]["a"]["contexts"]
        assert (contexts["supported"], contexts["kept"]) == (False, 0)
        assert f"the proxy must not write {folder}" in contexts["why"]
        assert "Traceback" not in proxy.log
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_folder_that_the_unit_must_not_write_costs_only_the_context(
    stack: Stack, real_unit: WriteUnit, folder: Path
) -> None:
    """The proxy may write it, so only the save shows that the unit's sandbox forbids it."""
    a = real_unit("a", "--slot-save-path", str(folder), service=f"ReadOnlyPaths={folder}")
    proxy = stack.run({"a": a, "b": stack.standin("b")})
    ask(proxy, conversation(1))
    assert proxy.chat("b").status == 200
    assert re.search(r"context_skipped model=a reason=.*", proxy.log)
    assert list(folder.iterdir()) == []


def test_what_a_killed_proxy_left_is_removed_by_the_next(stack: Stack, models: dict[str, Any], folder: Path) -> None:
    proxy = stack.run(models)
    first = conversation(1)
    more = goes_on(first, ask(proxy, first).text)
    proxy.chat("b")
    proxy.kill()
    part = folder / "llm-switch-0123456789abcdef.part"
    part.write_bytes(b"what a kill leaves")
    proxy = stack.start_proxy()
    wait_for(lambda: not part.exists())
    assert cached(ask(proxy, more)) > 200
