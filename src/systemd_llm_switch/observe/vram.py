"""How much VRAM is in use, where that can be known: amdgpu says it in files, and nvidia-smi where it is installed.

Asked for on demand only; one reading serves all who ask within two seconds. What cannot be known is left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from systemd_llm_switch.systemd import programs

_DEVICES = Path("/sys/class/drm")
_TIMEOUT_S = 3.0
_KEEP_S = 2.0
_MOST_CARDS = 16
_QUERY = ("--query-gpu=name,memory.used,memory.total", "--format=csv,noheader,nounits")
_MOST_CHARACTERS = 10_000
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Card:
    """One graphics card."""

    name: str
    used_bytes: int
    total_bytes: int


class Vram:
    """Thread-safe."""

    def __init__(self, devices: Path = _DEVICES) -> None:
        self._devices = devices
        self._lock = threading.Lock()
        self._cards: list[Card] = []
        self._read_at = -_KEEP_S

    def cards(self) -> list[Card]:
        """The cards whose memory is known. Blocks for three seconds at most; never raises."""
        with self._lock:
            if time.monotonic() - self._read_at >= _KEEP_S:
                self._cards = [*_from_files(self._devices), *_from_nvidia()][:_MOST_CARDS]
                self._read_at = time.monotonic()
            return self._cards


def _from_files(devices: Path) -> Iterator[Card]:
    for total in sorted(devices.glob("card*/device/mem_info_vram_total")):
        folder = total.parent
        try:
            used, whole = int((folder / "mem_info_vram_used").read_text()), int(total.read_text())
        except (OSError, ValueError):
            continue  # the card was removed, or its driver says nothing
        yield Card(folder.parent.name, used, whole)


def _from_nvidia() -> Iterator[Card]:
    try:
        output = programs.run("nvidia-smi", *_QUERY, timeout_s=_TIMEOUT_S)
    except programs.ProgramError:
        return  # most often it is not installed
    for line in output[:_MOST_CHARACTERS].splitlines():
        name, *numbers = (it.strip() for it in line.rsplit(",", 2))
        if len(numbers) == 2 and all(it.isdecimal() and len(it) < 12 for it in numbers):
            yield Card(name[:100], int(numbers[0]) * _MIB, int(numbers[1]) * _MIB)
