"""Interrupts of a run in several workers: each worker stops its user manager before it is ended."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any

import pytest

TEARDOWN_S = 60


def is_worker() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ


def interrupt_once() -> None:
    """The first SIGINT ends this worker's tests; a second one must not break off the teardown.

    A terminal sends SIGINT to every process, and the controller passes its own on.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


class Interrupts:
    """The controller's plugin. Without it, xdist kills the workers ten seconds after an interrupt."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: Any) -> None:
        self._nodes.append(node)

    def pytest_keyboard_interrupt(self) -> None:
        for node in self._nodes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.gateway._io.popen.pid, signal.SIGINT)  # execnet publishes it nowhere else
        for node in self._nodes:
            with contextlib.suppress(Exception):  # whatever a worker says at its end, the others are waited for
                node.channel.waitclose(TEARDOWN_S)
