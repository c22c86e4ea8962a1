"""`llm-switch chat`: asks a model, and prints the answer as it comes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from systemd_llm_switch.command.proxy_client import Json, ProxyClient, Refused, add_config_argument, run_with_proxy

_PATH = "/v1/chat/completions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="its id, or an alias")
    parser.add_argument("text", metavar="TEXT", nargs="*", help="the question; without it, a conversation")
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
    said: list[str] = []
    for _, data in client.events("POST", _PATH, {"model": model, "messages": messages, "stream": True}):
        if data == "[DONE]":
            break
        chunk = json.loads(data)
        if "error" in chunk:
            raise Refused(str(chunk["error"].get("message")))
        for choice in chunk.get("choices", []):
            delta = choice.get("delta", {})
            _show_thoughts_and_calls(delta)
            if text := delta.get("content"):
                said.append(text)
                print(text, end="", flush=True)
    print(flush=True)
    return "".join(said)


def _show_thoughts_and_calls(delta: Json) -> None:
    """To stderr."""
    for text in (delta.get("reasoning_content"), *map(_call_text, delta.get("tool_calls") or [])):
        if text:
            sys.stderr.write(text)
            sys.stderr.flush()


def _call_text(call: Json) -> str:
    function = call.get("function") or {}
    name = f"\n[{function['name']}] " if function.get("name") else ""
    return f"{name}{function.get('arguments') or ''}"
