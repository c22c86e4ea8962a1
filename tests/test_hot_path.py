"""What a request for the loaded model costs, counted in what does not depend on the machine's speed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stack import ROOT, Proxy, Stack, chat, run_all, wait_for

REQUESTS = 200
# A hot request was counted to make 18 calls, and some 7 to wake other threads: what a change adds, it must be worth.
MOST_CALLS = 22
MOST_FUTEXES = 20
NEW_PROCESS_OR_THREAD = {"clone", "clone3", "fork", "vfork", "execve", "execveat"}

# Runs in the proxy before anything else: on SIGUSR1 it tells how many blocks of memory are in use.
COUNT_BLOCKS = """
import gc, os, signal, sys

def tell(number, frame):
    gc.collect()
    with open(os.environ["BLOCKS_FILE"], "a") as told:
        told.write(f"{sys.getallocatedblocks()}\\n")

signal.signal(signal.SIGUSR1, tell)
"""


@pytest.fixture
def proxy(stack: Stack, tmp_path: Path) -> Proxy:
    """A proxy whose model is loaded, and that tells its blocks."""
    (tmp_path / "sitecustomize.py").write_text(COUNT_BLOCKS)
    stack.write_config({"a": stack.standin("a")})
    path = f"{ROOT / 'src'}{os.pathsep}{tmp_path}"
    proxy = stack.start_proxy(env={"PYTHONPATH": path, "BLOCKS_FILE": str(tmp_path / "blocks")})
    ask_often(proxy, 20)
    return proxy


def ask_often(proxy: Proxy, count: int) -> None:
    """Requests one after the other, on one connection that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    body = json.dumps(chat("a"))
    with contextlib.closing(connection):
        for _ in range(count):
            connection.request("POST", "/v1/chat/completions", body)
            reply = connection.getresponse()
            text = reply.read()
            assert reply.status == 200, text


@contextlib.contextmanager
def counted_calls(pid: int, told: Path) -> Iterator[dict[str, int]]:
    """The system calls that a process makes meanwhile, all its threads together; filled after the block."""
    calls: dict[str, int] = {}
    errors = told.with_suffix(".err")
    with errors.open("wb") as output:
        strace = subprocess.Popen(["strace", "-f", "-c", "-p", str(pid), "-o", str(told)], stderr=output)
    try:
        wait_for(lambda: "attached" in errors.read_text(), what="strace is attached")
        yield calls
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(30)
    for line in told.read_text().splitlines():
        # % time, seconds, usecs/call, calls, errors (or nothing), name
        if row := re.fullmatch(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)", line):
            calls[row[2]] = int(row[1])
    calls.pop("total", None)


@pytest.fixture
def calls(proxy: Proxy, tmp_path: Path) -> dict[str, int]:
    """What REQUESTS hot requests make."""
    with counted_calls(proxy.process.pid, tmp_path / "strace") as calls:
        ask_often(proxy, REQUESTS)
    assert calls["sendto"] >= REQUESTS, "strace saw the requests"
    return calls


def test_a_hot_request_makes_no_process_and_no_thread(calls: dict[str, int]) -> None:
    assert not NEW_PROCESS_OR_THREAD.intersection(calls)


def test_the_system_calls_of_a_hot_request_are_bounded(calls: dict[str, int]) -> None:
    """Waking the other threads (futex) is told apart: how often depends on how they happen to meet."""
    futexes = calls.pop("futex", 0)
    assert sum(calls.values()) / REQUESTS < MOST_CALLS, calls
    assert futexes / REQUESTS < MOST_FUTEXES


def test_the_connection_to_the_backend_is_kept(proxy: Proxy, stack: Stack) -> None:
    """A thousand requests, one connection at most."""
    before = stack.seen()["connections"]
    ask_often(proxy, 1000)
    asked_about_it = 1  # stack.seen() itself
    assert stack.seen()["connections"] - before <= 1 + asked_about_it


def test_clients_at_once_share_the_backends_connections(proxy: Proxy, stack: Stack) -> None:
    """Eight clients that never pause open eight at most, and none of them gets an error."""
    before = stack.seen()["connections"]
    run_all(*[lambda: ask_often(proxy, 100)] * 8)
    assert stack.seen()["connections"] - before <= 8 + 1


def test_a_hot_request_leaves_no_memory_behind(proxy: Proxy, tmp_path: Path) -> None:
    """Once each thread has served some, two thousand more leave less than a block for every six."""
    blocks = tmp_path / "blocks"
    ask_often(proxy, 1000)
    before = _count_blocks(proxy, blocks)
    ask_often(proxy, 2000)
    assert _count_blocks(proxy, blocks) - before < 2000 / 6


def _count_blocks(proxy: Proxy, told: Path) -> int:
    lines = len(told.read_text().splitlines()) if told.exists() else 0
    proxy.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: told.exists() and len(told.read_text().splitlines()) > lines, what="the proxy tells its blocks")
    return int(told.read_text().splitlines()[-1])
