"""All contexts: saves them before a stop, restores them after a start, and forgets them on request.

The switcher's threads call `ready`, `restore` and `save`; requests call `note_reply` at their end. No method raises. No
request waits for the disk: all work on files happens under one lock that requests do not take.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from systemd_llm_switch.config.records import Config, Model
from systemd_llm_switch.contexts.conversations import Timings
from systemd_llm_switch.contexts.entry import Entry
from systemd_llm_switch.contexts.fingerprint import Fingerprint
from systemd_llm_switch.contexts.folder import FolderProblem
from systemd_llm_switch.contexts.records import Loaded, ModelContexts, Restored, Totals
from systemd_llm_switch.contexts.restoring import Restoring
from systemd_llm_switch.contexts.saving import Saving
from systemd_llm_switch.contexts.session import Session
from systemd_llm_switch.contexts.store import Store
from systemd_llm_switch.contexts.support import refusal
from systemd_llm_switch.contexts.unit import Command
from systemd_llm_switch.contexts.warming import Warming
from systemd_llm_switch.contexts.worth import Rates
from systemd_llm_switch.quoting import quoted

log = logging.getLogger(__name__)

_SWEEP_PAUSE_S = 60.0
_USELESS_LIMIT = 3  # restores in a row of which nothing was reused
USELESS = (
    "nothing of three restored contexts was reused: a model with a sliding window needs `--swa-full` in its unit, a "
    "hybrid or recurrent one a llama-server of build b11549 or later"
)


@dataclass(frozen=True, slots=True)
class _Support:
    """Whether a unit's contexts can be kept: in which store, or why not."""

    why: str | None
    store: Store | None = None
    binding: str = ""


_EDITED = "its unit was changed after it was started; contexts are kept from the next load on"
_UNKNOWN = _Support("its unit was not looked at yet")


class Contexts:
    """Thread-safe."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._work = threading.RLock()  # held for files and slots, for seconds; no request takes it
        self._stores: dict[Path, Store] = {}
        self._supports: dict[str, _Support] = {}  # by unit, as are these
        self._commands: dict[str, Command] = {}
        self._sessions: dict[str, Session] = {}
        self._rates: dict[str, Rates] = {}
        self._useless: dict[str, int] = {}
        self._totals = Totals()
        self._warming = Warming()
        self._counts: Counter[tuple[str, str]] = Counter()  # by model and kind, for /metrics
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._keep_clean, name="contexts", daemon=True).start()

    # --- called by the switcher -----------------------------------------------------------------------

    def configure(self, config: Config) -> None:
        """Replaces the config. Removes contexts that it switches off, and those of models that it no longer has."""
        gone = {it.unit for it in self._config.models.values()} - {it.unit for it in config.models.values()}
        self._config = config
        self._warming.forget({unit for unit in (*gone, *self._commands) if not self._is_warmed(unit)})
        self._tasks.put(lambda: self._reconsider(gone))

    def learn(self, commands: Mapping[str, Command]) -> None:
        """Notes the commands of units, loaded or not, for the status. Does not block."""
        new = {unit: command for unit, command in commands.items() if self._commands.get(unit) != command}
        if new:
            self._commands.update(new)
            self._tasks.put(lambda: self._reconsider(()))

    def ready(self, loaded: Loaded) -> None:
        """A process is ready, or was adopted. Blocks while it reads the folder."""
        unit = loaded.model.unit
        self._warming.make_way()
        self._sessions.pop(unit, None)
        with self._guarded(loaded.model.id):
            self._commands[unit] = loaded.command
            support = self._consider(unit)
            if loaded.is_adopted and not loaded.command.is_run_by(loaded.pid):
                support = self._supports[unit] = _Support(_EDITED)
            if support.why is None and support.store is not None:
                rates = self._rates.setdefault(unit, Rates())
                self._sessions[unit] = Session(loaded, support.store, support.binding, rates)

    def restore(self, loaded: Loaded, wanted: Sequence[Fingerprint]) -> Restored:
        """Fills the slots of a process that has just become ready, before the first request reaches it. Blocks for a
        limited time. `wanted` are the beginnings of the requests that wait for it."""
        restored = Restored()
        with self._guarded(loaded.model.id):
            session = self._sessions.get(loaded.model.unit)
            if session is not None and session.loaded is loaded:
                restored = Restoring(session).run(wanted)
                self._totals.restores += restored.count
                self._totals.tokens_restored += restored.tokens
                self._counts[loaded.model.id, "restored"] += restored.tokens
            if not restored.count and self._is_warmed(loaded.model.unit):
                self._warming.begin(loaded)
        return restored

    def save(self, loaded: Loaded) -> None:
        """Saves what a process has read before it is stopped. Nothing runs on it. Blocks for a limited time."""
        self._warming.make_way()
        with self._guarded(loaded.model.id):
            session = self._sessions.pop(loaded.model.unit, None)
            if session is None or session.loaded.start != loaded.start or not self._is_wanted(loaded.model.unit):
                return
            if self._commands[loaded.model.unit].binding() != session.binding:
                _log_skipped(loaded.model.id, "its unit, or a file of it, changed since it was loaded")
                return
            saving = Saving(session, self._make_room)
            saving.run()
            self._totals.saves += len(saving.saved)
            self._counts[loaded.model.id, "saved"] += sum(entry.tokens for entry in saving.saved)
            self._keep_limit()

    # --- called by requests ---------------------------------------------------------------------------

    def make_way(self) -> None:
        """A request came: nothing is read ahead any more. Does not block."""
        self._warming.make_way()

    def keeps(self, unit: str) -> bool:
        """Whether `note_reply` has a use for the replies of a unit."""
        return unit in self._sessions

    def note_chat(self, unit: str, message: bytes) -> None:
        """A chat was answered; `message` is the body that the backend got. Parses it: call this when the client has its
        answer."""
        if self._is_warmed(unit):
            self._warming.note(unit, message)

    def note_reply(
        self,
        unit: str,
        start: str,
        beginning: Callable[[], Fingerprint],
        message: bytes,
        is_chat: bool,
        reported: object,
    ) -> None:
        """The backend replied: `reported` are its timings, `message` is the body that it got. Does not block."""
        session = self._sessions.get(unit)
        timings = Timings.of(reported) if session is not None and session.loaded.start == start else None
        if session is None or timings is None:
            return
        verdict = session.note_reply(beginning, message, is_chat, timings)
        if verdict is None:
            return
        model, saved_s = session.loaded.model.id, session.rates.read_s(verdict.reused)
        self._totals.tokens_reused += verdict.reused
        self._totals.saved_s += saved_s
        self._counts[model, "reused"] += verdict.reused
        self._counts[model, "saved_ms"] += round(saved_s * 1000)
        self._useless[unit] = self._useless.get(unit, 0) + 1 if verdict.is_useless else 0
        if self._useless[unit] >= _USELESS_LIMIT:
            self._sessions.pop(unit, None)
            self._tasks.put(lambda: self._leave_alone(session))

    def note_paused(self, unit: str, start: str, beginning: Fingerprint, message: bytes) -> None:
        """A chat was cut before its end, and goes on after the next load. Does not block."""
        session = self._sessions.get(unit)
        if session is not None and session.loaded.start == start:
            session.note_paused(beginning, message)

    # --- called for an operator -----------------------------------------------------------------------

    def forget(self, models: Collection[Model]) -> tuple[list[str], int]:
        """Removes the contexts of models, and forgets what their processes would save. Returns the ids of the models
        that had contexts, and the bytes freed. Waits for a save or a restore in progress."""
        units = {model.unit for model in models}
        self._warming.forget(units)
        forgotten, size = set(), 0
        with self._work:
            for unit in self._commands.keys() & units:
                self._consider(unit)  # a proxy that has just started has not read the folder yet
            for unit in units:
                session = self._sessions.get(unit)
                if session is not None:
                    session.take_conversations()
            for store in self._stores.values():
                self._scan(store)
                gone = [entry for entry in store.entries if entry.unit in units]
                forgotten |= {entry.unit for entry in gone}
                size += store.drop(gone)
        return [model.id for model in models if model.unit in forgotten], size

    def model_status(self, model: Model) -> ModelContexts:
        """One model's contexts. Reads no file."""
        support = self._supports.get(model.unit, _UNKNOWN)
        kept = [entry for entry in self._entries() if entry.unit == model.unit]
        size, tokens = sum(entry.size for entry in kept), sum(entry.tokens for entry in kept)
        return ModelContexts(support.why is None, support.why, len(kept), tokens, size)

    def totals(self) -> Totals:
        """All contexts. Reads no file."""
        size = sum(entry.size for entry in self._entries())
        return replace(self._totals, bytes=size, limit_bytes=self._limit_bytes)

    def counts(self) -> Counter[tuple[str, str]]:
        """By model: tokens saved, restored and reused, and `saved_ms` of reading time; since the proxy started."""
        return self._counts.copy()

    # --- the work -------------------------------------------------------------------------------------

    @property
    def _limit_bytes(self) -> int:
        return int(self._config.server.contexts.max_gb * 1e9)

    def _entries(self) -> list[Entry]:
        return [entry for store in list(self._stores.values()) for entry in store.entries]

    def _is_wanted(self, unit: str) -> bool:
        return refusal(self._config, unit) is None

    def _is_warmed(self, unit: str) -> bool:
        return self._config.server.contexts.warm and self._is_wanted(unit)

    def _consider(self, unit: str) -> _Support:
        """Reads a unit's folder again, and removes contexts that no longer belong to it."""
        support = self._supports[unit] = self._look(unit)
        if support.store is not None:
            self._scan(support.store)
            others = [it for it in support.store.entries if it.unit == unit and it.binding != support.binding]
            support.store.drop(others)
            support.store.forget_useless(unit, support.binding)
            useless = support.store.useless.get(support.binding)
            if useless is not None:
                support = self._supports[unit] = _Support(useless)
        return support

    def _look(self, unit: str) -> _Support:
        command = self._commands.get(unit, Command())
        unwanted = refusal(self._config, unit)
        if unwanted is not None:
            self._remove_all({unit})
            return _Support(unwanted)
        if command.problem is not None or command.folder is None:
            return _Support(command.problem)
        store = self._stores.get(command.folder) or Store(command.folder)
        try:
            store.folder.check()
            store.folder.make_private()
        except FolderProblem as problem:
            return _Support(str(problem))
        self._stores[command.folder] = store
        return _Support(None, store, command.binding())

    def _reconsider(self, gone: Iterable[str]) -> None:
        self._remove_all(gone)
        for unit in list(self._commands):
            self._consider(unit)
        self._keep_limit()

    def _remove_all(self, units: Iterable[str]) -> None:
        for store in self._stores.values():
            store.drop([entry for entry in store.entries if entry.unit in set(units)])

    def _leave_alone(self, session: Session) -> None:
        """Restoring is of no use to this unit as it is."""
        unit, store = session.unit, session.store
        log.warning("context_useless model=%s reason=%s", session.loaded.model.id, quoted(USELESS))
        self._supports[unit] = _Support(USELESS)
        self._useless.pop(unit, None)
        store.drop([entry for entry in store.entries if entry.unit == unit])
        store.note_useless(unit, session.binding, USELESS)

    def _make_room(self, session: Session, size: int) -> bool:
        """Removes the least recently used contexts until `size` bytes fit; False if they cannot fit."""
        if size > self._limit_bytes and session.rates.bytes_per_token is not None:
            return False
        size = min(size, self._limit_bytes)
        self._keep_limit(size)
        return session.store.folder.free_bytes() >= size

    def _keep_limit(self, beside: int = 0) -> None:
        """Removes the least recently used contexts until the limit holds and a tenth of each disk is free."""
        entries = sorted(self._entries(), key=lambda entry: entry.used_at)
        size = sum(entry.size for entry in entries) + beside
        for entry in entries:
            store = next(it for it in self._stores.values() if entry in it.entries)
            if size <= self._limit_bytes and store.folder.free_bytes() >= beside:
                continue
            size -= entry.size
            store.drop([entry])

    def _scan(self, store: Store) -> None:
        store.scan(time.time() - self._config.server.contexts.max_age_h * 3600)

    def _keep_clean(self) -> None:
        """The thread for work outside of switches: removes contexts that are too old, and does what requests noted."""
        while True:
            task = self._sweep
            with contextlib.suppress(queue.Empty):
                task = self._tasks.get(timeout=_SWEEP_PAUSE_S)
            with self._guarded("-"):
                task()

    def _sweep(self) -> None:
        for store in self._stores.values():
            self._scan(store)
        self._keep_limit()

    @contextlib.contextmanager
    def _guarded(self, model: str) -> Iterator[None]:
        """Work on files, one task at a time. An error costs a context, never a switch."""
        with self._work:
            try:
                yield
            except OSError as error:
                _log_skipped(model, str(error))
            except Exception:
                log.exception("context_crashed model=%s", model)


def _log_skipped(model: str, reason: str) -> None:
    log.info("context_skipped model=%s reason=%s", model, quoted(reason))
