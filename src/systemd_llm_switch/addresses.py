"""Where a server can be reached that listens on an address."""

from __future__ import annotations

_REACHABLE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def reachable(host: str) -> str:
    """The host to connect to, for a host to listen on."""
    return _REACHABLE.get(host, host)


def http_url(host: str, port: int) -> str:
    """The URL of a server that listens on a host, without a path."""
    name = reachable(host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
