"""The server has as many threads as it needs: few at first, more before the last free one is taken, all gone after."""

from __future__ import annotations

import contextlib
import http.client
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.stack import Proxy, Stack, address_space, in_background, run_all, threads_of, wait_for
from systemd_llm_switch.http_server.threadpool import GrowingPool
from systemd_llm_switch.switching.read_ahead import ReadAhead
from systemd_llm_switch.systemd.manager import Systemd


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    proxy = stack.run({"a": stack.standin("a")}, queue_limit=4)
    proxy.chat("a")
    return proxy


def test_an_idle_proxy_has_few_threads(proxy: Proxy) -> None:
    assert threads_of(proxy.process.pid) < 40


def test_clients_that_keep_their_connections_keep_few_threads(proxy: Proxy) -> None:
    """Each is answered again, on the connection that it has, however many there are; and others are, too."""
    with contextlib.ExitStack() as closing:
        connections = [http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5) for _ in range(60)]
        for connection in connections:
            closing.callback(connection.close)
        for _ in range(2):
            for connection in connections:
                connection.request("GET", "/health")
                assert connection.getresponse().read() == b'{"status":"ok"}'
        assert threads_of(proxy.process.pid) < 48
        assert proxy.get("/v1/models").status == 200


def test_a_client_that_keeps_its_connection_holds_no_end_up(stack: Stack) -> None:
    """Its thread, which waits two seconds for it, is told to end. On a busy machine, one of several ends is quick."""
    stack.write_config({"a": stack.standin("a")})

    def ends_soon() -> bool:
        proxy = stack.start_proxy()
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            began = time.monotonic()
            assert proxy.stop() == 0
            return time.monotonic() - began < 1.5

    assert any(ends_soon() for _ in range(5))


def test_a_burst_gets_its_threads_and_the_model_list_still_answers(proxy: Proxy, stack: Stack) -> None:
    """A hundred requests that all wait for the model, and nobody waits for a thread. Afterwards the threads end,
    although other requests go on."""
    with in_background(*[lambda: proxy.chat("a", standin={"until_released": True})] * 100) as answers:
        wait_for(lambda: stack.seen()["running"] == 100)
        assert proxy.get("/v1/models").status == 200
        assert stack.seen()["running"] == 100
        assert threads_of(proxy.process.pid) > 100
        stack.release()
    assert [answer.status for answer in answers] == [200] * 100
    wait_for(lambda: proxy.get("/health").status == 200 and threads_of(proxy.process.pid) < 40)
    assert threads_of(proxy.process.pid) >= 24
    assert proxy.stop() == 0


def test_there_is_a_limit(proxy: Proxy, stack: Stack) -> None:
    """128 run, 4 wait, and the rest is refused at once. However many come, the threads are bounded: those, the reserve
    of 88, 16 that watch events, and a few of the process's own."""
    with in_background(*[lambda: proxy.chat("a", standin={"delay_s": 5})] * 160) as answers:
        wait_for(lambda: stack.seen()["running"] == 128)
        assert proxy.get("/health").status == 200
        assert threads_of(proxy.process.pid) < 4 + 128 + 88 + 16 + 12
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 128


def test_threads_that_the_kernel_refuses_come_later(proxy: Proxy, stack: Stack) -> None:
    """There is room for 60 requests, but not for a thread's stack of 8 MiB. Those that there are serve on, one line
    says so, and switching goes on; with room again there are as many threads as are needed."""
    pid = proxy.process.pid
    usual = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (address_space(pid) + (15 << 19), usual[1]))
    answers = run_all(*[lambda: proxy.chat("a", standin={"delay_s": 0.2})] * 60)
    assert [answer.status for answer in answers] == [200] * 60
    assert proxy.log.count("no_more_threads") == 1
    assert proxy.post("/api/unload", {}).status == 200
    assert proxy.chat("a").status == 200
    resource.prlimit(pid, resource.RLIMIT_AS, usual)
    with in_background(*[lambda: proxy.chat("a", standin={"delay_s": 3})] * 60):
        wait_for(lambda: stack.seen()["running"] == 60)
    assert "Traceback" not in proxy.log


def test_a_file_is_read_ahead_though_the_kernel_refused_a_thread_before(tmp_path: Path) -> None:
    """A refusal raises nothing, and ends nothing for ever."""
    asked: list[int] = []

    def is_wanted(number: int) -> bool:
        asked.append(number)
        return True

    reading = ReadAhead(Systemd())
    (tmp_path / "m.gguf").write_bytes(b"model")
    command = f"/x/llama-server --model {tmp_path}/m.gguf"
    usual = threading.stack_size(1 << 46)  # more than there are addresses
    try:
        reading.begin("refused.service", lambda: is_wanted(1), command)
    finally:
        threading.stack_size(usual)
    assert not asked
    reading.begin("m.service", lambda: is_wanted(2), command)
    wait_for(lambda: asked)
    assert asked == [2]


def test_a_proxy_that_ends_in_a_burst_ends(proxy: Proxy, stack: Stack) -> None:
    """No thread that comes late holds the process up."""
    with in_background(*[lambda: proxy.chat("a", standin={"delay_s": 1})] * 60):
        wait_for(lambda: stack.seen()["running"] >= 10)
        assert proxy.stop() == 0


class StubConnection:
    """A connection whose request is a function; `order` notes when it is served."""

    def __init__(self, order: list[str], name: str, serve: Callable[[], object] = lambda: None) -> None:
        self.order, self.name, self.serve = order, name, serve
        self.socket, self.client = socket.socketpair()
        self.rfile = SimpleNamespace(has_data=lambda: False)

    def communicate(self) -> bool:
        self.serve()
        self.order.append(self.name)
        return False

    def close(self) -> None:
        self.socket.close()
        self.client.close()


@contextlib.contextmanager
def pool_of(limit: int) -> Iterator[GrowingPool]:
    server = SimpleNamespace(stats={"Enabled": False, "Worker Threads": {}}, error_log=print)
    server.requests = pool = GrowingPool(server, limit)
    pool.start()
    try:
        yield pool
    finally:
        pool.stop()


def test_a_thread_does_not_serve_its_own_connection_again_while_others_wait() -> None:
    order: list[str] = []
    others_wait = threading.Event()
    with pool_of(1) as pool:

        def serve() -> None:
            others_wait.wait()
            pool.put(StubConnection(order, "its own"))  # whose next request has come

        pool.put(StubConnection(order, "first", serve))
        pool.put(StubConnection(order, "another"))
        others_wait.set()
        wait_for(lambda: len(order) == 3)
    assert order == ["first", "another", "its own"]


@pytest.mark.parametrize(("limit", "stays"), [(4, False), (24, True)])
def test_a_thread_stays_with_its_connection_only_if_enough_others_are_free(limit: int, stays: bool) -> None:
    stayed: list[bool] = []
    with pool_of(limit) as pool:
        connection = StubConnection([], "it", lambda: stayed.append(pool.stays_with(following)))
        following = StubConnection([], "its next request")
        following.client.sendall(b"GET")
        wait_for(lambda: len(pool.server.stats["Worker Threads"]) == limit)
        pool.put(connection)
        wait_for(lambda: stayed)
    assert stayed == [stays]
