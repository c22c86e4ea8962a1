"""Casts of config values: each takes what YAML returned and returns the value, or raises ValueError with a reason for
the user. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from systemd_llm_switch.quoting import printable, quoted

Cast = Callable[[object], Any]

# systemd's own rule is unit_name_is_valid() in src/basic/unit-name.c; systemd.unit(5) describes it.
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\-]+(?P<instance>@[A-Za-z0-9:_.\\@-]*)?\.service")
_MOST_UNIT_NAME_CHARACTERS = 255
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/:?#@*\[\]]+)(:\d+)?")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)
_MOST_HOST_CHARACTERS = 253
_STREAMING = ("buffered", "live")
# Unicode categories that no name, path or key may contain: control, surrogate, line and paragraph separators.
_UNFIT = frozenset(("Cc", "Cs", "Zl", "Zp"))


class WrongEntry(ValueError):
    """One entry of a list is wrong; the message is about that entry alone."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def as_text(value: object) -> str:
    if isinstance(value, int | float):
        raise ValueError("must be a string (put it in quotes)")
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a string that is not empty")
    unfit = find_unfit(value)
    if unfit:
        raise ValueError(f"must not hold the control character {quoted(unfit)}")
    return value.strip()


def find_unfit(text: str) -> str:
    """The first character that no name, path or key may hold, or an empty string."""
    return next((character for character in text if unicodedata.category(character) in _UNFIT), "")


def _not(value: object) -> str:
    """What stands there instead, for the end of a message; a number or a flag in quotes looks right at first."""
    if not isinstance(value, str) or not value:
        return ""
    is_quoted = value in ("true", "false") or re.fullmatch(r"-?\d{1,20}(\.\d{1,20})?", value)
    return f", not {quoted(value, 40)}{' (take the quotes away)' if is_quoted else ''}"


def as_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false{_not(value)}")
    return value


def as_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"must be a number{_not(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("must be a smaller number") from error


def as_positive(value: object) -> float:
    number = as_number(value)
    if not 0 < number < float("inf"):
        raise ValueError("must be greater than 0")
    return number


def as_not_negative(value: object) -> float:
    number = as_number(value)
    if not 0 <= number < float("inf"):
        raise ValueError("must be 0 or more")
    return number


def as_count(value: object) -> int:
    number = as_not_negative(value)
    if number != int(number):
        raise ValueError("must be a whole number")
    return int(number)


def as_port(value: object) -> int:
    port = as_count(value)
    if not 1 <= port <= 65535:
        raise ValueError("must be a port, 1 to 65535")
    return port


def as_each(cast: Callable[[object], str], value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of strings, for instance [one, two]")
    entries = []
    for index, entry in enumerate(value):
        try:
            entries.append(cast(entry))
        except ValueError as error:
            raise WrongEntry(index, str(error)) from error
    return tuple(entries)


def as_texts(value: object) -> tuple[str, ...]:
    return as_each(as_text, value)


def as_host(value: object) -> str:
    host = as_text(value).removeprefix("[").removesuffix("]")  # the form of IPv6 addresses in URLs
    if not _is_host(host):
        raise ValueError(f"must be an IP address or the name of a machine, not {quoted(host)}")
    return host


def _is_host(host: str) -> bool:
    """Whether it can be looked up: Python's resolver and `requests` raise errors of their own kinds for other names."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return len(host) <= _MOST_HOST_CHARACTERS and _HOST_NAME.fullmatch(host) is not None


def as_hosts(value: object) -> tuple[str, ...]:
    return as_each(as_host_name, value)


def as_host_name(value: object) -> str:
    name = as_text(value)
    if "/" in name or "*" in name:
        raise ValueError(f"must be a name like my-box.lan, without scheme, path or *, not {quoted(name)}")
    return name


def as_origins(value: object) -> tuple[str, ...]:
    return as_each(as_origin, value)


def as_origin(value: object) -> str:
    """The origin in the form that browsers send (https://www.rfc-editor.org/rfc/rfc6454#section-6.1)."""
    text = as_text(value)
    origin = text.lower().removesuffix("/")
    if origin in ("*", "null"):
        return origin
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(
            f"must look like https://chat.example.org or http://localhost:8080 (or '*'), not {quoted(text)}"
        )
    default = ":443" if origin.startswith("https:") else ":80" if origin.startswith("http:") else None
    return origin if default is None else origin.removesuffix(default)


def as_fields(value: object) -> Mapping[str, object]:
    """Fields of a request."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("must be a mapping of request fields")
    for name in ("model", "stream", "messages", "prompt", "input"):
        if name in value:
            raise ValueError(f"must not set {name!r}")
    try:
        json.dumps(value, allow_nan=False)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"must hold only what JSON can express: {printable(str(error))}") from error
    return MappingProxyType(dict(value))


def as_streaming(value: object) -> str:
    if value not in _STREAMING:
        raise ValueError(f"must be one of {', '.join(_STREAMING)}{_not(value)}")
    return str(value)


def as_unit(value: object) -> str:
    unit = as_text(value)
    if len(unit) > _MOST_UNIT_NAME_CHARACTERS:
        raise ValueError(f"is {len(unit)} characters long; systemd takes at most {_MOST_UNIT_NAME_CHARACTERS}")
    name = _UNIT_NAME.fullmatch(unit)
    if name is None:
        hint = f"; did you mean {unit}.service?" if _UNIT_NAME.fullmatch(f"{unit}.service") and "." not in unit else ""
        raise ValueError(f"{quoted(unit)} is not a valid name of a systemd service{hint}")
    if name["instance"] == "@":
        stem = printable(unit.removesuffix("@.service"))
        raise ValueError(f"{quoted(unit)} is a template; name an instance of it, for instance {stem}@1.service")
    return unit


def as_url(value: object) -> str:
    url = as_text(value).rstrip("/").lower().replace("//localhost:", "//127.0.0.1:")  # one spelling: they are compared
    try:
        parts = urlsplit(url)
        is_plain = parts.scheme == "http" and parts.port and _is_host(parts.hostname or "") and "@" not in parts.netloc
    except ValueError:
        is_plain = False
    if not is_plain or parts.path or parts.query or parts.fragment:
        raise ValueError(f"must look like http://127.0.0.1:3004, not {quoted(url)}")
    return url


def as_key(value: object) -> str:
    """A key that goes into a header (RFC 6750, 2.1, with some room)."""
    key = as_text(value)
    if not key.isascii() or " " in key:
        raise ValueError("must be one word of ASCII characters")
    return key
