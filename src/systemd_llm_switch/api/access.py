"""Who may drive the proxy: API keys, web pages (Origin) and names (Host). Pure; knows no web framework.

A request is looked at before its route: a web page that somebody visits can send requests to loopback, and a name
that a stranger controls can be made to point there (DNS rebinding).
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Mapping

from systemd_llm_switch.config.records import ServerSettings, is_loopback
from systemd_llm_switch.errors import ForbiddenOrigin, InvalidApiKey
from systemd_llm_switch.quoting import quoted
from systemd_llm_switch.wsgi import Headers

_OPEN_PATHS = ("/health",)
_EXPOSED_HEADERS = "ServerSettings-Timing, X-LLM-Switch-Repaired, Retry-After"
_PREFLIGHT_AGE_S = "600"


class Access:
    """The rules of one config. `host` is the address that is really listened on."""

    def __init__(self, server: ServerSettings, host: str) -> None:
        self._server = server
        self._is_loopback = is_loopback(host)
        self._allowed_hosts = frozenset(map(host_name, server.allowed_hosts))
        self._keys = tuple(key.encode() for key in server.api_keys)

    def check(self, path: str, environ: Mapping[str, str]) -> bool:
        """Lets a request in, or raises. Tells whether it is a preflight, which is answered as such.

        Raises:
            ForbiddenOrigin: a page of another site, or a name that is none of ours.
            InvalidApiKey
        """
        self._check_host(environ.get("HTTP_HOST"))
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and not self._is_known(origin, environ.get("HTTP_HOST")):
            raise ForbiddenOrigin(
                f"pages of {quoted(origin)} may not use this proxy; add the origin to server.cors_origins if they may"
            )
        is_preflight = origin is not None and self._is_preflight(origin, environ)
        if path not in _OPEN_PATHS and not is_preflight:
            self._check_key(environ.get("HTTP_AUTHORIZATION", ""))
        return is_preflight

    def _is_preflight(self, origin: str, environ: Mapping[str, str]) -> bool:
        """Whether a listed page asks if it may send a request; browsers never send a key along with that."""
        is_question = "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ and environ.get("REQUEST_METHOD") == "OPTIONS"
        return is_question and self._is_listed(origin)

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
        if not self._is_loopback or host is None or _names_loopback(host):
            return
        name = host_name(host)
        if name not in self._allowed_hosts:
            raise ForbiddenOrigin(
                f"this proxy does not answer to the name {quoted(name)}; add it to server.allowed_hosts if it should"
            )

    def _is_known(self, origin: str, host: str | None) -> bool:
        """Ours are the listed ones, and pages that came from this very address."""
        return self._is_listed(origin) or (bool(host) and origin.partition("://")[2] == host)

    def _is_listed(self, origin: str) -> bool:
        return origin in self._server.cors_origins or "*" in self._server.cors_origins

    def _check_key(self, authorization: str) -> None:
        if not self._keys:
            if not self._is_loopback and not self._server.allow_unauthenticated:
                raise InvalidApiKey("this proxy is open to the network and has no server.api_keys")
            return
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode("latin-1")  # WSGI's reading of the header's bytes (PEP 3333)
        # Every key is compared, each in constant time: neither which one nor how much of it fits can be timed.
        fits = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(fits):
            raise InvalidApiKey("a valid `Authorization: Bearer KEY` is needed (server.api_keys)")


@functools.lru_cache(maxsize=16)  # nearly all requests come by the same name
def _names_loopback(host: str) -> bool:
    return is_loopback(host_name(host))


def host_name(host: str) -> str:
    """The name in a Host header or in the config: without port, brackets and the root's dot, in small letters."""
    if host.startswith("["):
        name = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        name = host.partition(":")[0]
    else:
        name = host  # a bare IPv6 address, if it has colons at all
    return name.lower().removesuffix(".")
