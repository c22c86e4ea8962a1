"""The head of a request: its request line and fields, read by httptools and checked more strictly. Pure.

A request that two programs could understand differently is refused (RFC 9112, 11.2). The request line must be exactly
one method, one target and one version. A field that may come only once must not be repeated.
"""

from __future__ import annotations

import functools
import re
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from systemd_llm_switch.errors import InvalidRequest, MethodNotAllowed
from systemd_llm_switch.quoting import printable, quoted

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_ABSOLUTE = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE)
# httptools refuses methods that it does not know. The routes must answer those, so each is parsed as a GET.
_USUAL_METHODS = (b"GET", b"POST")
# These fields must not be repeated (RFC 9110, 5.3): one program would use the first, and another one the second.
_SINGLE = frozenset(
    (
        "HTTP_HOST",
        "CONTENT_LENGTH",
        "CONTENT_TYPE",
        "HTTP_AUTHORIZATION",
        "HTTP_ORIGIN",
        "HTTP_EXPECT",
        "HTTP_X_API_KEY",
    )
)
_WITHOUT_PREFIX = frozenset(("CONTENT_TYPE", "CONTENT_LENGTH"))
_LONGEST_KEPT_NAME = 64


class MalformedRequest(InvalidRequest):
    """The request is not valid HTTP for this server. `more` are headers of the answer."""

    def __init__(self, status: HTTPStatus, message: str, *more: tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status.value
        self._more = more

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), *self._more]


class Head(NamedTuple):
    """A request's head. `fields` have the names that WSGI gives them (PEP 3333), such as HTTP_HOST."""

    method: str
    path: str  # decoded; its bytes as latin-1, as WSGI has them
    raw_path: str  # as it was sent
    query: str
    version: str
    fields: dict[str, str]
    is_chunked: bool
    length: int  # of the body; 0 if it is chunked
    keeps_connection: bool


class _Found:
    """What the parser finds; it calls these methods."""

    __slots__ = ("fields", "repeated", "target")

    def __init__(self) -> None:
        self.target = b""
        self.fields: dict[str, str] = {}
        self.repeated: str | None = None

    def on_url(self, target: bytes) -> None:
        self.target = target

    def on_header(self, name: bytes, value: bytes) -> None:
        key = _wsgi_name(name) if len(name) <= _LONGEST_KEPT_NAME else _wsgi_name.__wrapped__(name)
        text = value.decode("latin-1").rstrip(" \t")
        if key not in self.fields:
            if key:
                self.fields[key] = text
        elif key in _SINGLE:
            self.repeated = name.decode("latin-1")
        else:
            self.fields[key] = f"{self.fields[key]}, {text}"


def parse_head(data: bytes) -> Head:
    """Reads a whole head, the empty line at its end included.

    Raises:
        MalformedRequest, MethodNotAllowed
    """
    method = data[: data.find(b" ")]
    found = _Found()
    try:
        HttpRequestParser(found).feed_data(data if method in _USUAL_METHODS else _as_get(method, data))
    except HttpParserUpgrade:
        pass  # a server need not upgrade: the request is answered as it is (RFC 9110, 7.8)
    except HttpParserError as error:
        raise _refusal(data, found.fields, error) from error
    version = _version(data, method, found.target)
    fields = found.fields
    if found.repeated is not None:
        raise _malformed(f"the field {printable(found.repeated, 60)} comes twice")
    path, query = _split(method, found.target, fields)
    if "HTTP_HOST" not in fields and version == "HTTP/1.1":
        raise _malformed("HTTP/1.1 needs a Host field")
    is_chunked = "HTTP_TRANSFER_ENCODING" in fields and _is_chunked(fields["HTTP_TRANSFER_ENCODING"], version)
    return Head(
        method.decode("latin-1"),
        (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1"),
        path.decode("latin-1"),
        query.decode("latin-1"),
        version,
        fields,
        is_chunked,
        int(fields.get("CONTENT_LENGTH", 0)),
        _keeps_connection(fields.get("HTTP_CONNECTION", ""), version),
    )


def _malformed(reason: str) -> MalformedRequest:
    return MalformedRequest(HTTPStatus.BAD_REQUEST, f"malformed request: {reason}")


def _as_get(method: bytes, data: bytes) -> bytes:
    """The head with a method that httptools knows.

    Raises:
        MalformedRequest: the method is not a token in capitals (RFC 9110, 9.1).
        MethodNotAllowed: it asks for a tunnel.
    """
    if not _TOKEN.fullmatch(method) or method != method.upper():
        raise _malformed("it does not begin with a method such as GET or POST")
    if method == b"CONNECT":
        raise MethodNotAllowed("CONNECT", "this server", ("GET", "POST"))
    return b"GET" + data[len(method) :]


def _refusal(data: bytes, fields: dict[str, str], error: HttpParserError) -> MalformedRequest:
    """The error for a head that httptools refused, with the status that HTTP defines for it."""
    if "HTTP_TRANSFER_ENCODING" in fields and "CONTENT_LENGTH" not in fields:
        coding = fields["HTTP_TRANSFER_ENCODING"]
        if coding.rpartition(",")[2].strip().lower() != "chunked":
            return _unknown_coding(coding)
    return _unknown_version(data) or _malformed(printable(str(error)))


def _unknown_coding(coding: str) -> MalformedRequest:
    return MalformedRequest(
        HTTPStatus.NOT_IMPLEMENTED, f"the transfer coding {quoted(coding)} is not known; send `chunked`"
    )


def _unknown_version(data: bytes) -> MalformedRequest | None:
    version = data[: data.find(b"\r\n")].rpartition(b" ")[2]
    if version.startswith(b"HTTP/") and not version.startswith(b"HTTP/1."):
        message = f"the version {quoted(version, 20)} is not supported; send HTTP/1.1"
        return MalformedRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, message)
    return None


def _version(data: bytes, method: bytes, target: bytes) -> str:
    """The version. Checks that the request line has exactly the form of RFC 9112, 3.

    Raises:
        MalformedRequest
    """
    if data.startswith(b"%b %b HTTP/1.1\r\n" % (method, target)):
        return "HTTP/1.1"
    if data.startswith(b"%b %b HTTP/1.0\r\n" % (method, target)):
        return "HTTP/1.0"
    raise _unknown_version(data) or _malformed("the request line must be a method, a target and HTTP/1.1")


def _split(method: bytes, target: bytes, fields: dict[str, str]) -> tuple[bytes, bytes]:
    """The path and the query of a target (RFC 9112, 3.2).

    The host of an absolute target replaces the Host field. Several slashes at the beginning count as one, because a
    base URL that ends in a slash leads to two.

    Raises:
        MalformedRequest
    """
    if b"#" in target:
        raise _malformed("the target has a #fragment")
    if not target.startswith(b"/"):
        target = _path_of_absolute(method, target, fields)
    path, _, query = target.partition(b"?")
    return (b"/" + path.lstrip(b"/") if path.startswith(b"//") else path), query


def _path_of_absolute(method: bytes, target: bytes, fields: dict[str, str]) -> bytes:
    if target == b"*" and method == b"OPTIONS":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or not absolute[1] or b"@" in absolute[1]:
        raise _malformed("the target must be a path such as /v1/models, or http://HOST/PATH")
    fields["HTTP_HOST"] = absolute[1].decode("latin-1")
    return absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]


def _is_chunked(coding: str, version: str) -> bool:
    if version == "HTTP/1.0":
        raise _malformed("HTTP/1.0 has no Transfer-Encoding")
    if coding.lower() != "chunked":
        raise _unknown_coding(coding)
    return True


def _keeps_connection(options: str, version: str) -> bool:
    """Whether the connection stays open. `options` are words in any case, separated by commas (RFC 9110, 7.6.1)."""
    if not options:
        return version == "HTTP/1.1"
    words = [option.strip() for option in options.lower().split(",")]
    return "close" not in words and (version == "HTTP/1.1" or "keep-alive" in words)


@functools.lru_cache(maxsize=256)
def _wsgi_name(name: bytes) -> str:
    """A field's name as WSGI has it. Empty for a name with an underscore: X_Y would be taken for X-Y, so it is
    dropped."""
    text = name.decode("latin-1")
    if "_" in text:
        return ""
    key = text.upper().replace("-", "_")
    return key if key in _WITHOUT_PREFIX else f"HTTP_{key}"
