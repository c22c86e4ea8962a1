"""The page's files: each is read once, when it is first requested, and identified by the hash of its bytes."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).with_name("static")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from another host, no inline script or style, and no HTML made of strings.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),  # the browser keeps it and asks by its ETag
)


class File(NamedTuple):
    """A file as it is sent. `etag` has its quotes."""

    content_type: str
    etag: str
    body: bytes

    def is_known(self, if_none_match: str) -> bool:
        """Whether the client has these bytes already (RFC 9110, 13.1.2)."""
        known = [tag.strip().removeprefix("W/") for tag in if_none_match[:1000].split(",")]
        return self.etag in known or known == ["*"]


def find(name: str) -> File | None:
    """The file with that name, or None. Only names in the folder itself are looked up."""
    return _read(name) if name in _names() else None


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(path.name for path in _FOLDER.iterdir() if path.suffix in _TYPES)


@functools.cache
def _read(name: str) -> File:
    path = _FOLDER / name
    body = path.read_bytes()
    return File(_TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"', body)
