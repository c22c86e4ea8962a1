"""Remembers a hold (the VRAM is kept free) across restarts of the proxy: one small file, no model, no HTTP."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path


class HoldFile:
    """Until when the models are on hold: seconds since the epoch, `math.inf` until released, None not at all."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "hold.json"

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> HoldFile:
        """In the unit's StateDirectory= (systemd.exec(5)), else in the user's state folder."""
        named = environ.get("STATE_DIRECTORY", "").partition(":")[0]
        home = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        return cls(Path(named) if named else Path(home) / "systemd-llm-switch")

    def read(self) -> float | None:
        """The hold that is still in force. A file that cannot be read counts as none."""
        try:
            until = json.loads(self._path.read_text(encoding="utf-8"))["until"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if until is None:
            return math.inf
        return float(until) if isinstance(until, int | float) and until > time.time() else None

    def write(self, until: float) -> None:
        """Remembers a hold.

        Raises:
            OSError: it would not survive a restart.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replacement = self._path.with_suffix(".new")
        replacement.write_text(json.dumps({"until": None if until == math.inf else until}), encoding="utf-8")
        os.replace(replacement, self._path)  # noqa: PTH105  (the name for an atomic replacement)

    def clear(self) -> None:
        """Forgets it."""
        self._path.unlink(missing_ok=True)
