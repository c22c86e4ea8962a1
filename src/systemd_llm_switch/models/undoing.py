"""Steps that are undone when one of them fails or is interrupted."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType

from systemd_llm_switch.setup import console
from systemd_llm_switch.setup.ledger import write
from systemd_llm_switch.setup.places import SetupError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Undo:
    """Within its block, the first signal that would end the process raises KeyboardInterrupt; later ones are ignored,
    so that the undoing is never cut short. For the main thread."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []

    def later(self, step: Callable[[], None]) -> None:
        """Registers how a step is undone. Call it first: `step` must also work if nothing has happened yet."""
        self._steps.append(step)

    def __enter__(self) -> Undo:
        self._handlers = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        try:
            if kind is not None:
                _ignore_signals()
                for step in reversed(self._steps):
                    _do(step)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Signals are ignored within the block: for a few quick steps that belong together."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    _ignore_signals()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def put_back(path: Path, text: str | None) -> None:
    """Restores the earlier text of a file, even on a full disk; None removes the file. The earlier text must not be
    longer than the present one."""
    if text is None:
        path.unlink(missing_ok=True)
        return
    raw = text.encode()
    if path.exists() and path.read_bytes() == raw:
        return
    try:
        write(path, text, path.stat().st_mode & 0o7777)
    except OSError:
        with path.open("r+b") as file:  # its blocks are there already
            file.write(raw)
            file.truncate()


def _do(step: Callable[[], None]) -> None:
    """Undoes one step. If that fails, the other steps still follow."""
    try:
        step()
    except (OSError, SetupError) as error:
        console.error(f"could not undo everything: {error}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    """Ignores signals, also in programs that are started from now on."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
