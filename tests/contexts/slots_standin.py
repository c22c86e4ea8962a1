"""A stand-in backend with slots, for faults that a real llama-server does not have on demand. Run as a unit:

    python slots_standin.py --port P --slot-save-path DIR [--hang save|restore, and make a file DIR.hangs]

Each chat has 1000 prompt tokens that took 10 s, it says. A context is a file of 100 KB.
"""

from __future__ import annotations

import argparse
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKENS, SIZE = 1000, 100_000


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", options.port), Handler)
        self.options = options
        self.held = 0


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/slots":
            self.reply([{"id": 0, "id_task": 7, "n_prompt_tokens": self.server.held, "is_processing": False}])
        else:
            self.reply({"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        place = urlsplit(self.path)
        if place.path.startswith("/slots/"):
            self.transfer(parse_qs(place.query)["action"][0], body["filename"])
        else:
            self.chat()

    def chat(self) -> None:
        cached = min(self.server.held, TOKENS)
        self.server.held = TOKENS + 1
        timings = {"cache_n": cached, "prompt_n": TOKENS - cached, "prompt_ms": 10_000, "predicted_n": 2}
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.reply({"id": "1", "object": "chat.completion", "choices": [choice], "timings": timings})

    def transfer(self, action: str, name: str) -> None:
        options = self.server.options
        file = Path(options.slot_save_path) / name
        if action == "save":
            file.write_bytes(bytes(SIZE // 2))
        if action == options.hang:
            Path(f"{options.slot_save_path}.hangs").touch()
            time.sleep(600)
        if action == "save":
            file.write_bytes(bytes(SIZE))
            self.reply({"n_saved": self.server.held, "n_written": SIZE})
        else:
            self.server.held = TOKENS + 1
            self.reply({"n_restored": self.server.held, "n_read": SIZE})

    def reply(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slot-save-path", required=True)
    parser.add_argument("--hang", default="")
    Server(parser.parse_args()).serve_forever()
