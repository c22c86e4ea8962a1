"""Holds that survive a restart: the switcher's hold together with the file that remembers it. Knows no HTTP."""

from __future__ import annotations

import logging
import math
import time

from systemd_llm_switch.hold import Held, HoldFile
from systemd_llm_switch.switcher import Switcher
from systemd_llm_switch.waiting import Client

log = logging.getLogger(__name__)


class Holding:
    """Begins, ends and resumes holds. Thread-safe."""

    def __init__(self, switcher: Switcher, file: HoldFile) -> None:
        self._switcher = switcher
        self._file = file

    def begin(self, left_s: float, force: bool, client: Client) -> str | None:
        """Frees all VRAM and turns requests away for `left_s` seconds (inf: until released); blocks until all is
        unloaded, or the hold is over. Returns a warning for the operator, if there is one.

        Raises: as `Switcher.free_for_hold` does; the hold is in force all the same.
        """
        warning = None
        try:
            self._file.write(time.time() + left_s)
        except OSError as error:
            log.error("hold_not_saved path=%s reason=%r", self._file.path, str(error))
            warning = f"the hold ends with a restart of the proxy, since {self._file.path} cannot be written: {error}"
        self._switcher.hold(None if left_s == math.inf else time.monotonic() + left_s, force)
        self.complete(client)
        return warning

    def release(self) -> str | None:
        """Serves requests again. Returns a warning for the operator, if there is one."""
        self._switcher.release_hold()
        try:
            self._file.clear()
        except OSError as error:
            log.error("hold_not_forgotten path=%s reason=%r", self._file.path, str(error))
            return f"the hold comes back with a restart of the proxy, since {self._file.path} stays: {error}"
        return None

    def resume(self) -> Held | None:
        """Goes on with the hold of an earlier proxy, if one is in force. Does not block; where not everything is
        freed yet, `complete` does that."""
        held = self._file.read()
        if held is not None:
            until = None if held.until == math.inf else held.until - time.time() + time.monotonic()
            self._switcher.hold(until, force=False)
        return held

    def complete(self, client: Client) -> None:
        """Unloads everything, and remembers that it is done: what is started by hand later may run on, also when
        the proxy restarts. Blocks.

        Raises: as `Switcher.free_for_hold` does.
        """
        self._switcher.free_for_hold(client)
        try:
            self._file.note_freed()
        except OSError as error:
            log.warning("hold_not_saved path=%s reason=%r", self._file.path, str(error))
