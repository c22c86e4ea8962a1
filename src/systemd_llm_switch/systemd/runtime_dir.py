"""The folder in which the sockets of the user's manager are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def find(environ: Mapping[str, str]) -> str | None:
    """`$XDG_RUNTIME_DIR`, or what a login sets it to: `su` and cron do not set it. None if there is no such folder."""
    usual = f"/run/user/{os.getuid()}"
    return environ.get("XDG_RUNTIME_DIR") or (usual if Path(usual).is_dir() else None)
