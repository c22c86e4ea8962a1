"""What the HTTP server and the application agree on, beyond WSGI (PEP 3333): types, and keys of the environ."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Environ = dict[str, Any]
Headers = tuple[tuple[str, str], ...]
StartResponse = Callable[..., Any]
Wsgi = Callable[[Environ, StartResponse], Iterable[bytes]]

# The descriptor of the client's connection: a wait can watch it.
CLIENT_FD = "llm_switch.client_fd"
# The path as it came: PATH_INFO is decoded, and what was escaped in it cannot be seen any more.
RAW_PATH = "llm_switch.raw_path"
