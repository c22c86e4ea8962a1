"""How long a piece of work keeps Python's other threads from running."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

from support.stack import wait_for


def longest_hold_s(work: Callable[[], object]) -> float:
    """The most CPU time that this thread spends on `work` between two turns of another thread."""
    clock = time.pthread_getcpuclockid(threading.get_ident())
    turns: list[float] = []
    is_over = threading.Event()

    def take_turns() -> None:
        while not is_over.is_set():
            turns.append(time.clock_gettime(clock))
            time.sleep(0.0001)

    other = threading.Thread(target=take_turns)
    other.start()
    wait_for(lambda: turns)
    work()
    is_over.set()
    other.join()
    turns.append(time.clock_gettime(clock))
    return max(later - earlier for earlier, later in itertools.pairwise(turns))
