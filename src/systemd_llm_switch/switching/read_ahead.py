"""Reads the next model's file into the page cache while the loaded one still drains or stops.

A load is mostly reading, and pages that are in memory already need not be read during the switch. Only unused memory is
filled; what a running model has mapped counts as used. Knows files and memory; its caller decides when to read.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from systemd_llm_switch.split_files import part_names
from systemd_llm_switch.systemd.manager import Systemd, SystemdError

log = logging.getLogger(__name__)

_CHUNK_BYTES = 64 << 20
_RESERVE_BYTES = 1 << 30  # left free beyond the file itself
_PAUSE_S = 30.0  # a file that was read a moment ago is still in memory
_MODEL = re.compile(r"(?<!\S)(?:--model|-m)[ =](.{1,4096}?\.gguf)(?=\s|$)")  # the longest path (PATH_MAX), and linear


class ReadAhead:
    """At most one file is read at a time. Thread-safe; nothing here raises or blocks its caller."""

    def __init__(self, systemd: Systemd) -> None:
        self._systemd = systemd
        self._lock = threading.Lock()
        self._is_reading = False
        self._read_at: dict[str, float] = {}

    def begin(self, unit: str, is_wanted: Callable[[], bool], command: str | None = None) -> None:
        """Reads the unit's model in a thread for as long as it is wanted. Does nothing while another model is read.
        `command` is the unit's command line, if that is known already."""
        now = time.monotonic()
        with self._lock:
            if self._is_reading or now < self._read_at.get(unit, -_PAUSE_S) + _PAUSE_S:
                return
            self._is_reading, self._read_at[unit] = True, now
        reader = threading.Thread(target=self._run, args=(unit, is_wanted, command), name="read-ahead", daemon=True)
        try:
            reader.start()
        except RuntimeError as error:  # the kernel gives no more threads
            log.info("not_read_ahead unit=%s reason=%r", unit, str(error))
            with self._lock:
                self._is_reading = False

    def _run(self, unit: str, is_wanted: Callable[[], bool], command: str | None) -> None:
        try:
            if command is None:
                command = self._systemd.show([unit])[unit].command
            began = time.monotonic()
            count = read_files(model_files(command), is_wanted)
            if count:
                took_ms = (time.monotonic() - began) * 1000
                log.info("read_ahead unit=%s mib=%d ms=%.0f", unit, count >> 20, took_ms)
        except (OSError, SystemdError) as error:
            log.info("not_read_ahead unit=%s reason=%r", unit, str(error))
        except Exception:
            log.exception("read_ahead_crashed unit=%s", unit)
        finally:
            with self._lock:
                self._is_reading = False


def model_files(command: str) -> list[Path]:
    """The model files in a llama-server's command line: all parts of a split model. Empty if it names no file (`-hf`,
    for example)."""
    named = _MODEL.search(command)
    return list(map(Path, part_names(named[1].strip("\"'")))) if named is not None else []


def read_files(files: list[Path], is_wanted: Callable[[], bool]) -> int:
    """Asks the kernel to read files into the page cache, piece by piece. Returns the number of bytes asked for: 0 if
    the files do not fit in unused memory, fewer than all if they are no longer wanted.

    Raises:
        OSError: a file cannot be opened.
    """
    if not files or sum(file.stat().st_size for file in files) + _RESERVE_BYTES > unused_memory():
        return 0
    count = 0
    for file in files:
        for length in _read(file, is_wanted):
            count += length
    return count


def _read(file: Path, is_wanted: Callable[[], bool]) -> Iterator[int]:
    """Asks the kernel to read the file in pieces (posix_fadvise(2)). Yields the length of each."""
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)  # a FIFO would block
    try:
        size = os.fstat(handle).st_size
        for start in range(0, size, _CHUNK_BYTES):
            if not is_wanted():
                return
            length = min(_CHUNK_BYTES, size - start)
            os.posix_fadvise(handle, start, length, os.POSIX_FADV_WILLNEED)
            yield length
    finally:
        os.close(handle)


def unused_memory() -> int:
    """How many bytes can be filled without taking memory from a running program. MemAvailable (proc(5)) alone is too
    much: it counts the file pages that a loaded model has mapped, because the kernel could reclaim them."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return max(0, kib["MemAvailable"] - kib["Mapped"]) * 1024
