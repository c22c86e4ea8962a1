"""A stand-in backend: llama-server's HTTP side with faults on demand. Run as a real unit, for faults only.

    python standin.py --port P [--name N] [--load-s S] [--never-ready] [--exit CODE] [--ignore-term]
                      [--bind-s S, before it listens] [--stop-s S, after it no longer listens] [--say WORDS]
                      [--beside PORT] [--model FILE, which it does not look at]
                      [--slot-save-path DIR: it has a slot that is saved there and restored]

With --beside, --say and --exit hold only while something listens on that port: two models that want too much of one
card.

A request's body may carry `"standin": {…}` (the proxy passes unknown fields through):

    delay_s   wait before the answer      crash    end the process, with this exit code
    unless    for crash: a file; if it is there, answer instead, else make it
    hang      never answer                raw      the reply's body, as text, byte for byte
    until_released  wait until `GET /standin/release`, which ends `--load-s`, too
    status    the reply's HTTP status     message  the reply's message object
    finish    its finish_reason           cut      close the connection in the middle of the body
    zipped    the reply's body in hexadecimal digits, which is said to be gzip
    template, completion   what /apply-template and /completion tell
    early_s   send the reply's headers, and the body that much later
    half_s    send the reply's headers and half of its body, and the rest that much later
    deltas    for stream: the deltas to send, each after `delta_s`; `cut_stream` ends without [DONE]
    events    for stream: the events to send, byte for byte, instead of a chat's; then `linger_s` before the end of the
              stream; with `unframed`, only the end of the connection ends it
    torn_s    for stream: send the last delta's chunk, frame and all, in two parts that long apart, the first of
              `torn_at` bytes
    then      the orders that hold instead once the last message is a tool's result

`GET /standin` reports what it saw: requests, how many are running, how many were dropped by their client.

It reads HTTP itself: to import http.server would take half of the time that it takes to start.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import socketserver
import sys
import threading
import time
from pathlib import Path
from typing import Any

SLOT_TOKENS = 1000
HANGUP = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class Seen:
    """Counters of what happened; `bodies` are the last requests as they arrived."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts = {"requests": 0, "running": 0, "most_running": 0, "dropped": 0, "connections": 0, "described": 0}
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []


class Dropped(Exception):
    """The client went away."""


class StandIn(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", options.port), Handler)
        self.options = options
        self.ready_at = time.monotonic() + options.load_s
        self.seen = Seen()
        self.is_released = self.is_restored = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError | Dropped):
            super().handle_error(request, client_address)


class Handler(socketserver.StreamRequestHandler):
    server: StandIn
    disable_nagle_algorithm = True
    close_connection = False

    def setup(self) -> None:
        super().setup()
        with self.server.seen.lock:
            self.server.seen.counts["connections"] += 1

    def handle(self) -> None:
        """One request after the other, until either side closes the connection."""
        while not self.close_connection and (line := self.rfile.readline().decode("latin-1").split()):
            method, self.path, _ = line
            self.headers: dict[str, str] = {}
            while field := self.rfile.readline().decode("latin-1").strip():
                name, _, value = field.partition(":")
                self.headers[name] = value.strip()
            self.close_connection = self.header("connection") == "close"
            {"GET": self.do_GET, "POST": self.do_POST}[method]()

    def header(self, wanted: str) -> str | None:
        return next((value for name, value in self.headers.items() if name.lower() == wanted), None)

    def do_GET(self) -> None:
        if self.path == "/health":
            is_loaded = self.server.is_released or time.monotonic() >= self.server.ready_at
            ready = is_loaded and not self.server.options.never_ready
            loading = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
            self.reply(200 if ready else 503, {"status": "ok"} if ready else loading)
        elif self.path == "/standin":
            seen = self.server.seen
            lists = {"bodies": seen.bodies[-20:], "headers": seen.headers[-20:], "paths": seen.paths[-20:]}
            self.reply(200, {**seen.counts, **lists})
        elif self.path == "/standin/release":
            self.server.is_released = True
            self.reply(200, {})
        elif self.path == "/slots" and self.server.options.slot_save_path:
            self.reply(200, [{"id": 0, "n_prompt_tokens": SLOT_TOKENS, "is_processing": False, "id_task": 1}])
        elif self.path in ("/v1/models", "/props") and self.server.options.n_ctx:
            self.reply(200, self.describe())
        else:
            self.reply(200, {"path": self.path, "name": self.server.options.name})

    def describe(self) -> dict[str, Any]:
        """What llama-server says of its model, under either path."""
        with self.server.seen.lock:
            self.server.seen.counts["described"] += 1
        meta = {"n_ctx_train": 131072, "n_params": 134515008, "size": 144810432, "vocab_type": 2, "n_embd": "576"}
        settings = {"default_generation_settings": {"n_ctx": self.server.options.n_ctx}}
        return settings if self.path == "/props" else {"data": [{"id": "x", "meta": meta}]}

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.header("content-length") or 0))
        if self.path.startswith("/slots/0?action="):
            return self.move_slot(self.path.rpartition("=")[2], json.loads(raw)["filename"])
        seen = self.server.seen
        try:
            body = json.loads(raw)
        except ValueError:
            body = {"not_json": raw.decode("latin-1")}
        with seen.lock:
            seen.counts["requests"] += 1
            seen.counts["running"] += 1
            seen.counts["most_running"] = max(seen.counts["most_running"], seen.counts["running"])
            seen.bodies.append(body if len(raw) < 100_000 else {"large": len(raw)})
            seen.headers.append(dict(self.headers))
            seen.paths.append(self.path)
        try:
            orders = body.get("standin") or {}
            self.act(body, orders["then"] if "then" in orders and _ends_with_result(body) else orders, raw)
        except (Dropped, ConnectionError):
            self.close_connection = True
            with seen.lock:
                seen.counts["dropped"] += 1
        finally:
            with seen.lock:
                seen.counts["running"] -= 1

    def move_slot(self, action: str, name: str) -> None:
        """Saves or restores the slot, as llama-server answers that."""
        path = Path(self.server.options.slot_save_path, name)
        try:
            self.server.is_restored = action == "restore"
            if action == "save":
                path.write_bytes(b"x" * SLOT_TOKENS)
            size = len(path.read_bytes())
        except OSError as error:
            return self.reply(500, {"error": {"message": str(error), "code": 500}})
        names = ("n_saved", "n_written") if action == "save" else ("n_restored", "n_read")
        return self.reply(200, {"id_slot": 0, "filename": name, **dict.fromkeys(names, size)})

    def act(self, body: dict[str, Any], orders: dict[str, Any], raw: bytes) -> None:
        if self.path == "/apply-template" and "template" in orders:
            return self.reply(200, {"prompt": orders["template"]})
        if self.path == "/completion" and "completion" in orders:
            told = {"content": orders["completion"], "stop_type": "eos", "tokens_predicted": 4, "tokens_evaluated": 9}
            return self.reply(200, told)
        self.wait(1e9 if orders.get("hang") else orders.get("delay_s", 0))
        while orders.get("until_released") and not self.server.is_released:
            self.wait(0.02)
        if "crash" in orders and not (unless := Path(orders.get("unless", "/nowhere"))).exists():
            if "unless" in orders:
                unless.touch()
            print("about to crash, as told", flush=True)
            os._exit(orders["crash"])
        if body.get("stream") and orders.get("status", 200) < 400:
            self.stream(body, orders)
        elif "zipped" in orders:
            self.reply(200, bytes.fromhex(orders["zipped"]), orders)
        elif "raw" in orders:
            self.reply(orders.get("status", 200), orders["raw"].encode())
        elif orders.get("cut"):
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{"choices": [')
            self.close_connection = True
        elif orders.get("status", 200) >= 400:
            error = {"message": f"the stand-in says {orders['status']}", "type": "standin_error", "code": 77}
            self.reply(orders["status"], {"error": error})
        elif self.path.endswith("/embeddings"):
            inputs = body.get("input")
            count = len(inputs) if isinstance(inputs, list) else 1
            data = [{"object": "embedding", "index": i, "embedding": [0.5, float(i)]} for i in range(count)]
            self.reply(200, {"object": "list", "model": self.server.options.name, "data": data})
        else:
            self.reply(200, self.completion(body, orders), orders)
        return None

    def completion(self, body: dict[str, Any], orders: dict[str, Any]) -> dict[str, Any]:
        name = self.server.options.name
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        envelope: dict[str, Any] = {"id": "standin-1", "created": 1, "model": name, "usage": usage}
        if self.server.options.slot_save_path:  # so long to read that it is worth a file
            cached = SLOT_TOKENS - 1 if self.server.is_restored else 0
            read = {"cache_n": cached, "prompt_n": SLOT_TOKENS - cached, "prompt_ms": (SLOT_TOKENS - cached) * 20}
            envelope["timings"] = {**read, "predicted_n": 1, "predicted_ms": 1}
        finish = orders.get("finish", "stop")
        if self.path.endswith("/v1/completions"):
            choice = {"index": 0, "text": f"text from {name}", "finish_reason": finish, "logprobs": None}
            return {**envelope, "object": "text_completion", "choices": [choice]}
        message = {"role": "assistant", "content": f"hello from {name}"}
        choice = {"index": 0, "message": orders.get("message", message), "finish_reason": finish}
        return {**envelope, "object": "chat.completion", "choices": [choice]}

    def begin_stream(self, is_framed: bool = True) -> None:
        frames = b"Transfer-Encoding: chunked\r\n" if is_framed else b""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + frames + b"\r\n")

    def stream_events(self, orders: dict[str, Any]) -> None:
        is_framed = not orders.get("unframed")
        self.begin_stream(is_framed)
        for event in orders["events"]:
            (self.chunk if is_framed else self.wfile.write)(event.encode())
        self.wait(orders.get("linger_s", 0))
        if is_framed and not orders.get("cut_stream"):
            self.chunk(b"")
        else:
            self.close_connection = True

    def stream(self, body: dict[str, Any], orders: dict[str, Any]) -> None:
        if "events" in orders:
            self.stream_events(orders)
            return
        self.begin_stream()
        name = self.server.options.name
        words = [{"content": f"{word} "} for word in ("a", "b", name)]
        deltas = orders.get("deltas") or [{"role": "assistant"}, *words]
        envelope = {"id": "standin-1", "created": 1, "model": name, "object": "chat.completion.chunk"}
        for number, delta in enumerate(deltas, 1):
            self.wait(orders.get("delta_s", 0))
            index = (number - 1) % (body.get("n") or 1)
            event = {**envelope, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}
            self.event(event, orders if number == len(deltas) else {})
        if orders.get("cut_stream"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if "stream_error" in orders:
            self.event({"error": orders["stream_error"]})
        else:
            last = {"index": 0, "delta": {}, "finish_reason": orders.get("finish", "stop")}
            self.event({**envelope, "choices": [last]})
            if (body.get("stream_options") or {}).get("include_usage"):
                usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
                self.event({**envelope, "choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, value: Any, orders: dict[str, Any] | None = None) -> None:
        self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n", orders)

    def chunk(self, data: bytes, orders: dict[str, Any] | None = None) -> None:
        wire = f"{len(data):x}\r\n".encode() + data + b"\r\n"
        if orders and "torn_s" in orders:
            self.wfile.write(wire[: orders["torn_at"]])
            self.wait(orders["torn_s"])
            wire = wire[orders["torn_at"] :]
        self.wfile.write(wire)

    def wait(self, seconds: float) -> None:
        """Waits as llama-server does: a client that went away ends it."""
        poll = select.poll()
        poll.register(self.connection, HANGUP)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(min(left, 60) * 1000):
                raise Dropped

    def reply(self, status: int, value: Any, orders: dict[str, Any] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        encoding = "Content-Encoding: gzip\r\n" if orders and "zipped" in orders else ""
        head = (
            f"HTTP/1.1 {status} Standin\r\nContent-Type: application/json\r\n{encoding}"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        wire = head.encode() + data
        for order, count in (("early_s", len(head)), ("half_s", len(head) + len(data) // 2)):
            if orders and order in orders:
                self.wfile.write(wire[:count])
                self.wait(orders[order])
                wire = wire[count:]
        self.wfile.write(wire)


def is_taken(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _ends_with_result(body: dict[str, Any]) -> bool:
    return bool(body["messages"][-1]["role"] == "tool")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="standin")
    parser.add_argument("--n-ctx", type=int, help="say of the model what llama-server says of one")
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--exit", type=int)
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--bind-s", type=float, default=0.0)
    parser.add_argument("--stop-s", type=float, default=0.0)
    parser.add_argument("--say", default="")
    parser.add_argument("--beside", type=int)
    parser.add_argument("-m", "--model")
    parser.add_argument("--slot-save-path")
    options = parser.parse_args()
    if options.beside is not None and not is_taken(options.beside):
        options.say, options.exit = "", None
    if options.say:
        print(options.say, file=sys.stderr, flush=True)
    if options.exit is not None:
        time.sleep(options.load_s)
        return int(options.exit)
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(options.bind_s)
    server = StandIn(options)
    if options.stop_s:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
    server.server_close()
    time.sleep(options.stop_s)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
