"""The WSGI application: which route answers, who is let in, and what becomes of whatever goes wrong.

web.py chooses the route, and that is all: the answer goes past it to the server, through the one `write` that
`start_response` returns (PEP 3333). Requests for a model, which are most of all, go past web.py altogether
(docs/performance.md has what that brings).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from difflib import get_close_matches
from http import HTTPStatus
from typing import cast
from urllib.parse import quote

import web

from systemd_llm_switch.api import observation, page
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
    (r"/v1/models/(.+)", OneModel),
    (WATCHED, Watched),
    (r"/props", Props),
    (r"/health", Health),
    (r"/api/status", Status),
    (r"/api/load|/models/load", Load),
    (r"/api/unload|/models/unload", Unload),
    (r"/api/contexts/forget", Forget),
    (r"/api/requests/cancel", Cancel),
    (r"/api/hold", Hold),
    (r"/api/release", Release),
    (r"/upstream/(.+)", Upstream),
    (r"/api/upstream-pass", UpstreamPass),
    *observation.ROUTES,
    *page.ROUTES,
)
POSTED = (*FORWARDED, "/api/load", "/api/unload", "/api/hold", "/api/release", "/api/requests/cancel")
GOT = ("/v1/models", WATCHED, "/props", "/health", "/api/status", *observation.GOT)
LISTED = f"POST {', '.join(POSTED)}; GET {', '.join(GOT)}; GET, POST and DELETE /upstream/MODEL/PATH"
_LIKENESS = 0.75  # a missing /v1 and a slip are likely; that /api/chat means /api/load is not


_RESULT = "llm_switch.result"
_MOST_REASON_CHARACTERS = 1000
_refusals = Throttle()
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
        """Whether a request may come in: asked by the server before it waits for a body."""
        try:
            self._services.access().check(environ["PATH_INFO"], environ)
        except ProxyError:
            return False
        return True

    def max_body_bytes(self) -> int:
        """How large a body may be. Asked when a request's head is read, and so its first look at the config: what is
        asked later of a request for a model is content with `live.latest`."""
        return int(self._services.live.current().server.max_body_mb * 1_000_000)

    def cors_headers(self, origin: str | None) -> Headers:
        """What lets a listed page read an answer of the server's own."""
        return self._services.access().cors_headers({} if origin is None else {"HTTP_ORIGIN": origin})


def _serve(services: Services, access: Access, dispatch: _Dispatch, environ: Environ, start: Start) -> Sendable | None:
    """The answer to a request that may come in; None if it was sent already. Every error leaves in OpenAI's shape,
    with a line in the journal."""
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
    """One line, and of each kind at most so many a second: a stranger without a key can cause it."""
    unlogged = _refusals.admit(error.code)
    if unlogged is None:
        return
    level = logging.WARNING if error.status < 500 else logging.ERROR
    path, reason = _quoted(environ["PATH_INFO"]), quoted(error.message, _MOST_REASON_CHARACTERS)
    log.log(level, "refused path=%s status=%d reason=%s unlogged=%d", path, error.status, reason, unlogged)


def _quoted(path: str) -> str:
    """WSGI's reading of the path's bytes (PEP 3333), as they are written in a URL."""
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
            continue  # web.py cleans up at the end of it
        result = environ.pop(_RESULT, None)
        try:
            if result is None:
                raise MethodNotAllowed(environ["REQUEST_METHOD"], environ["PATH_INFO"], ("GET", "POST"))
            if isinstance(result, Exception):
                raise result
            return cast(Sendable, result)
        finally:
            del result  # its traceback may name this frame: a cycle for the collector

    def handle(self) -> bytes:
        """Called by web.py, which would answer an exception in words of its own."""
        try:
            result = super().handle()
        except web.HTTPError:
            result = _translate_refusal()
        except Exception as error:
            result = error
        web.ctx.env[_RESULT] = result
        return b""


def _translate_refusal() -> ProxyError:
    """web.py's own: no such route, no such method."""
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
