"""Signals while something is done that can be undone."""

from __future__ import annotations

import os
import signal

import pytest

from systemd_llm_switch.models.undoing import Interrupts, Undo

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_all_steps_are_undone_and_a_second_signal_does_not_cut_that_short(number: int) -> None:
    undone = []
    before = signal.getsignal(number)
    interrupts = Interrupts()

    def work() -> None:
        with interrupts, Undo() as undo:
            undo.later(lambda: undone.append("first"))
            undo.later(lambda: send(number))
            undo.later(lambda: undone.append("last"))
            send(number)
            undone.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert undone == ["last", "first"]
    assert interrupts.came
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_that_comes_too_late_undoes_nothing(number: int) -> None:
    undone = []
    with Interrupts() as interrupts, Undo() as undo:
        undo.later(lambda: undone.append("it"))
        interrupts.end()
        send(number)
        send(number)
    assert undone == []
    assert interrupts.came


def test_without_a_signal_none_came() -> None:
    with Interrupts() as interrupts, Undo():
        interrupts.end()
    assert not interrupts.came
