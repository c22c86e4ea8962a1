"""Every error that a client can get: its HTTP status, type and code, and whether a retry can help.

Knows nothing of HTTP libraries, units or models. The shape is OpenAI's, `{"error": {"message", "type",
"param", "code"}}`: clients lose the message of an error in any other shape (docs/design.md, "For clients").
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from itertools import islice

from systemd_llm_switch.quoting import printable, quoted

# The last resort. A message quotes each foreign part of it, and cuts it to `quoting.LIMIT`.
_MOST_MESSAGE_CHARACTERS = 4000
_RETRY_SHORTLY_S = 2
_MOST_LISTED = 20  # models that a message names


class ProxyError(Exception):
    """An error that the client gets instead of what it asked for.

    `retry_after_s` becomes `Retry-After` (whole seconds, 1 to 59: SDKs ignore longer ones). `permanent` says
    that a retry cannot help: the reply then carries `x-should-retry: false`, which the OpenAI SDKs obey.
    """

    status = 500
    type = "server_error"
    code = "internal_error"
    permanent = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        message = _cut(message)
        super().__init__(message)
        self.message = message
        self.param = param if param is None else printable(param)
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, object]:
        """The error in OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> list[tuple[str, str]]:
        """The headers that a client's retry logic needs besides the status."""
        headers = []
        if self.retry_after_s is not None:
            headers.append(("Retry-After", str(min(59, max(1, round(self.retry_after_s))))))
        if self.permanent:
            headers.append(("x-should-retry", "false"))
        return headers


class InternalError(ProxyError):
    """A fault of the proxy itself. The traceback is in the journal, never in the reply."""


class ClientGone(ProxyError):
    """The client closed the connection. The status is nginx's 499; only the journal shows it."""

    status = 499
    code = "client_closed_request"


# --- the request is wrong: the same request fails again ---------------------------------------------


class RequestError(ProxyError):
    """Base of the errors that the client has to correct."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidJson(RequestError):
    """The body is not valid JSON."""

    code = "invalid_json"


class MissingModel(RequestError):
    """The body names no model."""

    code = "missing_model"

    def __init__(self, known: Iterable[str]) -> None:
        super().__init__(f"the request names no `model`; this proxy has: {_listed(known)}", param="model")


class InvalidRequest(RequestError):
    """The body is JSON, but not a valid request."""


class InvalidApiKey(RequestError):
    """The key is missing or wrong."""

    status = 401
    code = "invalid_api_key"

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), ("WWW-Authenticate", "Bearer")]  # RFC 9110, 15.5.2


class ForbiddenOrigin(RequestError):
    """A web page or a host name that may not use this proxy."""

    status = 403
    code = "forbidden_origin"


class UnknownUrl(RequestError):
    """The route does not exist."""

    status = 404
    code = "unknown_url"


class ModelNotFound(RequestError):
    """The model is not in the config."""

    status = 404
    code = "model_not_found"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"the model {quoted(name)} does not exist; this proxy has: {_listed(known)}", param="model")


class RequestNotFound(RequestError):
    """No request of that number waits."""

    status = 404
    code = "request_not_found"


class ModelNotLoaded(RequestError):
    """The route needs a loaded model, and does not load one."""

    status = 404
    code = "model_not_loaded"

    def __init__(self, name: str) -> None:
        super().__init__(f"the model {quoted(name)} is not loaded; `POST /api/load` loads it", param="model")


class MethodNotAllowed(RequestError):
    """The route exists, but not for this method."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self._allow = ", ".join(allowed)
        super().__init__(f"{printable(path)} does not take {printable(method)}; it takes {self._allow}")

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), ("Allow", self._allow)]


class RequestTimeout(RequestError):
    """The client sends too slowly."""

    status = 408
    code = "request_timeout"


class RequestTooLarge(RequestError):
    """The body is larger than `server.max_body_mb`, or the headers are longer than any client's."""

    status = 413
    code = "request_too_large"

    def __init__(self, limit_mb: float | None) -> None:
        """`limit_mb` is the limit of the body; None if the headers were too long."""
        if limit_mb is None:
            super().__init__("the request's headers are too long; send fewer or shorter ones")
        else:
            super().__init__(
                f"the request body is larger than {limit_mb:g} MB (server.max_body_mb); send less, or raise the limit"
            )


# --- not now: a later request can succeed -----------------------------------------------------------


class QueueFull(ProxyError):
    """As many requests wait as `server.queue_limit` allows."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class OnHold(ProxyError):
    """An operator keeps the VRAM free."""

    status = 503
    code = "on_hold"


class ShuttingDown(ProxyError):
    """The proxy is being stopped."""

    status = 503
    code = "shutting_down"


class TooManyOpenFiles(ProxyError):
    """The process or the system has no descriptor left."""

    status = 503
    code = "too_many_open_files"


class OutOfMemory(ProxyError):
    """The proxy's process gets no more memory."""

    status = 503
    code = "out_of_memory"


class TooManyWatchers(ProxyError):
    """As many clients watch events or logs as may: each holds a thread."""

    status = 503
    code = "too_many_watchers"


class Cancelled(ProxyError):
    """An operator took a waiting request out of the queue. A client must not send it again by itself."""

    status = 503
    code = "request_cancelled"
    permanent = True


class Unloaded(ProxyError):
    """An operator or `server.drain_timeout` ended a running request."""

    status = 503
    code = "model_unloaded"


# --- the model, or the server behind it, failed ---------------------------------------------------


class ModelStartFailed(ProxyError):
    """The unit failed to start. The message says why: systemd's result and the last journal lines."""

    status = 503
    code = "model_start_failed"

    def __init__(self, message: str, *, permanent: bool = False, out_of_memory: bool = False) -> None:
        super().__init__(message, param="model")
        self.permanent = permanent
        self.out_of_memory = out_of_memory


class ModelStartTimeout(ProxyError):
    """The unit ran but was not ready within `server.health_timeout`."""

    status = 504
    code = "model_start_timeout"


class BackendError(ProxyError):
    """The backend runs, but its reply is not valid HTTP."""

    status = 502
    code = "backend_error"


class BackendCrashed(ProxyError):
    """The backend's process ended during the request."""

    status = 502
    code = "backend_crashed"


class BackendTimeout(ProxyError):
    """The backend did not reply within `server.request_timeout`."""

    status = 504
    code = "backend_timeout"


def unexpected(error: Exception) -> ProxyError:
    """What the client gets for an exception that nobody translated."""
    if isinstance(error, ProxyError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        message = "the proxy has too many open files; raise LimitNOFILE= of its unit, or use fewer connections"
        return TooManyOpenFiles(message, retry_after_s=_RETRY_SHORTLY_S)
    if isinstance(error, MemoryError):
        message = "the proxy gets no more memory; try again when fewer requests run, or raise LimitAS= of its unit"
        return OutOfMemory(message, retry_after_s=_RETRY_SHORTLY_S)
    return InternalError("the proxy failed; its journal has the reason")


def _listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    shown = ", ".join(printable(name) for name in islice(names, _MOST_LISTED))
    left = len(names) - _MOST_LISTED
    return f"{shown} and {left} more (`GET /v1/models` lists them)" if left > 0 else shown or "none"


def _cut(message: str) -> str:
    if len(message) <= _MOST_MESSAGE_CHARACTERS:
        return message
    return f"{message[:_MOST_MESSAGE_CHARACTERS]}… ({len(message)} characters in all)"
