"""`GET /models/sse`: an event for each change of a model's status, as llama-server's router sends them."""

from __future__ import annotations

import logging
import threading
import time

from systemd_llm_switch.api.model_list import status_value
from systemd_llm_switch.errors import ClientGone, QueueFull
from systemd_llm_switch.forward.answer import Start
from systemd_llm_switch.openai.sse import KEEP_ALIVE, SSE_HEADERS, frame
from systemd_llm_switch.switching.report import Report
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.waiting import Client, Signal
from systemd_llm_switch.wsgi import Write

log = logging.getLogger(__name__)

_MOST_MODEL_WATCHERS = 4  # each holds a thread
_LOOK_EVERY_S = 0.25  # a shorter status may be missed
_KEEP_ALIVE_S = 10.0


class ModelEvents:
    """Sends the events to the clients that watch. Thread-safe."""

    def __init__(self, switcher: Switcher, report: Report) -> None:
        self._switcher = switcher
        self._report = report
        self._places = threading.BoundedSemaphore(_MOST_MODEL_WATCHERS)

    def send(self, client: Client, start: Start) -> None:
        """Blocks until the client hangs up or the proxy stops. Sends no event for a model's first status, because
        clients take `unloaded` as a failed load.

        Raises:
            QueueFull: too many clients watch already; nothing was sent.
            ClientGone
        """
        if not self._places.acquire(blocking=False):
            raise QueueFull(
                f"{_MOST_MODEL_WATCHERS} clients watch the models already; try again later", retry_after_s=5
            )
        try:
            self._watch(client, start(200, SSE_HEADERS))
        except OSError as error:
            raise ClientGone("the client closed its connection, or reads nothing") from error
        except ClientGone:
            raise
        except Exception:
            log.exception("model_events_crashed")  # the head was sent, so the stream can only end
        finally:
            self._places.release()

    def _watch(self, client: Client, write: Write) -> None:
        known = self._look()  # before the head, after which a client may expect every change
        write(KEEP_ALIVE)
        heard_at = time.monotonic()
        while not self._switcher.is_closing:
            Signal().wait(client, _LOOK_EVERY_S)
            now = self._look()
            changed = [name for name in now if name in known and now[name] != known[name]]
            data = b"".join(_event(name, now[name]) for name in changed)
            if not data and time.monotonic() - heard_at >= _KEEP_ALIVE_S:
                data = KEEP_ALIVE
            if data:
                write(data)
                heard_at = time.monotonic()
            known = now

    def _look(self) -> dict[str, str]:
        return {name: status_value(status) for name, status in self._report.models().items()}


def _event(model: str, status: str) -> bytes:
    return frame({"model": model, "event": "status_change", "data": {"status": status}})
