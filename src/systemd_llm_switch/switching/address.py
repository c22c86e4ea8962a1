"""Whether a unit's llama-server is certain to listen elsewhere than the proxy asks. Only its command line can say so.

Reads the first bytes of the program, nothing else.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from systemd_llm_switch.contexts.unit import Command
from systemd_llm_switch.systemd.unit import UnitStatus

_PROGRAM = "llama-server"
_ELF = b"\x7fELF"
_VARIABLES = ("LLAMA_ARG_HOST=", "LLAMA_ARG_PORT=")


class Elsewhere(NamedTuple):
    """A flag of the unit, its value, and the value that `llama_url` asks for."""

    flag: str
    given: str
    wanted: str


def elsewhere(status: UnitStatus, url: str) -> Elsewhere | None:
    """The flag that leads elsewhere than `url`; None if the two fit, or if that is not certain."""
    parts = urlsplit(url)
    asked = _address(parts.hostname or "")
    is_here = parts.hostname == "localhost" or (asked is not None and asked.is_loopback)
    if not is_here or not _says_all(status):
        return None
    command = Command.of_status(status)
    port, host, wanted = command.port, _address(command.option("--host") or ""), parts.port or 80
    if port is None or command.option("--port") is None:
        return None
    if port != wanted:
        return Elsewhere("--port", str(port), str(wanted))
    if host is not None and asked is not None and host != asked and not host.is_unspecified:
        return Elsewhere("--host", str(host), str(asked))
    return None


def _says_all(status: UnitStatus) -> bool:
    """Whether the words of the command are all that decides where it listens: no variable, no script in between, and
    nothing beside it that could pass connections on."""
    words = status.arguments
    return (
        bool(words)
        and Path(words[0]).name == _PROGRAM
        and not any("$" in word for word in words)
        and not any(it.startswith(_VARIABLES) for it in status.environment)
        and status.is_alone
        and _is_binary(Path(words[0]))
    )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None for a name: what it means is decided elsewhere."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_binary(path: Path) -> bool:
    """Whether it is a program, and not a script that may run another one."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_ELF)) == _ELF
    except OSError:
        return False
