"""The CPU time that one request may spend on repair.

Owns the allowance and the clock. A model in a loop, or a hostile client, can write text that takes long to read. While
Python reads it, every other request of the proxy waits. So repair stops at the allowance, and the text stays as it was.
And only one long repair runs at a time: each of several would take the interpreter from the others for 5 ms in turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

BASE_S = 0.25
"""What every request may spend, whatever its size."""
S_PER_CHARACTER = 1e-6
MAX_LENGTH = 2_000_000
"""A longer text is not repaired: one pass of a regular expression over it would hold the interpreter too long."""
_LONG_S = 0.02
"""CPU time after which a repair is a long one, and between two looks whether its client is gone."""
_GONE_CHECK_S = 0.1  # while it waits for its turn
_long_repair = threading.Lock()
"""Held by the one long repair of the process."""


class BudgetSpent(Exception):
    """The CPU time is used up, or the client is gone. It is not a ValueError, so that no reader swallows it."""


class Budget:
    """What is left of one request's allowance. Belongs to one thread at a time.

    Only the time inside `with budget:` counts. `is_gone` says whether the client has hung up; it must not block.
    """

    __slots__ = ("_allowed_s", "_began_s", "_has_turn", "_is_gone", "_is_running", "_next_look_s", "_spent_s")

    def __init__(self, is_gone: Callable[[], bool] | None = None, base_s: float = BASE_S) -> None:
        self._is_gone = is_gone
        self._allowed_s = base_s
        self._spent_s = 0.0
        self._is_running = False
        self._began_s: float | None = None
        self._next_look_s = _LONG_S
        self._has_turn = False

    def __enter__(self) -> Budget:
        self._is_running = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._began_s is not None:
            self._spent_s += time.thread_time() - self._began_s
        self._began_s = None
        self._is_running = False
        if self._has_turn:
            self._has_turn = False
            _long_repair.release()

    def _spent_so_far_s(self) -> float:
        """The CPU time used. The clock starts at the first question: a sound reply never reads it."""
        now_s = time.thread_time()
        if self._began_s is None and self._is_running:
            self._began_s = now_s
        return self._spent_s + (now_s - self._began_s if self._began_s is not None else 0.0)

    def allow(self, length: int) -> None:
        """Add the allowance for a text of this length, once for each text that is repaired.

        Raises:
            BudgetSpent: the text is too long to be repaired at all.
        """
        if length > MAX_LENGTH:
            raise BudgetSpent("the text is too long to be repaired")
        self._allowed_s += length * S_PER_CHARACTER

    def check(self) -> None:
        """Call this regularly, at least every few milliseconds of work. A long repair waits here for its turn.

        Raises:
            BudgetSpent
        """
        spent_s = self._spent_so_far_s()
        if spent_s > self._allowed_s:
            raise BudgetSpent(f"repair took {spent_s:.2f} s of CPU time")
        if spent_s >= self._next_look_s:
            self._next_look_s = spent_s + _LONG_S
            self._look_for_client()
            if self._is_running and not self._has_turn:
                self._take_turn()

    def _look_for_client(self) -> None:
        if self._is_gone is not None and self._is_gone():
            raise BudgetSpent("the client is gone")

    def _take_turn(self) -> None:
        """Waiting takes no CPU time, so it costs nothing of the allowance."""
        while not _long_repair.acquire(timeout=_GONE_CHECK_S):
            self._look_for_client()
        self._has_turn = True
