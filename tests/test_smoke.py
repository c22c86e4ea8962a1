#!/usr/bin/env python3
"""A real request to the running proxy, for each configured model or for the named ones.

    python3 tests/test_smoke.py [model …] [--url URL] [--key KEY]

Needs Python alone. Says what it asked, what came back, and how long the switch and the whole took; the exit code
is 0 when every model answered, else 1. The URL may stand in $LLM_SWITCH_URL, too, and the key (one of
server.api_keys) is better in $LLM_SWITCH_API_KEY: everybody on the machine sees the arguments of what runs. What
pytest finds in this file tests it as a person runs it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

    from support.stack import Stack

DEFAULT_URL = "http://127.0.0.1:3002"
QUESTION = "Say hello in one short sentence."
TIMEOUT_S = 900  # a large model takes minutes to load, and a slow one some more to answer
HOW_TO_START = """\
  Set it up:      ./setup.sh          (or, without GPU and models: ./setup.sh --demo)
  Start it:       systemctl --user start llm-switch
  Or by hand:     .venv/bin/python -m systemd_llm_switch
  See why not:    journalctl --user -u llm-switch -n 20
  Another place:  python3 tests/test_smoke.py --url http://HOST:PORT"""
# Names of embedding models. A wrong guess costs one request, which the backend refuses.
EMBEDDING_NAMES = re.compile(r"embed|bge|gte|minilm|nomic|mxbai|arctic|stella|bert|\be5\b", re.IGNORECASE)
# How a backend says that it does not do this. The last one is llama-server's.
REFUSALS = (400, 404, 405, 415, 422, 501)


class Failure(Exception):
    """A model did not answer as it should; the message says why."""


class Refusal(Failure):
    """The backend does not do what was asked, but may do something else."""


@dataclass(frozen=True)
class Reply:
    """What came back, and when."""

    status: int
    body: Any
    switch_s: float
    whole_s: float

    @property
    def error(self) -> str:
        """What the error says, with its status and code."""
        error = self.body.get("error") if isinstance(self.body, dict) else None
        if not isinstance(error, dict):
            return f"{self.status}: {str(self.body)[:300]}"
        return f"{self.status} {error.get('code')}: {error.get('message')}"

    @property
    def is_refusal(self) -> bool:
        """Whether it is the backend that refuses; the proxy's own word on an unknown model is final."""
        return self.status in REFUSALS and "model_not_found" not in self.error


@dataclass(frozen=True)
class Server:
    """Where to ask, and with which key; an empty one is not sent."""

    url: str
    key: str = field(repr=False)

    def get(self, path: str, timeout_s: float) -> Reply:
        """Raises Failure when there is no reply."""
        return fetch(urllib.request.Request(self.url + path, headers=self._headers()), timeout_s)

    def post(self, path: str, body: Any) -> Reply:
        """Raises Failure when there is no reply."""
        headers = {"Content-Type": "application/json"} | self._headers()
        return fetch(urllib.request.Request(self.url + path, json.dumps(body).encode(), headers), TIMEOUT_S)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


@dataclass(frozen=True)
class Probe:
    """One way of asking a model: the route, the question, and how to read the answer."""

    path: str
    question: str
    fields: dict[str, Any]
    read: Callable[[Any], str]

    def ask(self, server: Server, model: str) -> Reply:
        """Raises Failure, Refusal."""
        reply = server.post(self.path, {"model": model, **self.fields})
        if reply.is_refusal:
            raise Refusal(reply.error)
        if reply.status != 200:
            raise Failure(reply.error)
        return reply


def read_chat(body: Any) -> str:
    """What the model said, or thought when it came no further."""
    message = body["choices"][0]["message"]
    text = message.get("content") or message.get("reasoning_content") or ""
    if not text.strip():
        raise ValueError("the answer is empty")
    return f"“{' '.join(text.split())[:200]}”"


def read_embedding(body: Any) -> str:
    vector = body["data"][0]["embedding"]
    if not any(vector):
        raise ValueError("the vector is empty, or all zeros")
    return f"a vector of {len(vector)} numbers"


CHAT = Probe(
    "/v1/chat/completions", QUESTION,
    {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64, "temperature": 0}, read_chat,
)  # fmt: skip
EMBEDDING = Probe("/v1/embeddings", "an embedding of it", {"input": [QUESTION]}, read_embedding)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A real request to the running proxy, for each model.")
    parser.add_argument("models", nargs="*", metavar="model", help="default: every configured one")
    default = os.environ.get("LLM_SWITCH_URL") or DEFAULT_URL
    parser.add_argument("--url", default=default, help=f"default: $LLM_SWITCH_URL, else {DEFAULT_URL}")
    default_key = os.environ.get("LLM_SWITCH_API_KEY", "")
    parser.add_argument("--key", default=default_key, help="one of server.api_keys; default: $LLM_SWITCH_API_KEY")
    asked = parser.parse_args(arguments)
    server = Server(asked.url.rstrip("/").removesuffix("/v1"), asked.key.strip())
    try:
        configured = configured_models(server)
    except Failure as failure:
        print(f"✗ {failure}", file=sys.stderr)
        return 1
    models = asked.models or configured
    print(f"{server.url}: {', '.join(models)}", flush=True)
    failed = [model for model in models if not try_model(server, model)]
    print(f"✗ failed: {', '.join(failed)}" if failed else f"✓ {len(models)} of {len(models)} answered")
    return 1 if failed else 0


def configured_models(server: Server) -> list[str]:
    """The ids of /v1/models. Raises Failure when no proxy answers."""
    try:
        reply = server.get("/v1/models", timeout_s=10)
    except Failure as failure:
        raise Failure(f"no proxy answers at {server.url}: {failure}\n{HOW_TO_START}") from failure
    if reply.status == 401:
        raise Failure(f"{server.url} wants a key; put one of server.api_keys into $LLM_SWITCH_API_KEY (or --key)")
    if reply.status != 200:
        raise Failure(f"{server.url}/v1/models answers {reply.error}")
    try:
        return [str(model["id"]) for model in reply.body["data"]]
    except (KeyError, TypeError) as error:
        raise Failure(f"what answers at {server.url} is not an OpenAI server: {str(reply.body)[:200]}") from error


def try_model(server: Server, model: str) -> bool:
    """Asks one model and shows how it went."""
    print(f"\n{model}", flush=True)
    try:
        probe, reply = ask_in_some_way(server, model)
        answer = read(probe, reply)
    except Failure as failure:
        print(f"  ✗ {failure}", flush=True)
        return False
    switch = f"{reply.switch_s:.2f} s" if reply.switch_s else "none, it was loaded"
    print(f"  asked     POST {probe.path}: {probe.question}\n  answered  {answer}")
    print(f"  ✓ switch  {switch}; the whole {reply.whole_s:.2f} s", flush=True)
    return True


def ask_in_some_way(server: Server, model: str) -> tuple[Probe, Reply]:
    """By chat or by an embedding, as the name suggests; the other way when the backend refuses. Raises Failure."""
    first, second = (EMBEDDING, CHAT) if EMBEDDING_NAMES.search(model) else (CHAT, EMBEDDING)
    try:
        return first, first.ask(server, model)
    except Refusal as refusal:
        try:
            return second, second.ask(server, model)
        except Refusal as other:
            raise Failure(f"{first.path}: {refusal}\n    {second.path}: {other}") from other


def read(probe: Probe, reply: Reply) -> str:
    """The answer, for a person. Raises Failure when there is none."""
    try:
        return probe.read(reply.body)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise Failure(f"no answer in the reply ({error}): {json.dumps(reply.body)[:300]}") from error


def fetch(request: urllib.request.Request, timeout_s: float) -> Reply:
    """The reply, whatever its status. Raises Failure when there is none."""
    # A proxy of the environment's must not be asked for what is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    began = time.monotonic()
    try:
        try:
            answer: Any = opener.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            raw = answer.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failure(str(getattr(error, "reason", "") or error or type(error).__name__)) from error
    took = re.search(r"switch;dur=([\d.]+)", answer.headers.get("Server-Timing", ""))
    return Reply(answer.status, parsed(raw), float(took[1]) / 1000 if took else 0.0, time.monotonic() - began)


def parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")


# --- for pytest: this file, run as a person runs it -------------------------------------------------

MODELS = (200, {"data": [{"id": "m"}]})


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    import subprocess

    command = [sys.executable, "-I", __file__, *arguments]  # -I: none of the tests' packages is within reach
    env = {name: value for name, value in os.environ.items() if not name.startswith("LLM_SWITCH_")} | environ
    return subprocess.run(command, env=env, capture_output=True, encoding="utf-8", timeout=120, check=False)


def test_each_configured_model_answers(stack: Stack, real_unit: Callable[..., str]) -> None:
    """Two real chat models and a real embedder; a chat model whose name looks like an embedder's is found out."""
    embedder = real_unit("embedder", "--embedding", "--pooling", "mean")
    proxy = stack.run({"coder": real_unit("coder"), "bert-chats": real_unit("bert-chats"), "embedder": embedder})
    ran = run("--url", proxy.url)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    shown = dict(part.split("\n", 1) for part in ran.stdout.split("\n\n")[1:])
    assert list(shown) == ["coder", "bert-chats", "embedder"]
    for chat in ("coder", "bert-chats"):
        assert f"asked     POST /v1/chat/completions: {QUESTION}" in shown[chat]
        assert re.search(r"answered  “\w.*”", shown[chat])
    assert "asked     POST /v1/embeddings" in shown["embedder"]
    assert "answered  a vector of 576 numbers" in shown["embedder"]
    for name in ("coder", "embedder"):
        assert re.search(r"✓ switch  \d+\.\d\d s; the whole \d+\.\d\d s", shown[name])
    assert ran.stdout.endswith("✓ 3 of 3 answered\n")


def test_only_the_named_models_are_asked(stack: Stack) -> None:
    """By id or alias; with the URL from the environment, past a proxy of the environment's."""
    proxy = stack.run({"a": {"unit": stack.standin("a"), "aliases": ["other"]}, "b": stack.standin("b")})
    ran = run("other", LLM_SWITCH_URL=f"{proxy.url}/v1", http_proxy="http://127.0.0.1:9", no_proxy="")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "“hello from a”" in ran.stdout
    assert [switch["to"] for switch in proxy.status()["switches"]] == ["a"]
    assert "switch  none, it was loaded" in run("a", "--url", proxy.url).stdout


def test_a_broken_model_fails_and_the_others_are_asked_all_the_same(stack: Stack) -> None:
    broken = stack.standin("broken", "--exit", "3", "--say", "error: no such model file")
    proxy = stack.run({"broken": broken, "sound": stack.standin("sound")})
    ran = run("--url", proxy.url)
    assert ran.returncode == 1
    assert "✗ 503 model_start_failed: " in ran.stdout
    assert "error: no such model file" in ran.stdout
    assert "“hello from sound”" in ran.stdout
    assert ran.stdout.endswith("✗ failed: broken\n")


def test_a_key_is_sent_where_one_is_asked_for(stack: Stack) -> None:
    """From the environment or an argument; without one, the message says how to give it. The key is never shown."""
    proxy = stack.run({"a": stack.standin("a")}, api_keys=["hush-hush"])
    by_env = run("--url", proxy.url, LLM_SWITCH_API_KEY="hush-hush\n")
    by_argument = run("--url", proxy.url, "--key", "hush-hush", LLM_SWITCH_API_KEY="another")
    without = run("--url", proxy.url)
    assert [ran.returncode for ran in (by_env, by_argument, without)] == [0, 0, 1]
    assert "put one of server.api_keys into $LLM_SWITCH_API_KEY" in without.stderr
    shown = by_env.stdout + by_argument.stdout + run("--help", LLM_SWITCH_API_KEY="hush-hush").stdout
    assert "hush" not in shown


def test_an_unknown_model_is_named_once(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")})
    ran = run("nope", "--url", proxy.url)
    assert ran.returncode == 1
    assert ran.stdout.count("404 model_not_found") == 1


def test_an_empty_answer_is_a_failure() -> None:
    """Also one without an answer."""
    bodies: list[Any] = [{"choices": [{"message": {"content": " "}}]}, {"choices": []}, "text", {"data": None}]
    for body in bodies:
        assert "no answer in the reply" in failure_to_read(CHAT, body)
    assert "all zeros" in failure_to_read(EMBEDDING, {"data": [{"embedding": [0.0]}]})


def test_an_embedder_by_another_name_is_found_out() -> None:
    """Its backend refuses to chat, as llama-server does."""
    embedding = {"data": [{"embedding": [1.0, 2.0]}]}
    with backend({"/v1/models": MODELS, "/v1/embeddings": (200, embedding)}) as url:
        ran = run("--url", url)
    assert ran.returncode == 0, ran.stdout
    assert "a vector of 2 numbers" in ran.stdout


def test_a_model_that_refuses_both_shows_both_reasons() -> None:
    with backend({"/v1/models": MODELS}) as url:
        ran = run("--url", url)
    assert ran.returncode == 1
    assert ran.stdout.count("501 not_supported: no such thing here") == 2


def test_where_nothing_answers_it_says_how_to_start_it() -> None:
    from support.stack import free_port

    url = f"http://127.0.0.1:{free_port()}"
    ran = run("a-model", "--url", url)
    assert ran.returncode == 1
    assert f"✗ no proxy answers at {url}: [Errno 111] Connection refused" in ran.stderr
    assert "systemctl --user start llm-switch" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_something_else_on_the_port_is_named() -> None:
    with backend({"/v1/models": (200, {"hello": "world"})}) as url:
        ran = run("--url", url)
    assert ran.returncode == 1
    assert f"what answers at {url} is not an OpenAI server" in ran.stderr


def failure_to_read(probe: Probe, body: Any) -> str:
    try:
        read(probe, Reply(200, body, 0, 0))
    except Failure as failure:
        return str(failure)
    raise AssertionError("it did not fail")


def backend(answers: dict[str, tuple[int, Any]]) -> Any:
    """A server that answers these paths, and 501 to all others; a context manager that gives its URL."""
    import contextlib
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    refused = (501, {"error": {"code": "not_supported", "message": "no such thing here", "type": "server_error"}})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers.get(self.path, refused)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    @contextlib.contextmanager
    def serving() -> Any:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    return serving()


if __name__ == "__main__":
    raise SystemExit(main())
