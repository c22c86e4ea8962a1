"""Reads ahead what a model's conversations have in common, into a process that has started cold and is idle.

Reads in pieces of a quarter of a second. Any request ends the read, so that none waits for more than one piece.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Collection

from systemd_llm_switch.backend.slots import SlotError, Slots
from systemd_llm_switch.contexts.openings import Opening, Openings
from systemd_llm_switch.contexts.records import Loaded
from systemd_llm_switch.contexts.worth import FEWEST_TOKENS
from systemd_llm_switch.quoting import quoted

log = logging.getLogger(__name__)

_IDLE_S = 1.0  # who loads a model often asks at once
_PIECE_S = 0.25
_FIRST_PIECE = 16  # tokens
# llama-server takes a slot again if a tenth of the prompt is in it; with more, another slot would read from the start.
_LARGEST_GROWTH = 4
_TIMEOUT_S = 60.0  # of one answer; a piece is meant to take much less


class Warming:
    """At most one read at a time. Thread-safe; only `begin` starts a thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._openings: dict[str, Openings] = defaultdict(Openings)  # by unit
        self._reading: _Reading | None = None

    def note(self, unit: str, message: bytes) -> None:
        """A chat was answered; `message` is the body that the backend got."""
        opening = Opening.of_message(message)
        if opening is not None:
            with self._lock:
                self._openings[unit].note(opening)

    def forget(self, units: Collection[str]) -> None:
        """Forgets what the conversations of these units began with."""
        self.make_way()
        with self._lock:
            for unit in units:
                self._openings.pop(unit, None)

    def begin(self, loaded: Loaded) -> None:
        """A process is ready, and nothing was restored. Reads in its own thread."""
        with self._lock:
            alike = self._openings[loaded.model.unit].alike()
        if alike is not None:
            reading = _Reading(loaded, alike)
            with self._lock:
                self._reading = reading
            threading.Thread(target=reading.run, name="warm", daemon=True).start()

    def make_way(self) -> None:
        """A request came, or the process is to be stopped. Does not block."""
        if self._reading is None:  # nearly always
            return
        with self._lock:
            reading, self._reading = self._reading, None
        if reading is not None:
            reading.is_over.set()


class _Reading:
    """One read in progress. `is_over` ends it before its next piece."""

    def __init__(self, loaded: Loaded, alike: tuple[Opening, Opening]) -> None:
        self.is_over = threading.Event()
        self._loaded = loaded
        self._alike = alike
        self._slots = Slots(loaded.backend)
        self._began = 0.0

    def run(self) -> None:
        """Waits until the process is idle, and reads. Never raises."""
        name = self._loaded.model.id
        try:
            if self.is_over.wait(_IDLE_S) or not self._is_unused():
                return
            self._began = time.monotonic()
            tokens = self._shared()
            if len(tokens) >= FEWEST_TOKENS:
                self._read(tokens)
        except SlotError as error:
            log.info("context_skipped model=%s reason=%s", name, quoted(f"reading ahead: {error}"))
        except Exception:
            log.exception("context_warm_crashed model=%s", name)

    def _is_unused(self) -> bool:
        """Whether no request has reached the process: what one has read is worth more than what is read ahead."""
        slots = self._slots.list(self._deadline()) or ()
        return bool(slots) and not any(slot.is_busy or slot.task >= 0 for slot in slots)

    def _shared(self) -> tuple[int, ...]:
        """The tokens that both conversations begin with."""
        one, other = (self._slots.tokens(opening.body, self._deadline()) for opening in self._alike)
        length = next((at for at, (mine, its) in enumerate(zip(one, other, strict=False)) if mine != its), len(one))
        return one[: min(length, len(other))]

    def _read(self, tokens: tuple[int, ...]) -> None:
        name, done, piece = self._loaded.model.id, 0, _FIRST_PIECE
        while done < len(tokens):
            if self.is_over.is_set():
                reason = f"ended when {done} of {len(tokens)} tokens were read ahead"
                log.info("context_skipped model=%s reason=%s", name, quoted(reason))
                return
            end = min(len(tokens), done + piece)
            began = time.monotonic()
            self._slots.read(tokens[:end], self._deadline())
            took_s = max(time.monotonic() - began, 1e-6)
            piece = max(_FIRST_PIECE, min(int((end - done) * _PIECE_S / took_s), end * _LARGEST_GROWTH))
            done = end
        took_ms = (time.monotonic() - self._began) * 1000
        log.info("context_warmed model=%s tokens=%d ms=%.0f", name, done, took_ms)

    @staticmethod
    def _deadline() -> float:
        return time.monotonic() + _TIMEOUT_S
