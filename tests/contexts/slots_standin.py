"""A stand-in backend with slots, for faults that a real llama-server does not have on demand. Run as a unit:

    python slots_standin.py --port P [--slot-save-path DIR] [--hang save|restore, and make a file DIR.hangs]
                            [--calls FILE, where it notes each POST and how many tokens a prompt of tokens has]

Each chat has 1000 prompt tokens that took 10 s, it says. A context is a file of 100 KB. A prompt's tokens are its
characters; --piece-s S is how long it takes to read some of them. An answer is --hellos N times the word, or a 400 if
the request has `"fails": true`.
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
        self.task = -1


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/slots":
            self.note("/slots")
            self.reply(
                [{"id": 0, "id_task": self.server.task, "n_prompt_tokens": self.server.held, "is_processing": False}]
            )
        else:
            self.reply({"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        place = urlsplit(self.path)
        prompt = body.get("prompt")
        self.note(f"{place.path} {len(prompt)}" if isinstance(prompt, list) else place.path)
        if place.path == "/apply-template":
            self.reply({"prompt": "".join(str(message["content"]) for message in body["messages"])})
        elif place.path == "/tokenize":
            self.reply({"tokens": [ord(letter) for letter in body["content"]]})
        elif isinstance(prompt, list):
            time.sleep(self.server.options.piece_s)
            timings = {"cache_n": 0, "prompt_n": len(prompt), "prompt_ms": 10, "predicted_n": 1}
            self.reply({"id_slot": 0, "timings": timings})
        elif place.path.startswith("/slots/"):
            self.transfer(parse_qs(place.query)["action"][0], body["filename"])
        elif body.get("fails"):
            self.reply({"error": {"message": "as asked for"}}, 400)
        else:
            self.chat()

    def note(self, call: str) -> None:
        if self.server.options.calls:
            with Path(self.server.options.calls).open("a") as calls:
                calls.write(f"{call}\n")

    def chat(self) -> None:
        cached = min(self.server.held, TOKENS)
        self.server.task = 7
        self.server.held = TOKENS + 1
        timings = {"cache_n": cached, "prompt_n": TOKENS - cached, "prompt_ms": 10_000, "predicted_n": 2}
        message = {"role": "assistant", "content": "hello" * self.server.options.hellos}
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

    def reply(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slot-save-path", default="")
    parser.add_argument("--calls", default="")
    parser.add_argument("--hellos", type=int, default=1)
    parser.add_argument("--piece-s", type=float, default=0.01)
    parser.add_argument("--hang", default="")
    Server(parser.parse_args()).serve_forever()
