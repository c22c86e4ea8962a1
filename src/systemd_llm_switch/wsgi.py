"""What the HTTP server and the application agree on, beyond WSGI (PEP 3333): types, and keys of the environ."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Environ = dict[str, Any]
Headers = tuple[tuple[str, str], ...]
# Sends a part of an answer's body, and blocks until it is sent. Raises OSError if the client is gone or takes nothing.
Write = Callable[[bytes], object]
# Takes the status line and the headers of an answer, which leave together with the first part of its body.
StartResponse = Callable[[str, list[tuple[str, str]]], Write]
Wsgi = Callable[[Environ, StartResponse], Iterable[bytes]]

# What each answer's `Server` field says: the command knows the proxy by it.
SERVER_NAME = "systemd-llm-switch"
# The descriptor of the client's connection: a wait can watch it.
CLIENT_FD = "llm_switch.client_fd"
# The path as it came: PATH_INFO is decoded, and what was escaped in it cannot be seen any more.
RAW_PATH = "llm_switch.raw_path"
