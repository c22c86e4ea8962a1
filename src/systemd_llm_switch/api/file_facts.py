"""What the files of models that were not loaded yet say: size, parameters, context. Read in the background, once."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from systemd_llm_switch.contexts.unit import Command
from systemd_llm_switch.gguf import Header, NotGguf, read_header
from systemd_llm_switch.openai.shapes import Json
from systemd_llm_switch.switching.read_ahead import model_files
from systemd_llm_switch.systemd.manager import Systemd, SystemdError

log = logging.getLogger(__name__)

_PATIENCE_S = 1.0  # how long the listing that began the reading waits for it
_LOOK_AGAIN_S = 60.0  # whether a unit or a file was changed
_MOST_PARTS = 1000
_LARGEST = 1 << 53  # beyond it, JSON's numbers are not exact everywhere
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")

_Stamp = tuple[tuple[str, int, int], ...]


class FileFacts:
    """The facts of units' model files. Thread-safe. Nothing here raises, and at most one thread reads."""

    def __init__(self, systemd: Systemd) -> None:
        self._systemd = systemd
        self._lock = threading.Lock()
        self._is_reading = False
        self._looked_at = 0.0
        self._known: dict[str, Json] = {}  # by unit
        self._files: dict[str, tuple[_Stamp, Json]] = {}  # by unit: the files that were read, and what they say

    def of(self, unit: str) -> Json:
        """What is known now; empty if nothing is."""
        return self._known.get(unit, {})

    def look(self, units: Sequence[str]) -> None:
        """Orders the files of these units to be read, if they were not yet or may have changed. Waits for a moment if
        a unit is new and no other caller waits."""
        is_new = any(unit not in self._known for unit in units)
        with self._lock:
            if self._is_reading or not (is_new or time.monotonic() >= self._looked_at + _LOOK_AGAIN_S):
                return
            self._is_reading, self._looked_at = True, time.monotonic()
        reader = threading.Thread(target=self._run, args=(tuple(units),), name="file-facts", daemon=True)
        try:
            reader.start()
        except RuntimeError as error:  # the kernel gives no more threads
            log.info("files_not_read reason=%r", str(error))
            self._is_reading = False
            return
        if is_new:
            reader.join(_PATIENCE_S)

    def _run(self, units: Sequence[str]) -> None:
        try:
            statuses = self._systemd.show(units)
            for unit in units:
                command = Command.of_status(statuses[unit])
                self._known[unit] = self._facts(unit, statuses[unit].command, command)
            for gone in self._known.keys() - set(units):
                self._known.pop(gone, None)
                self._files.pop(gone, None)
        except SystemdError as error:
            log.info("files_not_read reason=%r", str(error))
        except Exception:
            log.exception("file_facts_crashed")
        finally:
            for unit in units:
                self._known.setdefault(unit, {})
            self._is_reading = False

    def _facts(self, unit: str, line: str, command: Command) -> Json:
        files = model_files(line)[:_MOST_PARTS]
        try:
            stamp = tuple((str(file), found.st_size, found.st_mtime_ns) for file in files for found in [file.stat()])
        except (OSError, ValueError):
            return {}
        known, said = self._files.get(unit, ((), {}))
        if not stamp or stamp != known:
            said = _read(files)
            self._files[unit] = (stamp, said)
        return {**said, **_context(command)} if said else {}


def _read(files: Sequence[Path]) -> Json:
    """The facts in llama-server's words; empty if a file is not a whole model."""
    try:
        headers = [read_header(file) for file in files]
    except NotGguf as error:
        log.info("file_not_understood reason=%r", str(error))
        return {}
    tensors = [tensor for header in headers for tensor in header.tensors]
    facts = {
        "n_ctx_train": _trained(headers[0]) if headers else 0,
        "n_params": sum(tensor.weights for tensor in tensors),
        "size": sum(tensor.size for tensor in tensors),
    }
    return {name: value for name, value in facts.items() if 0 < value < _LARGEST}


def _trained(header: Header) -> int:
    value = header.values.get(f"{header.values.get('general.architecture')}.context_length")
    return value if isinstance(value, int) else 0


def _context(command: Command) -> Json:
    """The tokens of one conversation, if the unit says it: several slots share what `--ctx-size` names."""
    slots = command.option("-np", "--parallel") or command.environment.get("LLAMA_ARG_N_PARALLEL") or "1"
    given = command.option("-c", "--ctx-size") or command.environment.get("LLAMA_ARG_CTX_SIZE") or ""
    return {"n_ctx": int(given)} if slots == "1" and _NUMBER.fullmatch(given) else {}
