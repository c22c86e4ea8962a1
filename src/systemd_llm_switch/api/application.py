"""The WSGI application: checks access, chooses the route, and turns every error into an answer.

web.py only chooses the route: the answer goes directly to the server, through the `write` that `start_response` returns
(PEP 3333). Requests for a model, which are most requests, do not use web.py at all (docs/performance.md says what that
saves).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from difflib import get_close_matches
from http import HTTPStatus
from typing import cast
from urllib.parse import quote

import web

from systemd_llm_switch.api import monitoring, page
from systemd_llm_switch.api.access import Access
from systemd_llm_switch.api.handlers import (
    Cancel,
    Forget,
    Forwarded,
    Handler,
    Health,
    Hold,
    Load,
    Models,
    OneModel,
    Props,
    Release,
    Status,
    Unload,
    Upstream,
    UpstreamPass,
    Watched,
    forward,
    watch,
)
from systemd_llm_switch.api.services import Services
from systemd_llm_switch.errors import (
    ClientGone,
    InternalError,
    MethodNotAllowed,
    ProxyError,
    UnknownUrl,
    unexpected,
)
from systemd_llm_switch.forward.answer import Answer, Sendable, Start
from systemd_llm_switch.openai.endpoints import FORWARDED, TAKEN
from systemd_llm_switch.quoting import LIMIT, printable, quoted
from systemd_llm_switch.throttle import Throttle
from systemd_llm_switch.wsgi import Environ, Headers, StartResponse, Write

log = logging.getLogger(__name__)

WATCHED = "/models/sse"
ROUTES: tuple[tuple[str, type[Handler]], ...] = (
    (f"({'|'.join(TAKEN)})", Forwarded),
    (r"(?:/v1)?/models", Models),
    (WATCHED, Watched),
    (r"/props", Props),
    (r"/health", Health),
    (r"/api/status", Status),
    (r"/api/load|/models/load", Load),
    (r"/api/unload|/models/unload", Unload),
    (r"(?:/v1)?/models/(.+)", OneModel),  # below the routes of llama.cpp's router, which are no ids
    (r"/api/contexts/forget", Forget),
    (r"/api/requests/cancel", Cancel),
    (r"/api/hold", Hold),
    (r"/api/release", Release),
    (r"/upstream/(.+)", Upstream),
    (r"/api/upstream-pass", UpstreamPass),
    *monitoring.ROUTES,
    *page.ROUTES,
)
_OWN_POSTED = ("load", "unload", "hold", "release", "contexts/forget", "requests/cancel")
POSTED = (*FORWARDED, *(f"/api/{name}" for name in _OWN_POSTED))
GOT = ("/v1/models", WATCHED, "/props", "/health", "/api/status", *monitoring.GOT)
LISTED = f"POST {', '.join(POSTED)}; GET {', '.join(GOT)}; GET, POST and DELETE /upstream/MODEL/PATH"
_LIKENESS = 0.75  # suggests a route for a missing /v1 or a typing error, but not /api/load for /api/chat


_RESULT = "llm_switch.result"
_MOST_REASON_CHARACTERS = 1000


def _log_unlogged(kind: str, count: int) -> None:
    """How many refusals of a burst had no line."""
    log.warning("more_refused kind=%s unlogged=%d", quoted(kind), count)


_refusals = Throttle(_log_unlogged)
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus} | {
    ClientGone.status: f"{ClientGone.status} Client Closed Request"
}


class Application:
    """The whole application: a WSGI callable, and what the server asks of it before a request is read."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._dispatch = _Dispatch(services)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Writes the answer, and returns nothing to send.

        Raises:
            ClientGone: the answer could not be sent to its end, so its connection must be closed.
        """
        access = self._services.access()

        def start(status: int, headers: Headers) -> Write:
            line = _STATUS_LINES.get(status) or f"{status} Backend Status"
            return start_response(line, [*headers, *access.cors_headers(environ)])

        answer = _serve(self._services, access, self._dispatch, environ, start)
        if answer is not None:
            answer.send(start, has_body=environ["REQUEST_METHOD"] != "HEAD")
        return ()

    def admits(self, environ: Environ) -> bool:
        """Whether a request is allowed. The server asks before it waits for a body."""
        try:
            self._services.access().check(environ["PATH_INFO"], environ)
        except ProxyError:
            return False
        return True

    def max_body_bytes(self) -> int:
        """How large a body may be. The server asks after it has read a request's head. This is the request's first look
        at the config, so it notices an edit; the later steps of a request for a model use `live.latest`."""
        return int(self._services.live.current().server.max_body_mb * 1_000_000)

    def cors_headers(self, origin: str | None) -> Headers:
        """What lets a listed page read an answer of the server's own."""
        return self._services.access().cors_headers({} if origin is None else {"HTTP_ORIGIN": origin})


def _serve(services: Services, access: Access, dispatch: _Dispatch, environ: Environ, start: Start) -> Sendable | None:
    """Checks access and answers the request; returns None if the answer was sent already. Every error gets OpenAI's
    shape and a line in the journal."""
    path = environ["PATH_INFO"]
    try:
        if access.check(path, environ):
            return Answer(204, access.preflight_headers(environ), b"")
        if path in TAKEN and environ["REQUEST_METHOD"] == "POST":
            forward(services, TAKEN[path], environ, start)
            return None
        if path == WATCHED and environ["REQUEST_METHOD"] == "GET":
            watch(services, environ, start)
            return None
        return dispatch.answer(environ)
    except ClientGone:
        raise
    except ProxyError as error:
        _log_refusal(environ, error)
        return Answer.of_error(error, path)
    except Exception as error:
        refusal = unexpected(error)
        if isinstance(refusal, InternalError):
            log.exception("route_crashed path=%s", _quoted(path))
        else:
            _log_refusal(environ, refusal)
        return Answer.of_error(refusal, path)


def _log_refusal(environ: Environ, error: ProxyError) -> None:
    """Logs one line. The lines per second are limited for each kind, because a client without a key can cause them."""
    unlogged = _refusals.admit(error.code)
    if unlogged is None:
        return
    level = logging.WARNING if error.status < 500 else logging.ERROR
    path, reason = _quoted(environ["PATH_INFO"]), quoted(error.message, _MOST_REASON_CHARACTERS)
    log.log(level, "refused path=%s status=%d reason=%s unlogged=%d", path, error.status, reason, unlogged)


def _quoted(path: str) -> str:
    """The path as it is written in a URL, cut; WSGI decodes its bytes as latin-1 (PEP 3333)."""
    return printable(quote(path[: LIMIT + 1].encode("latin-1")))


class _Dispatch(web.application):  # type: ignore[misc]
    """web.py's choice of a route."""

    def __init__(self, services: Services) -> None:
        web.config.debug = False
        mapping: list[object] = []
        for pattern, handler in ROUTES:
            mapping += [pattern, type(handler.__name__, (handler,), {"services": services})]
        super().__init__(mapping, {}, autoreload=False)
        self._wsgi = self.wsgifunc()

    def answer(self, environ: Environ) -> Sendable:
        """The route's answer.

        Raises:
            ProxyError, and whatever goes wrong in the route.
        """
        for _ in self._wsgi(environ, lambda *_: None):
            continue  # web.py cleans up after the last item
        result = environ.pop(_RESULT, None)
        try:
            if result is None:
                raise MethodNotAllowed(environ["REQUEST_METHOD"], environ["PATH_INFO"], ("GET", "POST"))
            if isinstance(result, Exception):
                raise result
            return cast(Sendable, result)
        finally:
            del result  # its traceback may refer to this frame, which would be a reference cycle

    def handle(self) -> bytes:
        """Keeps the route's result or exception for `answer`. web.py calls it, and would write its own error page."""
        try:
            result = super().handle()
        except web.HTTPError:
            result = _translate_refusal()
        except Exception as error:
            result = error
        web.ctx.env[_RESULT] = result
        return b""


def _translate_refusal() -> ProxyError:
    """The error for a request that web.py refused: unknown route or wrong method."""
    status = int(web.ctx.status[:3])
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = next((value for name, value in web.ctx.headers if name == "Allow"), "")
        return MethodNotAllowed(web.ctx.method, web.ctx.path, [name.strip() for name in allowed.split(",")])
    if status == HTTPStatus.NOT_FOUND:
        near = get_close_matches(web.ctx.path[:LIMIT], (*POSTED, *GOT), n=1, cutoff=_LIKENESS)
        meant = f" did you mean {near[0]}?" if near else ""
        return UnknownUrl(
            f"no such route: {printable(web.ctx.method)} {printable(web.ctx.path)};{meant} there are {LISTED}"
        )
    return InternalError(f"web.py refused the request with status {status}")
