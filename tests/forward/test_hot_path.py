"""What a request for the loaded model costs, counted in what does not depend on the machine's speed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stack import ROOT, Proxy, Stack, chat, run_all, wait_for

REQUESTS = 200
# A hot request was counted to make 9 calls, to wake a thread in two cases of a hundred, and to hold 110 to 175 KB at
# its most, of which 128 are two buffers: what a change adds, it must be worth.
MOST_CALLS = 12
MOST_FUTEXES = 2
MOST_BYTES = 250_000
NEW_PROCESS_OR_THREAD = {"clone", "clone3", "fork", "vfork", "execve", "execveat"}

# Runs in the proxy before anything else: on SIGUSR1 it tells how many blocks of memory are in use, how many bytes more
# than now were at the most since it was last asked, and Python's switch interval.
TELL_MEMORY = """
import gc, os, signal, sys, tracemalloc

if os.environ.get("TRACE_MEMORY"):
    tracemalloc.start()

def tell(number, frame):
    gc.collect()
    now, peak = tracemalloc.get_traced_memory()
    with open(os.environ["MEMORY_FILE"], "a") as told:
        told.write(f"{sys.getallocatedblocks()} {peak - now} {sys.getswitchinterval()}\\n")
    tracemalloc.reset_peak()

signal.signal(signal.SIGUSR1, tell)
"""


@pytest.fixture
def proxy(stack: Stack, tmp_path: Path) -> Proxy:
    return start(stack, tmp_path)


def start(stack: Stack, tmp_path: Path, **env: str) -> Proxy:
    """A proxy whose model is loaded, and that tells its memory."""
    (tmp_path / "sitecustomize.py").write_text(TELL_MEMORY)
    stack.write_config({"a": stack.standin("a")})
    path = f"{ROOT / 'src'}{os.pathsep}{tmp_path}"
    proxy = stack.start_proxy(env={"PYTHONPATH": path, "MEMORY_FILE": str(tmp_path / "memory"), **env})
    ask_often(proxy, 20)
    return proxy


def ask_often(proxy: Proxy, count: int, pause_s: float = 0) -> None:
    """Requests one after the other, on one connection that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    body = json.dumps(chat("a"))
    with contextlib.closing(connection):
        for _ in range(count):
            connection.request("POST", "/v1/chat/completions", body)
            reply = connection.getresponse()
            text = reply.read()
            assert reply.status == 200, text
            time.sleep(pause_s)


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
    assert calls["sendmsg"] >= REQUESTS, "strace saw the requests"
    return calls


def test_a_hot_request_makes_no_process_and_no_thread(calls: dict[str, int]) -> None:
    assert not NEW_PROCESS_OR_THREAD.intersection(calls)


def test_the_system_calls_of_a_hot_request_are_bounded(calls: dict[str, int]) -> None:
    """Waking the other threads (futex) is told apart: how often depends on how they happen to meet."""
    futexes = calls.pop("futex", 0)
    assert sum(calls.values()) / REQUESTS < MOST_CALLS, calls
    assert futexes / REQUESTS < MOST_FUTEXES


def test_a_client_that_pauses_for_a_moment_keeps_its_thread(proxy: Proxy, tmp_path: Path) -> None:
    """Neither the selector nor another thread is woken for its next request."""
    with counted_calls(proxy.process.pid, tmp_path / "strace") as calls:
        ask_often(proxy, 50, pause_s=0.02)
    assert calls["sendmsg"] >= 50
    assert calls.get("epoll_ctl", 0) < 10, calls
    assert calls.get("futex", 0) < 25, calls


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
    ask_often(proxy, 1000)
    before, *_ = _memory(proxy, tmp_path)
    ask_often(proxy, 2000)
    after, *_ = _memory(proxy, tmp_path)
    assert after - before < 2000 / 6


def test_what_a_hot_request_holds_at_its_most_is_bounded(stack: Stack, tmp_path: Path) -> None:
    """In bytes of Python's memory; a reply of 1 KB is parsed, judged and sent meanwhile."""
    proxy = start(stack, tmp_path, TRACE_MEMORY="yes")
    ask_often(proxy, 100)
    _memory(proxy, tmp_path)
    ask_often(proxy, 100)
    _, most, _ = _memory(proxy, tmp_path)
    assert 0 < most < MOST_BYTES


def test_a_request_does_not_wait_long_for_a_thread_that_computes(proxy: Proxy, tmp_path: Path) -> None:
    """It may have to wait after each of its system calls, so Python's 5 ms would be 45."""
    _, _, interval_s = _memory(proxy, tmp_path)
    assert interval_s <= 0.001


def _memory(proxy: Proxy, folder: Path) -> tuple[int, int, float]:
    """Blocks in use, the most bytes beyond what is in use, and how long a thread keeps the interpreter (s)."""
    told = folder / "memory"
    lines = len(told.read_text().splitlines()) if told.exists() else 0
    proxy.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: told.exists() and len(told.read_text().splitlines()) > lines, what="the proxy tells its memory")
    blocks, most, interval_s = told.read_text().splitlines()[-1].split()
    return int(blocks), int(most), float(interval_s)
