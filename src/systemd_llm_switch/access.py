"""Who may drive the proxy: API keys, web pages (Origin) and names (Host). Pure; knows no web framework.

A request is looked at before its route: a web page that somebody visits can send requests to loopback, and a name
that a stranger controls can be made to point there (DNS rebinding).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from systemd_llm_switch.config import Server, is_loopback
from systemd_llm_switch.errors import ForbiddenOrigin, InvalidApiKey

_OPEN_PATHS = ("/health",)
_EXPOSED_HEADERS = "Server-Timing, X-LLM-Switch-Repaired, Retry-After"
_PREFLIGHT_AGE_S = "600"

Headers = tuple[tuple[str, str], ...]


class Access:
    """The rules of one config. `host` is the address that is really listened on."""

    def __init__(self, server: Server, host: str) -> None:
        self._server = server
        self._is_loopback = is_loopback(host)
        self._keys = tuple(key.encode() for key in server.api_keys)

    def check(self, path: str, environ: Mapping[str, str]) -> None:
        """Lets a request in, or raises.

        Raises:
            ForbiddenOrigin: a page of another site, or a name that is none of ours.
            InvalidApiKey
        """
        self._check_host(environ.get("HTTP_HOST"))
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and not self._is_known(origin, environ.get("HTTP_HOST")):
            raise ForbiddenOrigin(
                f"pages of {origin!r} may not use this proxy; add the origin to server.cors_origins if they may"
            )
        if path not in _OPEN_PATHS and environ.get("REQUEST_METHOD") != "OPTIONS":
            self._check_key(environ.get("HTTP_AUTHORIZATION", ""))

    def cors_headers(self, environ: Mapping[str, str]) -> Headers:
        """What lets a listed page read an answer (https://fetch.spec.whatwg.org/#http-cors-protocol)."""
        origin = environ.get("HTTP_ORIGIN")
        if origin is None or not self._is_listed(origin):
            return ()
        return (
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", _EXPOSED_HEADERS),
            ("Vary", "Origin"),
        )

    def preflight_headers(self, environ: Mapping[str, str]) -> Headers:
        """The answer to a page's question whether it may send a request."""
        return (
            ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
            ("Access-Control-Allow-Headers", environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "*")),
            ("Access-Control-Max-Age", _PREFLIGHT_AGE_S),
        )

    def _check_host(self, host: str | None) -> None:
        if not self._is_loopback or host is None:
            return
        name = _host_name(host)
        if not is_loopback(name) and name not in self._server.allowed_hosts:
            raise ForbiddenOrigin(
                f"this proxy does not answer to the name {name!r}; add it to server.allowed_hosts if it should"
            )

    def _is_known(self, origin: str, host: str | None) -> bool:
        return self._is_listed(origin) or (host is not None and urlsplit(origin).netloc == host)

    def _is_listed(self, origin: str) -> bool:
        return origin in self._server.cors_origins or "*" in self._server.cors_origins

    def _check_key(self, authorization: str) -> None:
        if not self._keys:
            if not self._is_loopback and not self._server.allow_unauthenticated:
                raise InvalidApiKey("this proxy is open to the network and has no server.api_keys")
            return
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode("utf-8", "surrogateescape")
        # Every key is compared, each in constant time: neither which one nor how much of it fits can be timed.
        fits = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(fits):
            raise InvalidApiKey("a valid `Authorization: Bearer KEY` is needed (server.api_keys)")


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()
