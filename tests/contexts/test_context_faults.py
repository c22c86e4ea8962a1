"""What goes wrong with a save or a restore costs a context, never a switch."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import socket
import sys
from pathlib import Path

import pytest

from contexts.bed import story
from contexts.slots_standin import SIZE
from support.stack import Answer, Proxy, Stack, in_background, wait_for

STANDIN = Path(__file__).with_name("slots_standin.py")


@pytest.fixture
def folder(stack: Stack) -> Path:
    folder = stack.folder / "contexts"
    folder.mkdir(mode=0o700)
    return folder


def unit(stack: Stack, folder: Path, name: str, *options: str) -> str:
    words = [sys.executable, str(STANDIN), "--port", str(stack.port), "--slot-save-path", str(folder), *options]
    return stack.unit(name, shlex.join(words), service="TimeoutStopSec=1")


def ask(proxy: Proxy, model: str, number: int = 1) -> Answer:
    messages = [{"role": "user", "content": story(number, 900)}]
    return proxy.post("/v1/chat/completions", {"model": model, "messages": messages}, timeout_s=120)


def parts(folder: Path) -> list[Path]:
    return list(folder.glob("*.part"))


def test_a_save_that_hangs_delays_the_switch_by_its_bound_only(stack: Stack, folder: Path) -> None:
    proxy = stack.run({"a": unit(stack, folder, "a", "--hang", "save"), "b": stack.standin("b")})
    ask(proxy, "a")
    assert proxy.chat("b").status == 200
    assert "context_skipped model=a reason='POST /slots/0?action=save: no answer in time'" in proxy.log
    wait_for(lambda: not list(folder.iterdir()))


def test_a_backend_killed_in_a_save_delays_nobody(stack: Stack, folder: Path) -> None:
    a = unit(stack, folder, "a", "--hang", "save")
    proxy = stack.run({"a": a, "b": stack.standin("b")})
    ask(proxy, "a")
    pid = stack.main_pid(a)
    with in_background(lambda: proxy.chat("b")) as results:
        wait_for(lambda: parts(folder))
        os.kill(pid, signal.SIGKILL)
    assert results[0].status == 200
    assert list(folder.iterdir()) == []


def test_a_proxy_killed_in_a_save_leaves_no_half_context(stack: Stack, folder: Path) -> None:
    proxy = stack.run({"a": unit(stack, folder, "a", "--hang", "save"), "b": stack.standin("b")})
    ask(proxy, "a")
    with in_background(lambda: _ignore(lambda: proxy.chat("b"))):
        wait_for(lambda: parts(folder))
        left = parts(folder)
        proxy.kill()
    proxy = stack.start_proxy()
    assert proxy.chat("b").status == 200
    assert ask(proxy, "a").status == 200
    assert not any(file.exists() for file in left)


def test_a_restore_that_hangs_delays_the_request_by_its_bound_only(stack: Stack, folder: Path) -> None:
    proxy = stack.run({"a": unit(stack, folder, "a", "--hang", "restore"), "b": stack.standin("b")})
    ask(proxy, "a")
    proxy.chat("b")
    reply = ask(proxy, "a")
    assert reply.status == 200
    assert "context_skipped model=a reason='POST /slots/0?action=restore: no answer in time'" in proxy.log
    assert reply.timing("restore") >= 2000


def test_a_backend_killed_in_a_restore_is_started_again(stack: Stack, folder: Path) -> None:
    a = unit(stack, folder, "a", "--hang", "restore")
    proxy = stack.run({"a": a, "b": stack.standin("b")})
    ask(proxy, "a")
    proxy.chat("b")
    with in_background(lambda: ask(proxy, "a")) as results:
        pid = wait_for(lambda: _hangs(folder) and stack.main_pid(a))
        os.kill(pid, signal.SIGKILL)
    assert results[0].status == 200


def test_a_proxy_killed_in_a_restore_keeps_the_context(stack: Stack, folder: Path) -> None:
    a = unit(stack, folder, "a", "--hang", "restore")
    proxy = stack.run({"a": a, "b": stack.standin("b")})
    ask(proxy, "a")
    proxy.chat("b")
    before = sorted(folder.iterdir())
    with in_background(lambda: _ignore(lambda: ask(proxy, "a"))):
        wait_for(lambda: _hangs(folder))
        proxy.kill()
    proxy = stack.start_proxy()
    wait_for(lambda: proxy.status()["models"]["a"]["contexts"]["kept"] == 1)
    assert sorted(folder.iterdir()) == before


def test_whatever_happens_nothing_is_lost_and_the_limit_holds(stack: Stack, folder: Path) -> None:
    """Random requests, switches, kills, restarts and forgetting, in one order for each seed."""
    chance = random.Random(11)
    limit = 3 * SIZE
    models = {name: unit(stack, folder, name) for name in ("a", "c")} | {"b": stack.standin("b")}
    stack.write_config(models, contexts={"max_gb": limit / 1e9})
    proxy = stack.start_proxy()
    for _ in range(40):
        action = chance.choice(["ask"] * 6 + ["b", "unload", "forget", "kill", "restart"])
        model = chance.choice(["a", "c"])
        if action == "ask":
            assert ask(proxy, model, chance.randrange(6)).status == 200
        elif action == "b":
            assert proxy.chat("b").status == 200
        elif action == "unload":
            assert proxy.post("/api/unload", {}).status == 200
        elif action == "forget":
            assert proxy.post("/api/contexts/forget", {"model": model}).status == 200
            assert proxy.status()["models"][model]["contexts"]["kept"] == 0
        elif action == "kill":
            stack.systemctl("kill", "--signal=SIGKILL", models[model], check=False)
            wait_for(lambda: stack.active_state(models[model]) != "active")  # noqa: B023  (used at once)
        else:
            proxy.kill()
            proxy = stack.start_proxy()
        assert sum(file.stat().st_size for file in folder.glob("*.ctx")) <= limit
    proxy.post("/api/unload", {})
    proxy.post("/api/contexts/forget", {})
    assert list(folder.iterdir()) == []
    assert "Traceback" not in proxy.log


def test_a_client_that_reads_nothing_does_not_cost_the_context(stack: Stack, folder: Path) -> None:
    """The answer is too large for the buffers, so its request does not end; the switch does not wait for that."""
    models = {"a": unit(stack, folder, "a", "--hellos", "3000000"), "b": stack.standin("b")}
    proxy = stack.run(models)
    messages = [{"role": "user", "content": story(1, 900)}]
    body = json.dumps({"model": "a", "messages": messages}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", proxy.port))
        client.sendall(head + body)
        assert client.recv(1)
        assert proxy.chat("b").status == 200
        assert "context_saved model=a" in proxy.log
        assert "request model=a" not in proxy.log


def test_room_is_made_before_a_file_is_written(stack: Stack, folder: Path) -> None:
    """The limit holds during a save, too: what must go for it has gone when the backend begins to write."""
    a = unit(stack, folder, "a", "--hang", "save")
    models = {"a": a, "b": stack.standin("b"), "c": unit(stack, folder, "c")}
    proxy = stack.run(models, contexts={"max_gb": 1.2 * SIZE / 1e9})
    ask(proxy, "c")
    proxy.chat("b")
    assert len(list(folder.glob("*.ctx"))) == 1
    ask(proxy, "a")
    with in_background(lambda: proxy.chat("b")):
        wait_for(lambda: parts(folder))
        assert list(folder.glob("*.ctx")) == []
        stack.kill_main(a)


def test_contexts_can_be_forgotten_under_a_hold_that_an_earlier_proxy_began(stack: Stack, folder: Path) -> None:
    proxy = stack.run({"a": unit(stack, folder, "a"), "b": stack.standin("b")})
    ask(proxy, "a")
    proxy.post("/api/hold", {})
    proxy.stop()
    proxy = stack.start_proxy()
    wait_for(lambda: proxy.status()["models"]["a"]["contexts"]["kept"] == 1)
    assert proxy.post("/api/contexts/forget", {}).json == {"models": ["a"], "bytes": SIZE}
    assert list(folder.iterdir()) == []


def _hangs(folder: Path) -> bool:
    """Whether a backend hangs in a save or a restore."""
    return folder.with_name(f"{folder.name}.hangs").exists()


def _ignore(call: object) -> None:
    with contextlib.suppress(OSError):
        call()  # type: ignore[operator]
