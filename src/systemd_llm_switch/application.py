"""The WSGI application: which route answers, who is let in, and what becomes of whatever goes wrong.

web.py dispatches; its quirks end here: refusals in words of its own, and bodies that are never closed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import web

from systemd_llm_switch.errors import InternalError, MethodNotAllowed, ProxyError, UnknownUrl
from systemd_llm_switch.forwarding import Answer
from systemd_llm_switch.handlers import (
    BODY,
    CORS,
    Forwarded,
    Handler,
    Health,
    Hold,
    Load,
    Models,
    OneModel,
    Release,
    Services,
    Status,
    Unload,
    Upstream,
    write_answer,
    write_error,
)
from systemd_llm_switch.proxy import Story
from systemd_llm_switch.routes import FORWARDED

log = logging.getLogger(__name__)

StartResponse = Callable[..., Any]
Wsgi = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

ROUTES: tuple[tuple[str, type[Handler]], ...] = (
    (f"({'|'.join(FORWARDED)})", Forwarded),
    (r"(?:/v1)?/models", Models),
    (r"/v1/models/(.+)", OneModel),
    (r"/health", Health),
    (r"/api/status", Status),
    (r"/api/load|/models/load", Load),
    (r"/api/unload|/models/unload", Unload),
    (r"/api/hold", Hold),
    (r"/api/release", Release),
    (r"/upstream/(.+)", Upstream),
)
POSTED = (*FORWARDED, "/api/load", "/api/unload", "/api/hold", "/api/release")
GOT = ("/v1/models", "/health", "/api/status")
LISTED = f"POST {', '.join(POSTED)}; GET {', '.join(GOT)}; GET and POST /upstream/MODEL/PATH"
_LIKENESS = 0.75  # a missing /v1 and a slip are likely; that /api/chat means /api/load is not


def make_wsgi(services: Services) -> Wsgi:
    """The whole application as a WSGI callable."""
    web.config.debug = False
    mapping: list[object] = []
    for pattern, handler in ROUTES:
        mapping += [pattern, type(handler.__name__, (handler,), {"services": services})]
    return _Closing(_Application(services, mapping).wsgifunc())


class _Application(web.application):  # type: ignore[misc]
    """web.py's dispatch; whatever goes wrong in a route leaves in OpenAI's shape, with a line in the journal."""

    def __init__(self, services: Services, mapping: list[object]) -> None:
        super().__init__(mapping, {}, autoreload=False)
        self._services = services

    def handle(self) -> Any:
        access = self._services.access()
        environ = web.ctx.env
        environ[CORS] = access.cors_headers(environ)
        try:
            access.check(web.ctx.path, environ)
            if access.is_preflight(environ):
                return write_answer(Answer(204, access.preflight_headers(environ), b""))
            return super().handle()
        except ProxyError as error:
            return self._refuse(error)
        except web.HTTPError:
            return self._refuse(_translate_refusal())
        except Exception:
            log.exception("route_crashed path=%s", quote(web.ctx.path))
            return write_error(InternalError("the proxy failed; its journal has the reason"))

    @staticmethod
    def _refuse(error: ProxyError) -> bytes:
        level = logging.WARNING if error.status < 500 else logging.ERROR
        log.log(level, "refused path=%s status=%d reason=%r", quote(web.ctx.path), error.status, error.message)
        return write_error(error)


class _Closing:
    """Keeps hold of a story that goes on as the body: web.py hands the server a chain without `close()`, so a
    body whose client went away would never be ended."""

    def __init__(self, wsgi: Wsgi) -> None:
        self._wsgi = wsgi

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        chunks = self._wsgi(environ, start_response)
        story = environ.pop(BODY, None)
        if environ["REQUEST_METHOD"] == "HEAD":
            return ()
        return chunks if story is None else _StoryBody(chunks, story)


class _StoryBody:
    """A body that ends its story, started or not, when the server is done with it."""

    def __init__(self, chunks: Iterable[bytes], story: Story) -> None:
        self._chunks = chunks
        self._story = story

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)

    def close(self) -> None:
        """Idempotent: closing a generator that has ended does nothing."""
        self._story.close()


def _translate_refusal() -> ProxyError:
    """web.py's own: no such route, no such method."""
    status = int(web.ctx.status[:3])
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = next((value for name, value in web.ctx.headers if name == "Allow"), "")
        return MethodNotAllowed(web.ctx.method, web.ctx.path, [name.strip() for name in allowed.split(",")])
    if status == HTTPStatus.NOT_FOUND:
        near = get_close_matches(web.ctx.path, (*POSTED, *GOT), n=1, cutoff=_LIKENESS)
        meant = f" did you mean {near[0]}?" if near else ""
        return UnknownUrl(f"no such route: {web.ctx.method} {web.ctx.path};{meant} there are {LISTED}")
    return InternalError(f"web.py refused the request with status {status}")
