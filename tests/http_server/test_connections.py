"""Connections without a request: when no further one fits, how many threads stay with them, which ones are closed."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import resource
import signal
import socket
import time
from pathlib import Path

import pytest

from bench.processes import cpu_s
from support.stack import Proxy, Stack, descriptors_of, freeze, wait_for

MOST_IDLE = 512
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def shared(module_stack: Stack) -> Proxy:
    return module_stack.run({"a": module_stack.standin("a")})


@pytest.fixture
def proxy(shared: Proxy) -> Proxy:
    """Nobody is connected."""
    wait_for(lambda: sockets_of(shared) == 1)
    return shared


def sockets_of(proxy: Proxy) -> int:
    return descriptors_of(proxy.process.pid).get("socket:[]", 0)


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=60)


def test_a_proxy_without_a_free_descriptor_waits_for_one_at_rest(proxy: Proxy) -> None:
    """It has paused ten times before it has used half a second of its processor, and then serves who waited. (The first
    test of this file: threads that still stay with a connection would make it pause, too.)"""
    pid = proxy.process.pid
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(link.name) for link in Path(f"/proc/{pid}/fd").iterdir()}
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (next(it for it in itertools.count() if it not in used), usual[1]))
    try:
        with connect(proxy) as waiting:
            waiting.sendall(HEALTH)
            wait_for(lambda: "no_room_for_a_connection" in proxy.log)
            spent_s, paused = cpu_s(pid), pauses(pid)
            wait_for(lambda: pauses(pid) >= paused + 10 or cpu_s(pid) > spent_s + 0.5)
            assert pauses(pid) >= paused + 10
            assert proxy.log.count("no_room_for_a_connection") < 10
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
            assert waiting.recv(1000).startswith(b"HTTP/1.1 200 ")
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)


def pauses(pid: int) -> int:
    """How often the main thread, which accepts connections, has given up its processor to wait."""
    found = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", Path(f"/proc/{pid}/task/{pid}/status").read_text(), re.M)
    assert found is not None
    return int(found[1])


def test_at_most_eight_threads_stay_with_the_connections_that_they_served(proxy: Proxy) -> None:
    """The others are watched by one thread for all."""
    with contextlib.ExitStack() as closing:
        kept = [http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60) for _ in range(12)]
        for connection in kept:
            closing.callback(connection.close)
        before = watched_by_one(proxy)
        assert any(four_are_watched(proxy, kept, before) for _ in range(10))


def four_are_watched(proxy: Proxy, kept: list[http.client.HTTPConnection], before: int) -> bool:
    """Whether that is so soon after each has asked something. A thread stays for two seconds."""
    for connection in kept:
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"ok"}'
    for _ in range(20):
        if watched_by_one(proxy) - before >= 4:
            return True
        time.sleep(0.01)
    return False


def watched_by_one(proxy: Proxy) -> int:
    """How many descriptors epoll(7) watches for the proxy."""
    folder = Path(f"/proc/{proxy.process.pid}")
    polls = [link.name for link in (folder / "fd").iterdir() if "eventpoll" in target(link)]
    return sum((folder / "fdinfo" / number).read_text().count("tfd:") for number in polls)


def target(link: Path) -> str:
    """Nothing if it was closed meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return str(link.readlink())
    return ""


def test_a_connection_whose_request_has_come_is_not_closed_as_idle(proxy: Proxy) -> None:
    """It was idle longest when one more than there may be came, and its request came a moment later. The proxy, which
    stood still meanwhile, sees both at once."""
    with contextlib.ExitStack() as closing:
        oldest, second, *_ = [closing.enter_context(connect(proxy)) for _ in range(MOST_IDLE)]
        wait_for(lambda: sockets_of(proxy) == MOST_IDLE + 1)
        freeze(proxy.process.pid)
        try:
            closing.enter_context(connect(proxy))
            oldest.sendall(HEALTH)
        finally:
            os.kill(proxy.process.pid, signal.SIGCONT)
        assert oldest.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert second.recv(1000) == b""
