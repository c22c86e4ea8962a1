"""The first answer of an added model: loaded through the proxy, asked once, and its speed."""

from __future__ import annotations

import time
from pathlib import Path

from systemd_llm_switch.command.load import describe_load
from systemd_llm_switch.command.proxy_client import Json, ProxyClient, Refused
from systemd_llm_switch.command.tables import duration
from systemd_llm_switch.command.waiting_line import waiting_line
from systemd_llm_switch.models.facts import Purpose
from systemd_llm_switch.quoting import printable
from systemd_llm_switch.setup import console

_QUESTION = "Say hello in one short sentence."
_MOST_TOKENS = 256  # a model that thinks may think for so long
_LONGEST_SHOWN = 500


def check_ready(client: ProxyClient, config: Path) -> None:
    """Before anything is changed.

    Raises:
        NoProxy, Refused: the proxy could not load a new model now.
    """
    status = client.get("/api/status")
    path = Path(status["config"]["path"])
    if path.resolve() != config.resolve():
        raise Refused(f"the running proxy reads {path}, not {config}: say --config {path}")
    if status["config"]["error"]:
        raise Refused(f"the proxy's config file is broken, repair it first: {status['config']['error']}")
    if status["on_hold"]:
        raise Refused(
            "the VRAM is on hold, so a model cannot be tried; `llm-switch release` ends that, or say --no-try"
        )


def first_answer(client: ProxyClient, model: str, purpose: Purpose) -> None:
    """Loads the model and asks it; whatever fails, it is unloaded again.

    Raises:
        Refused, NoProxy, KeyboardInterrupt
    """
    try:
        began = time.monotonic()
        with waiting_line(lambda: describe_load(client, model)):
            client.post("/api/load", {"model": model})
        console.done(f"loaded in {duration(time.monotonic() - began)}")
        _ASK[purpose](client, model)
    except BaseException:
        client.post("/api/unload", {"model": model, "force": True})
        raise


def _chat(client: ProxyClient, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": _QUESTION}], "max_tokens": _MOST_TOKENS}
    began = time.monotonic()
    reply = client.post("/v1/chat/completions", body)
    took_s = time.monotonic() - began
    match reply:
        case {"choices": [{"message": dict(message)}, *_]}:
            text = message.get("content") or message.get("reasoning_content") or ""
        case _:
            text = ""
    if not str(text).strip():
        raise Refused(f"{model} was loaded, but its answer to {_QUESTION!r} is empty; is it a model that chats?")
    console.plain(f"    {_QUESTION}")
    console.plain(f"    “{printable(' '.join(str(text).split()), _LONGEST_SHOWN)}”")
    console.done(_speed(reply, took_s))


def _speed(reply: Json, took_s: float) -> str:
    """llama-server's own figures, else the time of the whole request."""
    timings, usage = reply.get("timings") or {}, reply.get("usage") or {}
    tokens = usage.get("completion_tokens") or timings.get("predicted_n") or 0
    per_s = timings.get("predicted_per_second") or (tokens / took_s if took_s else 0)
    return f"{tokens} tokens, {per_s:.1f} tokens per second"


def _embed(client: ProxyClient, model: str) -> None:
    match client.post("/v1/embeddings", {"model": model, "input": _QUESTION}):
        case {"data": [{"embedding": list(vector)}, *_]} if vector:
            console.done(f"a vector of {len(vector)} numbers")
        case _:
            raise Refused(f"{model} was loaded, but gave no vector")


def _rank(client: ProxyClient, model: str) -> None:
    body = {"model": model, "query": "fruit", "documents": ["an apple", "a car"]}
    match client.post("/v1/rerank", body):
        case {"results": list(results)} if results:
            console.done(f"it ranked {len(results)} documents")
        case _:
            raise Refused(f"{model} was loaded, but ranked nothing")


_ASK = {Purpose.CHAT: _chat, Purpose.EMBEDDING: _embed, Purpose.RERANK: _rank}
