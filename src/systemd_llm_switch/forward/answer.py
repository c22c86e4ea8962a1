"""A whole answer to a client. Every answer is sent through the `write` that the HTTP side returns for a head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from systemd_llm_switch.dialects.routes import error_of_route
from systemd_llm_switch.errors import ProxyError
from systemd_llm_switch.openai.shapes import JSON_TYPE, dump
from systemd_llm_switch.wsgi import Headers, Write

Start = Callable[[int, Headers], Write]
"""Takes the status and the headers. They leave together with the first part of the body."""


class Sendable(Protocol):
    """A whole answer or an endless one."""

    def send(self, start: Start, *, has_body: bool = True) -> None:
        """Sends the answer; only its head if `has_body` is False (HEAD)."""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def of_error(cls, error: ProxyError, path: str, more: Iterable[tuple[str, str]] = ()) -> Answer:
        """An error in the shape of that route; `more` are further headers."""
        body = error_of_route(path, error.status, error.body())
        return cls(error.status, (JSON_TYPE, *error.headers(), *more), dump(body))

    def send(self, start: Start, *, has_body: bool = True) -> None:
        """Sends the answer; only its head if `has_body` is False (HEAD)."""
        length = (("Content-Length", str(len(self.body))),) if self.body else ()
        write = start(self.status, (*self.headers, *length))
        if has_body and self.body:
            write(self.body)
