"""When memory is given back."""

from __future__ import annotations

import queue
import subprocess
import sys
import time

import pytest

from support.stack import environment_of_the_unit, wait_for
from systemd_llm_switch.http_server.memory import Trimmer


@pytest.fixture
def trims() -> queue.SimpleQueue[None]:
    return queue.SimpleQueue()


@pytest.fixture
def trimmer(trims: queue.SimpleQueue[None]) -> Trimmer:
    trimmer = Trimmer(lambda: trims.put(None), quiet_s=0.01)
    trimmer.start()
    return trimmer


@pytest.mark.parametrize(
    "sizes", [[5_000_000], [100_000] * 42, [10] * 64], ids=["one large request", "many small ones", "many tiny ones"]
)
def test_memory_is_given_back_after(trimmer: Trimmer, trims: queue.SimpleQueue[None], sizes: list[int]) -> None:
    for size in sizes:
        trimmer.note(size)
    trims.get(timeout=60)


def test_memory_is_given_back_although_requests_go_on(trims: queue.SimpleQueue[None]) -> None:
    trimmer = Trimmer(lambda: trims.put(None), quiet_s=0.1, longest_s=0.3)
    trimmer.start()

    def is_given_back() -> bool:
        trimmer.note(5_000_000)
        return not trims.empty()

    wait_for(is_given_back, timeout_s=30)


def test_some_small_requests_are_not_worth_it(trimmer: Trimmer, trims: queue.SimpleQueue[None]) -> None:
    for _ in range(41):
        trimmer.note(100_000)
    with pytest.raises(queue.Empty):
        trims.get(timeout=0.5)


def test_after_many_small_requests_their_count_begins_anew(trimmer: Trimmer, trims: queue.SimpleQueue[None]) -> None:
    for _ in range(42):
        trimmer.note(100_000)
    trims.get(timeout=60)
    trimmer.note(100_000)
    with pytest.raises(queue.Empty):
        trims.get(timeout=0.5)


def test_it_waits_until_no_further_large_request_comes(trims: queue.SimpleQueue[None]) -> None:
    """Two that come within the time of quiet are followed by one trim. On a busy machine, one of several pairs does."""
    trimmer = Trimmer(lambda: trims.put(None), quiet_s=0.3)
    trimmer.start()

    def is_one_trim_for_two() -> bool:
        for _ in range(2):
            trimmer.note(5_000_000)
            time.sleep(0.1)  # it has seen the first
        wait_for(lambda: trims.qsize() > 0)
        time.sleep(0.6)
        return _taken(trims) == 1

    assert any(is_one_trim_for_two() for _ in range(5))


def _taken(trims: queue.SimpleQueue[None]) -> int:
    """How many there were; none is left."""
    count = 0
    while not trims.empty():
        trims.get()
        count += 1
    return count


# Takes blocks, frees them, takes as many again, and prints how much more memory is in use then.
_TAKE_AGAIN = """
import ctypes

class Info(ctypes.Structure):  # mallinfo(3)
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c d e f used g h".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Info, ctypes.c_void_p, [ctypes.c_void_p]

def take():
    return [libc.malloc(size) for size in range(600, 1000, 16) for _ in range(7)]

for block in take():
    libc.free(block)
before = libc.mallinfo2().used
take()
print(libc.mallinfo2().used - before)
"""


def test_no_thread_of_the_installed_proxy_keeps_freed_memory() -> None:
    """Where a thread has a cache, what it frees stays in use, and is taken from there again."""

    def taken_anew(env: dict[str, str]) -> int:
        command = [sys.executable, "-I", "-c", _TAKE_AGAIN]
        return int(subprocess.run(command, env=env, capture_output=True, check=True, timeout=60).stdout)

    assert taken_anew({}) < 50_000
    assert taken_anew(environment_of_the_unit()) > 100_000
