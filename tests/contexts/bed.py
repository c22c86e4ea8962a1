"""A real llama-server of its own for a test, and a conversation to have with it."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.stack import Proxy, free_port, wait_for
from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.backend.health import Readiness

WORDS = (
    *("river", "stone", "light", "paper", "green", "house", "quick", "bird"),
    *("model", "token", "window", "small", "letter", "garden", "north", "table"),
)


def story(number: int, words: int = 220) -> str:
    """A text of about so many tokens, another one for each number."""
    return f"Story {number}: " + " ".join(WORDS[(at * at + at * number + number) % len(WORDS)] for at in range(words))


def conversation(number: int, question: str = "What is this about?", words: int = 220) -> list[dict[str, str]]:
    """What a client sends first."""
    return [{"role": "user", "content": f"{story(number, words)}\n{question}"}]


def goes_on(messages: list[dict[str, str]], answer: str) -> list[dict[str, str]]:
    """What a client sends next."""
    return [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "Go on."}]


TITLE = [{"role": "user", "content": "Write a title of three words for a chat about stones."}]


class LlamaServer:
    """A real llama-server as a plain process; the test is its client."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.port = free_port()
        self.command = [*command, "--host", "127.0.0.1", "--port", str(self.port)]
        with (folder / f"server-{self.port}.log").open("wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        self.backend = Backend(f"http://127.0.0.1:{self.port}")
        self._client = Proxy(self.port, self.process, folder)

    def wait_until_ready(self) -> None:
        wait_for(lambda: self.backend.readiness().readiness is Readiness.READY, 120, "llama-server is ready")

    def chat(self, messages: list[dict[str, str]], **fields: Any) -> tuple[dict[str, Any], bytes, Any]:
        """The request's body, its bytes, and the reply."""
        body = {"messages": messages, "max_tokens": 4, "temperature": 0, **fields}
        answer = self._client.post("/v1/chat/completions", body, timeout_s=300)
        assert answer.status == 200, answer.body
        return body, json.dumps(body).encode(), answer.json

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def running(command: list[str], folder: Path) -> Iterator[LlamaServer]:
    server = LlamaServer(command, folder)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()
