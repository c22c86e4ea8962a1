"""An unload within this process, to make it come in a moment that no client can hit."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from support.stack import Stack
from systemd_llm_switch.config.file import load
from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.switching.unloading import Unloading
from systemd_llm_switch.systemd.manager import Systemd
from systemd_llm_switch.waiting import Client

MIN_RESIDENT_S = 3  # longer than a busy machine takes from the first model to the second request


@contextmanager
def alone() -> Iterator[None]:
    """No other thread of this process runs, so long as this one computes."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)


def test_an_unload_in_whose_moment_a_model_begins_to_load_is_not_for_that_model(stack: Stack) -> None:
    """The right of way of `a` has just ended, and the switcher's timer has not noticed it yet. So the unload of `b`,
    which is not loaded, is the event with which its load begins."""
    units = {name: stack.standin(name) for name in "ab"}
    models = {name: {"unit": unit, "llama_url": f"http://127.0.0.1:{stack.port}"} for name, unit in units.items()}
    stack.write_config(models, min_resident=MIN_RESIDENT_S, max_wait=MIN_RESIDENT_S)
    config = load(stack.config_path)
    switcher = Switcher(Systemd(environ=stack.env), config, Contexts(config))
    first = switcher.lease(config.models["a"])
    assert first.wait(Client(None), 30)
    switcher.release(first)
    unloading = Unloading([units["b"]])
    with alone():
        waiting = switcher.lease(config.models["b"])
        assert not switcher.is_switching
        while time.monotonic() < waiting.submitted + MIN_RESIDENT_S + 0.1:
            pass
        assert not switcher.is_switching
        switcher.unload([units["b"]], force=False, unloading=unloading)
        assert switcher.is_switching
    assert waiting.wait(Client(None), 30)
    switcher.release(waiting)
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        unloading.wait(Client(ours.fileno()))  # it is over; otherwise: ClientGone
    switcher.close()
