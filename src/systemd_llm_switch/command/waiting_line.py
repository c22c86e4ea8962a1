"""A line on the terminal that says what is waited for. Nothing where stderr is not a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from systemd_llm_switch.command.proxy_client import NoProxy, Refused
from systemd_llm_switch.command.tables import duration

_STEP_S = 0.5


@contextlib.contextmanager
def waiting_line(describe: Callable[[], str]) -> Iterator[None]:
    """Within, the line is kept up to date. `describe` asks the proxy what it does now."""
    if not sys.stderr.isatty():
        yield
        return
    is_over = threading.Event()
    thread = threading.Thread(target=_keep, args=(describe, is_over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


def _keep(describe: Callable[[], str], is_over: threading.Event) -> None:
    began = time.monotonic()
    while not is_over.wait(_STEP_S):
        try:
            words = describe()
        except (NoProxy, Refused, KeyError):  # the last: an older proxy, or a config that has just changed
            continue
        sys.stderr.write(f"\r\033[K{words} ({duration(time.monotonic() - began)})")
        sys.stderr.flush()
