"""How much memory the graphics card has, as far as the system says."""

from __future__ import annotations

import subprocess
from pathlib import Path

_GIB = 1 << 30
_TIMEOUT_S = 10
_QUERY = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")


def memory_gib() -> float | None:
    """Of the largest card; None where nobody says it."""
    found = [*_of_amd(), *_of_nvidia()]
    return round(max(found) / _GIB, 1) if found else None


def _of_amd() -> list[int]:
    files = Path("/sys/class/drm").glob("card*/device/mem_info_vram_total")
    texts = (file.read_text().strip() for file in files)
    return [int(text) for text in texts if text.isdecimal()]


def _of_nvidia() -> list[int]:
    try:
        ran = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [int(line) << 20 for line in ran.stdout.split() if line.isdecimal() and len(line) < 10]
