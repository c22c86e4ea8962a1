"""The interface between server and application: what the server needs, and a request as WSGI has it (PEP 3333)."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Iterable
from typing import Any, Protocol

from cheroot import server as cheroot_server

from systemd_llm_switch.errors import ClientGone
from systemd_llm_switch.wsgi import CLIENT_FD, RAW_PATH, Environ, Headers, StartResponse


class ServedApplication(Protocol):
    """What the server needs of an application. It asks again for each request, because the config may change."""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answers a request through the `write` that `start_response` returns (WSGI).

        Raises:
            ClientGone: the answer could not be sent to its end, so its connection must be closed.
        """

    def admits(self, environ: Environ) -> bool:
        """Whether a request is allowed; the server asks before it waits for a body."""

    def max_body_bytes(self) -> int:
        """How large a body may be."""

    def cors_headers(self, origin: str | None) -> Headers:
        """What lets a listed page read an answer of the server's own."""


def surroundings(port: int) -> Environ:
    """The part of the environ that is the same for every request."""
    return {
        "SCRIPT_NAME": "",
        "SERVER_NAME": "systemd-llm-switch",
        "SERVER_PORT": str(port),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


class Gateway(cheroot_server.Gateway):
    """WSGI for our own application: it leaves out what cheroot checks in any application."""

    def respond(self) -> None:
        """Calls the application, which writes the answer.

        Raises:
            OSError: the client is gone or reads nothing.
        """
        request = self.req
        try:
            request.server.wsgi_app(self.environ(), request.start_response)
        except ClientGone as gone:
            # cheroot closes the connection of a request that ends like this, and logs nothing.
            raise ConnectionAbortedError(errno.ECONNABORTED, str(gone)) from gone

    def environ(self) -> dict[str, Any]:
        """The request as the application gets it."""
        request = self.req
        head, connection = request.head, request.conn
        environ: Environ = request.server.surroundings | head.fields
        environ["REQUEST_METHOD"] = head.method
        environ["PATH_INFO"] = head.path
        environ["QUERY_STRING"] = head.query
        environ["SERVER_PROTOCOL"] = head.version
        environ["REMOTE_ADDR"] = connection.remote_addr or ""
        environ["wsgi.input"] = io.BytesIO(request.body)
        environ[RAW_PATH] = head.raw_path
        environ[CLIENT_FD] = connection.socket.fileno()
        return environ
