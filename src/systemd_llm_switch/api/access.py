"""Who may use the proxy: API keys, web pages (Origin) and host names (Host). Must not know the web framework.

Each request is checked before its route. A web page can send requests to loopback and to the local network, and an
attacker can make their own host name point there (DNS rebinding).
"""

from __future__ import annotations

import functools
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Mapping

from systemd_llm_switch.config.records import ServerSettings, is_loopback
from systemd_llm_switch.errors import ForbiddenOrigin, InvalidApiKey
from systemd_llm_switch.quoting import quoted
from systemd_llm_switch.wsgi import Headers

_OPEN_PATHS = ("/health", "/")  # the page must load before it can ask for the key
_OPEN_FOLDER = "/static/"
_PASS_FOLDER, _PASS_COOKIE = "/upstream/", "llm_switch_upstream"
_PASS_SECRET = secrets.token_bytes(32)  # a pass ends with the proxy that gave it
_MOST_COOKIE_CHARACTERS = 4000
_EXPOSED_HEADERS = "Server-Timing, X-LLM-Switch-Repaired, Retry-After"
_PREFLIGHT_AGE_S = "600"
_MOST_ASKED_CHARACTERS = 2000
_ANY_HEADER = "*, Authorization"  # the star does not include Authorization
# These are never public names. Containers reach the machine by the last two.
_LOCAL_NAMES = ("localhost", "host.docker.internal", "host.containers.internal")
_LOOPBACK_ORIGIN = re.compile(r"(https?://)(?:localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Access:
    """The rules of one config. `host` is the address that the proxy actually listens on."""

    def __init__(self, server: ServerSettings, host: str) -> None:
        self._server = server
        self._is_loopback = is_loopback(host)
        self._keys = tuple(key.encode() for key in server.api_keys)
        # A key protects under any name. On loopback the name is checked as well.
        self._checks_host = self._is_loopback or not self._keys
        # Nobody else chooses the name that it listens on, and the watchdog asks by it.
        self._hosts = frozenset(map(host_name, (*server.allowed_hosts, host)))
        if not self._is_loopback:
            self._hosts |= _names_of_this_machine()
        self._origins = frozenset(form for origin in server.cors_origins for form in _forms(origin))

    def check(self, path: str, environ: Mapping[str, str]) -> bool:
        """Checks a request. Returns True if it is a preflight, which must be answered with `preflight_headers`.

        Raises:
            ForbiddenOrigin: it comes from another site's page, or names a host that is not ours.
            InvalidApiKey
        """
        self._check_host(environ.get("HTTP_HOST"))
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and not self._is_known(origin, environ.get("HTTP_HOST")):
            raise ForbiddenOrigin(
                f"pages of {quoted(origin)} may not use this proxy; add the origin to server.cors_origins if they may"
            )
        is_preflight = origin is not None and self._is_preflight(origin, environ)
        if not (self._is_open(path) or is_preflight or (path.startswith(_PASS_FOLDER) and self._has_pass(environ))):
            self._check_key(environ)
        return is_preflight

    def _is_open(self, path: str) -> bool:
        is_page = path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
        return is_page or (path == "/metrics" and self._server.metrics_open)

    def pass_cookie(self) -> str:
        """What lets a browser's tab open a model's own web page, which cannot send a key: good for `/upstream/` alone,
        until the keys change, the proxy ends or the browser is closed. Only for whoever has shown a key."""
        return f"{_PASS_COOKIE}={self._pass}; Path={_PASS_FOLDER}; HttpOnly; SameSite=Strict"

    @functools.cached_property
    def _pass(self) -> str:
        return hmac.new(_PASS_SECRET, b"\0".join(self._keys), "sha256").hexdigest()

    def _has_pass(self, environ: Mapping[str, str]) -> bool:
        if not self._keys:
            return False  # without keys nothing is asked for, or nobody may come in
        cookies = environ.get("HTTP_COOKIE", "")[:_MOST_COOKIE_CHARACTERS].split(";")
        given = (value for name, _, value in (it.strip().partition("=") for it in cookies) if name == _PASS_COOKIE)
        return any(hmac.compare_digest(it.encode("latin-1"), self._pass.encode()) for it in given)

    def _is_preflight(self, origin: str, environ: Mapping[str, str]) -> bool:
        """Whether a listed page asks if it may send a request. Browsers never send a key with that question."""
        is_question = "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ and environ.get("REQUEST_METHOD") == "OPTIONS"
        return is_question and self._is_listed(origin)

    def cors_headers(self, environ: Mapping[str, str]) -> Headers:
        """The headers that let a listed page read an answer (https://fetch.spec.whatwg.org/#http-cors-protocol)."""
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
        asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
        return (
            ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
            ("Access-Control-Allow-Headers", asked if 0 < len(asked) <= _MOST_ASKED_CHARACTERS else _ANY_HEADER),
            ("Access-Control-Max-Age", _PREFLIGHT_AGE_S),
        )

    def _check_host(self, host: str | None) -> None:
        if not self._checks_host or host is None or _names_loopback(host):
            return
        name = host_name(host)
        if name in self._hosts or (not self._is_loopback and _is_address(name)):
            return
        raise ForbiddenOrigin(
            f"this proxy does not answer to the name {quoted(name)}; add it to server.allowed_hosts if it should"
        )

    def _is_known(self, origin: str, host: str | None) -> bool:
        """Whether the page is listed or comes from the proxy's own address."""
        return self._is_listed(origin) or (bool(host) and origin.partition("://")[2] == host)

    def _is_listed(self, origin: str) -> bool:
        return origin in self._origins or "*" in self._origins

    def _check_key(self, environ: Mapping[str, str]) -> None:
        if not self._keys:
            if not self._is_loopback and not self._server.allow_unauthenticated:
                raise InvalidApiKey("this proxy is open to the network and has no server.api_keys")
            return
        scheme, _, key = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        sent = [key] if scheme.lower() == "bearer" else []
        if "HTTP_X_API_KEY" in environ:
            sent.append(environ["HTTP_X_API_KEY"])  # Anthropic's clients send it only there
        given = [it.strip().encode("latin-1") for it in sent]  # WSGI decodes a header's bytes as latin-1 (PEP 3333)
        # Every key is compared, each in constant time, so the time reveals nothing about the keys.
        fits = [hmac.compare_digest(it, known) for it in given for known in self._keys]
        if not any(fits):
            raise InvalidApiKey(
                "this proxy needs a key of server.api_keys, as `Authorization: Bearer KEY` or `x-api-key: KEY`"
            )


def _names_of_this_machine() -> frozenset[str]:
    """Its host name, its mDNS name, and the names that containers use. An attacker cannot choose any of them."""
    name = host_name(socket.gethostname())
    return frozenset((*_LOCAL_NAMES, name, f"{name.partition('.')[0]}.local"))


def _forms(origin: str) -> tuple[str, ...]:
    """An origin in every form that a browser sends for it: loopback has several names."""
    found = _LOOPBACK_ORIGIN.fullmatch(origin)
    if found is None:
        return (origin,)
    return tuple(f"{found[1]}{name}{found[2] or ''}" for name in _LOOPBACK_NAMES)


def _is_address(name: str) -> bool:
    """Whether it is an IP address, which cannot be made to point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=16)  # nearly all requests come by the same name
def _names_loopback(host: str) -> bool:
    return is_loopback(host_name(host))


def host_name(host: str) -> str:
    """The name in a Host header or in the config: without port, brackets and final dot, in lower case."""
    if host.startswith("["):
        name = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        name = host.partition(":")[0]
    else:
        name = host  # a bare IPv6 address, if it has colons at all
    return name.lower().removesuffix(".")
