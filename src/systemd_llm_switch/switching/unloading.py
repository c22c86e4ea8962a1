"""Waits for units to stop. The caller's thread waits; the switcher ends the wait."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

from systemd_llm_switch.errors import ModelStartFailed, ProxyError
from systemd_llm_switch.waiting import LONGEST_WAIT_S, Client, Signal


class Unloading:
    """One wait for units that were asked to stop. One thread waits, another resolves it, once.

    If `units` is None, the wait is for a hold: it ends when nothing is loaded, or when the hold ends.
    """

    def __init__(self, units: Collection[str] | None) -> None:
        self._units = None if units is None else set(units)  # those that must still stop
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
        """These units were stopped, and systemd confirmed it, or their process is gone; a request may have loaded them
        again already."""
        if self._units is not None:
            self._units.difference_update(units)

    def note_loaded(self, units: Collection[str]) -> None:
        """Only these units are loaded. A request may load others later; this wait is not for those."""
        if self._units is not None:
            self._units.intersection_update(units)

    def left(self, loaded: Collection[str], on_hold: bool) -> list[str]:
        """The loaded units that must still stop."""
        if self._units is None:
            return list(loaded) if on_hold else []
        self.note_loaded(loaded)
        return list(self._units)

    def resolve(self, error: ProxyError | None = None) -> None:
        """Ends the wait."""
        self._error = copy.copy(error)  # each thread must raise its own copy
        self._signal.set()


class Unloadings:
    """All waits in progress. Not thread-safe: the switcher holds the lock. `last_error` says why a unit did not stop,
    if that is known."""

    def __init__(self, last_error: Callable[[str], str | None]) -> None:
        self._waits: list[Unloading] = []
        self._last_error = last_error

    def __bool__(self) -> bool:
        return bool(self._waits)

    def add(self, unloading: Unloading) -> None:
        """Begins a wait."""
        self._waits.append(unloading)

    def discard(self, unloading: Unloading) -> None:
        """Drops a wait. Idempotent."""
        if unloading in self._waits:
            self._waits.remove(unloading)

    def note_stopped(self, units: Collection[str]) -> None:
        """These units were stopped, and systemd confirmed it."""
        for unloading in self._waits:
            unloading.note_stopped(units)

    def resolve(
        self, loaded: Collection[str], on_hold: bool, closing: ProxyError | None, *, is_switching: bool
    ) -> None:
        """Ends the waits whose units have stopped, or failed to; all waits with the error `closing` if that is set.
        While a switch is in progress, a unit that did not stop may still do so."""
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
