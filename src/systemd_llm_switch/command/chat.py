"""`llm-switch chat`: asks a model, and prints the answer as the proxy sends it.

With `streaming: live` that is as the model writes it, else whole at its end. Until the first words come, a line on the
terminal says what the request waits for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TextIO

from systemd_llm_switch.command.load import describe
from systemd_llm_switch.command.proxy_client import (
    MOST_CHARACTERS,
    Json,
    ProxyClient,
    Refused,
    add_config_argument,
    model_id,
    run_with_proxy,
)
from systemd_llm_switch.command.status import get_status
from systemd_llm_switch.command.waiting_line import waiting_line
from systemd_llm_switch.quoting import printable

_PATH = "/v1/chat/completions"
# A model may write what acts on a terminal: all control characters but the tab and the end of a line are shown instead.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="its id, or an alias")
    parser.add_argument("text", metavar="TEXT", nargs="*", default=[], help="the question; without it, a conversation")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Nothing but the answer goes to stdout; thoughts and tool calls go to stderr."""
    messages: list[Json] = [{"role": "system", "content": arguments.system}] if arguments.system else []

    def do(client: ProxyClient) -> None:
        for question in _questions(" ".join(arguments.text)):
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": _answer(client, arguments.model, messages)})

    return run_with_proxy(arguments, do)


def _questions(text: str) -> Iterator[str]:
    """The question on the command line, or all of stdin as one; on a terminal each line is one, until Ctrl-D."""
    if text:
        yield text
    elif not sys.stdin.isatty():
        yield sys.stdin.read()
    else:
        while True:
            sys.stderr.write("> ")
            sys.stderr.flush()
            line = sys.stdin.readline()
            if not line:
                sys.stderr.write("\n")
                return
            if line.strip():
                yield line.strip()


def _answer(client: ProxyClient, model: str, messages: list[Json]) -> str:
    """The text of the answer, printed as it comes.

    Raises:
        Refused: an error came within the stream.
    """
    with ExitStack() as until_words:
        until_words.enter_context(waiting_line(lambda: _describe_wait(client, model)))
        printer = _Printer(until_words)
        for delta in _deltas(client, {"model": model, "messages": messages, "stream": True}):
            printer.show(delta)
    print(flush=True)
    return "".join(printer.said)


def _describe_wait(client: ProxyClient, name: str) -> str:
    status, model = get_status(client), model_id(client, name)
    is_waiting = any(entry["model"] == model for entry in status["queue"])
    return describe(status, model) if is_waiting else f"{model} is answering"


def _deltas(client: ProxyClient, body: Json) -> Iterator[Json]:
    """Each piece of the answer.

    Raises:
        Refused: an error came within the stream.
    """
    for _, data in client.events("POST", _PATH, body):
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise Refused(printable(str(chunk["error"].get("message")), MOST_CHARACTERS))
        for choice in chunk.get("choices", []):
            yield choice.get("delta", {})


class _Printer:
    """Shows the pieces of an answer: the text on stdout, thoughts and tool calls on stderr. `said` is the text."""

    def __init__(self, until_words: ExitStack) -> None:
        self.said: list[str] = []
        self._until_words = until_words
        self._is_aside = False  # thoughts or calls came last

    def show(self, delta: Json) -> None:
        for extra in (delta.get("reasoning_content"), *map(_call_text, delta.get("tool_calls") or [])):
            if extra:
                self._until_words.close()
                self._is_aside = True
                sys.stderr.write(_shown_on(sys.stderr, extra))
                sys.stderr.flush()
        if text := delta.get("content"):
            self._until_words.close()
            self._end_aside()
            self.said.append(text)
            print(_shown_on(sys.stdout, text), end="", flush=True)

    def _end_aside(self) -> None:
        if self._is_aside:
            self._is_aside = False
            sys.stderr.write("\n")
            sys.stderr.flush()


def _shown_on(file: TextIO, text: str) -> str:
    """The text as it is; for a terminal, without what would act on it."""
    return text.translate(_CONTROLS) if file.isatty() else text


def _call_text(call: Json) -> str:
    function = call.get("function") or {}
    name = f"\n[{function['name']}] " if function.get("name") else ""
    return f"{name}{function.get('arguments') or ''}"
