"""A small hub on loopback: one repository, whose files lie at a second server, as the real hub's do."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class StandinHub:
    """What it has, how it behaves, and what it was asked."""

    repo: str = "org/some-GGUF"
    files: dict[str, bytes] = field(default_factory=dict)
    token: str = ""  # that it asks for
    cut_after: int | None = None  # bytes of a download, after which the connection breaks off; once
    ignores_range: bool = False
    damages: bool = False
    listing: bytes | None = None  # instead of the real one
    url: str = ""
    store: str = ""
    ranges: list[str] = field(default_factory=list)  # of each download
    tokens_at_store: list[str] = field(default_factory=list)

    def list(self) -> bytes:
        entries = [
            {"type": "file", "path": path, "size": len(raw), "lfs": {"oid": hashlib.sha256(raw).hexdigest()}}
            for path, raw in self.files.items()
        ]
        return json.dumps([{"type": "directory", "path": "x", "size": 0}, *entries]).encode()


@contextmanager
def standin_hub(hub: StandinHub) -> Iterator[StandinHub]:
    """Runs it."""

    class Api(_Handler):
        def do_GET(self) -> None:
            if hub.token and self.headers["Authorization"] != f"Bearer {hub.token}":
                self.answer(401, b"{}")
            elif self.path == f"/api/models/{hub.repo}/tree/main?recursive=true":
                self.answer(200, hub.list() if hub.listing is None else hub.listing)
            elif found := re.fullmatch(f"/{hub.repo}/resolve/main/(.*)", self.path):
                self.answer(302, b"", Location=f"{hub.store}/{found[1]}")
            else:
                self.answer(404, b"{}")

    class Store(_Handler):
        def do_GET(self) -> None:
            hub.tokens_at_store.append(self.headers.get("Authorization", ""))
            hub.ranges.append(self.headers.get("Range", ""))
            raw = hub.files[self.path[1:]]
            raw = raw[:-1] + bytes([raw[-1] ^ 1]) if hub.damages else raw
            begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            first = int(begin[1]) if begin and not hub.ignores_range else 0
            named = {"Content-Range": f"bytes {first}-{len(raw) - 1}/{len(raw)}"} if first else {}
            cut, hub.cut_after = hub.cut_after, None
            self.answer(206 if first else 200, raw[first:], cut, **named)

    with _served(Api) as hub.url, _served(Store) as hub.store:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    def answer(self, status: int, body: bytes, cut: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()
