"""Waiting until units have stopped, for whoever asked for it. The switcher resolves it; the caller's thread waits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

from systemd_llm_switch.errors import ModelStartFailed, ProxyError
from systemd_llm_switch.waiting import LONGEST_WAIT_S, Client, Signal


class Unloading:
    """Units that were asked to stop. Waited for by one thread, resolved by another, once.

    `units` is None where the wait is for a hold: then it is for everything that is loaded while the hold lasts.
    """

    def __init__(self, units: Collection[str] | None) -> None:
        self._units = None if units is None else frozenset(units)
        self._stopped: set[str] = set()  # since this wait began: a request may have loaded them again
        self._error: ProxyError | None = None
        self._signal = Signal()

    def wait(self, client: Client) -> None:
        """Blocks until all have stopped.

        Raises:
            ProxyError: a unit did not stop, or the proxy is being stopped.
            ClientGone: the client hung up first.
        """
        while not self._signal.wait(client, LONGEST_WAIT_S):
            continue
        if self._error is not None:
            raise self._error

    def note_stopped(self, units: Collection[str]) -> None:
        """These units were stopped, and systemd confirmed it."""
        self._stopped.update(units)

    def left(self, loaded: Collection[str], on_hold: bool) -> list[str]:
        """Those of the loaded units that have still to stop."""
        if self._units is None:
            return list(loaded) if on_hold else []
        return [unit for unit in loaded if unit in self._units and unit not in self._stopped]

    def resolve(self, error: ProxyError | None = None) -> None:
        """The wait is over."""
        self._error = copy.copy(error)  # each thread raises one of its own
        self._signal.set()


class Unloadings:
    """The waits that are under way. Not thread-safe: the switcher has the lock. `last_error` says why a unit did not
    stop, if that is known."""

    def __init__(self, last_error: Callable[[str], str | None]) -> None:
        self._waits: list[Unloading] = []
        self._last_error = last_error

    def __bool__(self) -> bool:
        return bool(self._waits)

    def add(self, unloading: Unloading) -> None:
        """Somebody waits, from now on."""
        self._waits.append(unloading)

    def discard(self, unloading: Unloading) -> None:
        """Nobody waits any more. Idempotent."""
        if unloading in self._waits:
            self._waits.remove(unloading)

    def note_stopped(self, units: Collection[str]) -> None:
        """These units were stopped, and systemd confirmed it."""
        for unloading in self._waits:
            unloading.note_stopped(units)

    def resolve(
        self, loaded: Collection[str], on_hold: bool, closing: ProxyError | None, *, is_switching: bool
    ) -> None:
        """Ends the waits for units that have stopped, or did not; all of them with `closing` if that is set. While a
        switch is under way, a unit that did not stop may still do so."""
        for unloading in self._waits.copy():
            left = unloading.left(loaded, on_hold)
            reason = next((error for unit in left if (error := self._last_error(unit))), None)
            if not left:
                unloading.resolve()
            elif closing is not None:
                unloading.resolve(closing)
            elif reason is not None and not is_switching:
                unloading.resolve(ModelStartFailed(reason))
            else:
                continue
            self._waits.remove(unloading)
