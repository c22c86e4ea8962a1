"""Every error a client can get: its HTTP status, type, code and whether trying again can help.

Knows nothing of HTTP libraries, units or models. The shape is OpenAI's, `{"error": {"message", "type",
"param", "code"}}`; any other shape loses the message in the clients (docs/design.md, "For clients").
"""

from __future__ import annotations

from collections.abc import Iterable


class ProxyError(Exception):
    """An answer other than the one that was asked for.

    `retry_after_s` becomes `Retry-After` (whole seconds, 1 to 59: SDKs ignore longer ones). `permanent` says
    that trying again cannot help: the answer then carries `x-should-retry: false`, which the OpenAI SDKs obey.
    """

    status = 500
    type = "server_error"
    code = "internal_error"
    permanent = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, object]:
        """The error in OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> list[tuple[str, str]]:
        """What the status alone does not tell the client's retry logic."""
        headers = []
        if self.retry_after_s is not None:
            headers.append(("Retry-After", str(min(59, max(1, round(self.retry_after_s))))))
        if self.permanent:
            headers.append(("x-should-retry", "false"))
        return headers


class InternalError(ProxyError):
    """A fault of the proxy's own; its traceback is in the journal, never in the answer."""


class ClientGone(ProxyError):
    """Nobody is left to answer. The status is nginx's 499, seen in the journal only."""

    status = 499
    code = "client_closed_request"


# --- the request is wrong: trying the same again cannot help -------------------------------------


class RequestError(ProxyError):
    """Base of the errors that the client has to mend."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidJson(RequestError):
    """The body is no JSON."""

    code = "invalid_json"


class MissingModel(RequestError):
    """The body names no model."""

    code = "missing_model"

    def __init__(self, known: Iterable[str]) -> None:
        super().__init__(f"you must name a model; this proxy has: {', '.join(known) or 'none'}", param="model")


class InvalidRequest(RequestError):
    """The body is JSON, but not a request."""


class InvalidApiKey(RequestError):
    """No key, or a wrong one."""

    status = 401
    code = "invalid_api_key"

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), ("WWW-Authenticate", "Bearer")]  # RFC 9110, 15.5.2


class ForbiddenOrigin(RequestError):
    """A web page, or a name, that may not drive this proxy."""

    status = 403
    code = "forbidden_origin"


class UnknownUrl(RequestError):
    """No such route."""

    status = 404
    code = "unknown_url"


class ModelNotFound(RequestError):
    """The model is not in the config."""

    status = 404
    code = "model_not_found"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        listed = ", ".join(known) or "none"
        super().__init__(f"the model {name!r} does not exist; this proxy has: {listed}", param="model")


class ModelNotLoaded(RequestError):
    """The route shows a loaded model's backend, and does not load one."""

    status = 404
    code = "model_not_loaded"

    def __init__(self, name: str) -> None:
        super().__init__(f"the model {name!r} is not loaded; `POST /api/load` loads it", param="model")


class MethodNotAllowed(RequestError):
    """The route exists, for another method."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self._allow = ", ".join(allowed)
        super().__init__(f"{path} does not take {method}; it takes {self._allow}")

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), ("Allow", self._allow)]


class RequestTimeout(RequestError):
    """The client sends too slowly."""

    status = 408
    code = "request_timeout"


class RequestTooLarge(RequestError):
    """The body is larger than `server.max_body_mb`, or the head than any client's."""

    status = 413
    code = "request_too_large"

    def __init__(self, limit_mb: float | None) -> None:
        """`limit_mb` is the body's; None where it was the head."""
        if limit_mb is None:
            super().__init__("the request's headers are too long")
        else:
            super().__init__(f"the request body is larger than {limit_mb:g} MB (server.max_body_mb)")


# --- not now --------------------------------------------------------------------------------------


class QueueFull(ProxyError):
    """More requests wait than `server.queue_limit` allows."""

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


class Unloaded(ProxyError):
    """An operator, or the drain bound, ended a running request."""

    status = 503
    code = "model_unloaded"


# --- the model, or the server behind it, failed ---------------------------------------------------


class ModelStartFailed(ProxyError):
    """The unit did not come up. The message says why: systemd's result and the last journal lines."""

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
    """The backend lives but did not answer in HTTP."""

    status = 502
    code = "backend_error"


class BackendCrashed(ProxyError):
    """The backend's process ended under the request."""

    status = 502
    code = "backend_crashed"


class BackendTimeout(ProxyError):
    """The backend did not answer within `server.request_timeout`."""

    status = 504
    code = "backend_timeout"
