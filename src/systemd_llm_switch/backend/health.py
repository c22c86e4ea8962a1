"""A backend's readiness, asked for at `/health` with `requests`: llama-server says 503 while it loads, 200 when ready.

The program that listens there is not trusted. One deadline covers a whole answer, however slowly its bytes come. No
redirect is followed, and the body is not read.
"""

from __future__ import annotations

import enum
import math
import socket
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError

from systemd_llm_switch.backend.lean_requests import HTTPAdapter, requests
from systemd_llm_switch.waiting import remaining_s

_MAX_BYTES = 1 << 16  # of an answer: http.client reads 8 KiB at a time, and at most a hundred header fields


class Readiness(enum.Enum):
    """The state of a backend, as far as is known."""

    SILENT = "silent"  # nothing listens
    MUTE = "mute"  # something listens but does not answer
    LOADING = "loading"
    READY = "ready"


class HealthReply(NamedTuple):
    """One answer, or the lack of one. `words` describes it in a clause: "it was still loading"."""

    readiness: Readiness
    words: str


UNREACHED = HealthReply(Readiness.SILENT, "nothing listened")
_MUTE = HealthReply(Readiness.MUTE, "something accepted the connection and did not answer")
_BROKEN = HealthReply(Readiness.MUTE, "something accepted the connection and closed it without an answer in HTTP")
_LOADING = HealthReply(Readiness.LOADING, "it was still loading")
_READY = HealthReply(Readiness.READY, "it was ready")


class HealthCheck:
    """Asks one URL's `/health`. Thread-safe."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/health"
        self._adapter = _Adapter()
        self._lock = threading.Lock()

    def ask(self, timeout_s: float, headers: Mapping[str, str]) -> HealthReply:
        """Asks once. Takes at most `timeout_s` to connect, and as long again to read. Never raises."""
        question = requests.Request("GET", self._url, headers={"Connection": "close", **headers})
        try:
            with self._lock:
                # Uses the adapter directly: a session would read and decompress the body of a redirect.
                reply = self._adapter.send(question.prepare(), stream=True, timeout=timeout_s)
                reply.close()
                self._adapter.close()
        except requests.RequestException as error:
            health = _explain(error)
            _let_go(error)
            return health
        if reply.status_code == requests.codes.ok:
            return _READY
        if reply.status_code == requests.codes.unavailable:
            return _LOADING
        return HealthReply(Readiness.LOADING, f"it answered /health with {reply.status_code} instead of 200")


def _explain(error: requests.RequestException) -> HealthReply:
    if isinstance(error, requests.Timeout):
        return _MUTE
    cause = error.args[0] if error.args else None
    return UNREACHED if isinstance(getattr(cause, "reason", None), NewConnectionError) else _BROKEN


class _Socket(socket.socket):
    """A socket whose timeout covers all reads together (the usual one starts again with each read), and which reads at
    most `_MAX_BYTES`."""

    _deadline = math.inf
    _left_bytes = _MAX_BYTES

    def settimeout(self, value: float | None) -> None:
        self._deadline = math.inf if value is None else time.monotonic() + value
        super().settimeout(value)

    def recv_into(self, *arguments: Any, **more: Any) -> int:
        left_s = remaining_s(self._deadline)
        if left_s == 0 or self._left_bytes <= 0:
            raise TimeoutError
        super().settimeout(None if left_s == math.inf else left_s)
        count = super().recv_into(*arguments, **more)
        self._left_bytes -= count
        return count


class _Connection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        plain: socket.socket = self.sock
        self.sock = _Socket(plain.family, plain.type, plain.proto, fileno=plain.detach())
        self.sock.settimeout(self.timeout)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _Adapter(HTTPAdapter):
    """Makes connections with such sockets."""

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        super().init_poolmanager(*arguments, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool}


def _let_go(error: BaseException | None) -> None:
    """Clears the frames of an error. urllib3's errors and their frames refer to each other, and so keep the callers'
    frames, with the file descriptor of a watched process, until Python's collector runs."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
