"""The file that remembers a hold (the VRAM is kept free) across restarts of the proxy. Must not know models or HTTP."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from systemd_llm_switch.config.document import UnreadableFile, read_text

MOST_MINUTES = 366 * 24 * 60
"""Of a hold that ends by itself."""


@dataclass(frozen=True, slots=True)
class Held:
    """A hold that is in force. `until` is seconds since the epoch; `math.inf`: until it is released. With `is_freed`,
    everything was unloaded for it, so what runs now was started by hand."""

    until: float
    is_freed: bool = False


class HoldFile:
    """Reads and writes the file, which an earlier proxy may have left. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "hold.json"
        self._lock = threading.Lock()

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> HoldFile:
        """In the unit's StateDirectory= (systemd.exec(5)), else in the user's state folder."""
        named = environ.get("STATE_DIRECTORY", "").partition(":")[0]
        home = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        return cls(Path(named) if named else Path(home) / "systemd-llm-switch")

    def read(self) -> Held | None:
        """The hold, if it is still in force. A file that cannot be read counts as no hold."""
        try:
            stored = json.loads(read_text(self.path))
            until, is_freed = stored["until"], stored.get("is_freed") is True
        except (UnreadableFile, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if until is None:
            return Held(math.inf, is_freed)
        if not isinstance(until, int | float) or not until > time.time():
            return None
        try:
            return Held(float(until), is_freed)
        except OverflowError:
            return Held(math.inf, is_freed)

    def write(self, until: float) -> None:
        """Remembers a hold that begins.

        Raises:
            OSError: the hold would not survive a restart.
        """
        with self._lock:
            self._write(Held(until))

    def note_freed(self) -> None:
        """Everything is unloaded now. Does nothing if the hold is over already.

        Raises:
            OSError
        """
        with self._lock:
            held = self.read()
            if held is not None:
                self._write(replace(held, is_freed=True))

    def clear(self) -> None:
        """Removes the file.

        Raises:
            OSError: the hold would come back with a restart.
        """
        with self._lock:
            self.path.unlink(missing_ok=True)

    def _write(self, held: Held) -> None:
        until = None if held.until == math.inf else held.until
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replacement = self.path.with_suffix(".new")
        replacement.unlink(missing_ok=True)
        with replacement.open("x", encoding="utf-8") as file:  # follows no link, and does not wait at a FIFO
            file.write(json.dumps({"until": until, "is_freed": held.is_freed}))
        os.replace(replacement, self.path)  # noqa: PTH105  (the name for an atomic replacement)
