"""The operator's commands: load, unload, hold, release. Each blocks until it is done. A file remembers a hold across
restarts. Must not know HTTP."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection

from systemd_llm_switch.config.records import Model
from systemd_llm_switch.errors import ModelStartFailed, ProxyError
from systemd_llm_switch.switching.adoption import Adoption
from systemd_llm_switch.switching.hold_file import Held, HoldFile
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.switching.unloading import Unloading
from systemd_llm_switch.systemd.manager import SystemdError
from systemd_llm_switch.waiting import Client

log = logging.getLogger(__name__)

_LOOK_TIMEOUT_S = 0.5  # systemd answers within milliseconds or not at all
_LOOK_PAUSE_S = 0.25


class Operations:
    """Thread-safe. A caller that hangs up ends its wait, but not the operation."""

    def __init__(self, switcher: Switcher, adoption: Adoption, file: HoldFile) -> None:
        self._switcher = switcher
        self._adoption = adoption
        self._file = file
        self._lock = threading.Lock()  # a hold and the file that remembers it change together
        self._looking = threading.Lock()
        self._looked_at = -math.inf

    def load(self, model: Model, client: Client) -> None:
        """Loads a model as a request would.

        Raises:
            ProxyError: it cannot be loaded.
            ClientGone: the caller hung up. The load ends too, unless another request waits for the model.
        """
        lease = self._switcher.lease(model)
        try:
            while not lease.wait(client, 60):
                continue
        finally:
            self._switcher.release(lease)

    def begin_load(self, model: Model) -> None:
        """Loads a model without waiting; the status shows the outcome."""
        self._begin("load", lambda: self.load(model, Client(None)))

    def unload(self, models: Collection[Model], force: bool, client: Client | None) -> list[Model]:
        """Stops models after their running requests or, with `force`, at once; also models that were started by hand.
        Returns the models that ran. Without a `client`, does not wait for the stop.

        Raises:
            ClientGone, ShuttingDown: the wait is over; the unloading goes on.
            ModelStartFailed: a unit did not stop, or systemd cannot be asked.
        """
        units = [model.unit for model in models]
        self._adoption.find(units)
        present = self._switcher.present
        if client is None:
            self._switcher.unload(units, force)
        else:
            unloading = Unloading(units)
            self._switcher.unload(units, force, unloading)
            self._wait(unloading, client)
        return [model for model in models if model.unit in present]

    def hold(self, left_s: float, force: bool, pause: bool, client: Client | None) -> str | None:
        """Frees all VRAM and rejects requests for `left_s` seconds (inf: until released). With `pause`, running answers
        go on afterwards. Returns a warning for the operator, if there is one.

        Raises: as `unload` does; the hold is in force all the same.
        """
        warning = None
        with self._lock:
            try:
                self._file.write(time.time() + left_s)
            except OSError as error:
                log.error("hold_not_saved path=%s reason=%r", self._file.path, str(error))
                warning = f"a restart of the proxy ends the hold, since {self._file.path} cannot be written: {error}"
            self._switcher.hold(None if left_s == math.inf else time.monotonic() + left_s, force, pause)
        if client is None:
            self._begin("hold", lambda: self.complete(Client(None)))
        else:
            self.complete(client)
        return warning

    def release(self) -> str | None:
        """Serves requests again. Returns a warning for the operator, if there is one."""
        with self._lock:
            self._switcher.release_hold()
            try:
                self._file.clear()
            except OSError as error:
                log.error("hold_not_forgotten path=%s reason=%r", self._file.path, str(error))
                return f"the hold comes back with a restart of the proxy, since {self._file.path} stays: {error}"
        return None

    def resume(self) -> Held | None:
        """Continues the hold of an earlier proxy, if one is in force. Does not block; `complete` frees what is still
        loaded."""
        held = self._file.read()
        if held is not None:
            until = None if held.until == math.inf else held.until - time.time() + time.monotonic()
            self._switcher.hold(until, force=False)
        return held

    def complete(self, client: Client) -> None:
        """Unloads everything for the hold, unless the hold ends first, and remembers that this is done. What is started
        by hand later may then go on running, even when the proxy restarts.

        Raises: as `unload` does.
        """
        try:
            self._adoption.find(self._switcher.units())
            unloading = Unloading(None)
            self._switcher.watch(unloading)
            self._wait(unloading, client)
        except ModelStartFailed as error:
            raise ModelStartFailed(f"the models are on hold, but not all are unloaded: {error.message}") from error
        try:
            self._file.note_freed()
        except OSError as error:
            log.warning("hold_not_saved path=%s reason=%r", self._file.path, str(error))

    def look(self) -> None:
        """Notices models that were started by hand, or were still loading when the proxy started. So the status is
        right before a request asks for one of them. Blocks for half a second at most; never raises."""
        is_idle = not (self._switcher.is_switching or self._switcher.on_hold)
        if not is_idle or time.monotonic() - self._looked_at < _LOOK_PAUSE_S:
            return
        if self._looking.acquire(blocking=False):
            thread = threading.Thread(target=self._look, name="look", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the kernel refuses one more thread
                self._looking.release()
                log.warning("look_failed %s", error)
            else:
                thread.join(_LOOK_TIMEOUT_S)

    def _look(self) -> None:
        try:
            self._adoption.adopt(is_look=True)
        except (SystemdError, OSError) as error:  # OSError: no file descriptor is left
            log.warning("look_failed %s", error)
        finally:
            self._looked_at = time.monotonic()
            self._looking.release()

    @staticmethod
    def _begin(name: str, do: Callable[[], None]) -> None:
        """Runs an operation in the background."""

        def run() -> None:
            try:
                do()
            except ProxyError as error:
                log.error("%s_failed reason=%r", name, error.message)

        threading.Thread(target=run, name=name, daemon=True).start()

    def _wait(self, unloading: Unloading, client: Client) -> None:
        try:
            unloading.wait(client)
        finally:
            self._switcher.forget(unloading)
