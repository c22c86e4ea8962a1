"""When memory is given back."""

from __future__ import annotations

import queue

import pytest

from systemd_llm_switch.http_server.memory import Trimmer


@pytest.fixture
def trims() -> queue.SimpleQueue[None]:
    return queue.SimpleQueue()


@pytest.fixture
def trimmer(trims: queue.SimpleQueue[None]) -> Trimmer:
    trimmer = Trimmer(lambda: trims.put(None), quiet_s=0.01)
    trimmer.start()
    return trimmer


@pytest.mark.parametrize("sizes", [[5_000_000], [100_000] * 42], ids=["one large request", "many small ones"])
def test_memory_is_given_back_after(trimmer: Trimmer, trims: queue.SimpleQueue[None], sizes: list[int]) -> None:
    for size in sizes:
        trimmer.note(size)
    trims.get(timeout=60)


def test_some_small_requests_are_not_worth_it(trimmer: Trimmer, trims: queue.SimpleQueue[None]) -> None:
    for _ in range(41):
        trimmer.note(100_000)
    with pytest.raises(queue.Empty):
        trims.get(timeout=0.5)
