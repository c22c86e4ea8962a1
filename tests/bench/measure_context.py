"""What a conversation costs after its model was switched away and back: until the first token of the next answer."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.bed import Bed
from bench.contenders import ROUTER, ContenderError, Kind, Lineup, end, spawn, turned
from bench.effort import Effort
from bench.figures import MS, Figures, Measurement
from support.stack import Stack, free_port

KEPT = "contexts kept"
KEPT_TITLE = "contexts kept, a title request in between"
STAYED = "the model stays loaded: no switch"
OFF = "`max_gb: 0`"
_OPTIONS = ("-t", "1", "-c", "4096", "-np", "1", "--jinja")
_WORDS = ("river", "stone", "light", "paper", "green", "house", "quick", "bird", "model", "token", "small", "letter")
_TITLE = "Write a title of three words for a chat about stones and rivers."
_TIMEOUT_S = 900.0
_NUMBERS = itertools.count(1)
_SAVED = re.compile(r"context_saved model=\S+ slot=\d+ tokens=(\d+) bytes=(\d+) ms=(\d+)")
_RESTORED = re.compile(r"context_restored model=\S+ slot=\d+ tokens=(\d+) bytes=(\d+) ms=(\d+)")


@dataclass(frozen=True, slots=True)
class Switching:
    """A way to have two models, of which one is loaded. `log` is the proxy's log: a line for each saved context."""

    name: str
    address: str
    log: Callable[[], str] = lambda: ""
    has_title: bool = False
    has_switch: bool = True


def measure_context(lineup: Lineup, effort: Effort, figures: Figures) -> None:
    """7: A → B → A with a conversation; with contexts kept, without, and with llama-server's router."""
    first = figures.of("context", "Until the first token after A → B → A, real model (ms)")
    away = figures.of("context-away", "Until the first token of B, asked after a conversation with A (ms)")
    files = figures.of("context-files", "Saving and restoring a context, real model")
    off = start_proxy(lineup.bed, OFF, {"max_gb": 0})
    kept = start_proxy(lineup.bed, KEPT, {})
    titled = Switching(KEPT_TITLE, kept.address, kept.log, has_title=True)
    stayed = Switching(STAYED, kept.address, kept.log, has_switch=False)
    ways = [stayed, kept, titled, off, _router(lineup.bed)]
    for number in range(effort.context_rounds):
        for tokens in effort.context_tokens:
            for way in turned(ways, number):
                _round(way, tokens, number, first, away)
    _note_files(kept.log(), files)
    first.note(
        "*load*: the same with a prompt of 20 tokens, so little more than the load itself. The next request continues "
        "the conversation: it adds the answer and one more question."
    )
    files.note("As the proxy measures it, transfer included: the time that a switch waits.")


def _round(way: Switching, tokens: int, number: int, into: Measurement, away: Measurement) -> None:
    a, b = Kind.REAL.models
    messages = [{"role": "user", "content": f"{story(tokens, number, way.name)} What is this about?"}]
    ask_first(way, a, messages)
    if way.has_title:
        ask_first(way, a, [{"role": "user", "content": _TITLE}])
    if way.has_switch:
        away.add(way.name, f"{tokens} tokens", ask_first(way, b, [{"role": "user", "content": "Hi."}]) * MS)
    more = [*messages, {"role": "assistant", "content": "A story."}, {"role": "user", "content": "Go on, please."}]
    into.add(way.name, f"{tokens} tokens", ask_first(way, a, more) * MS)
    if way.has_switch:
        ask_first(way, b, [{"role": "user", "content": "Hi."}])
        into.add(way.name, "load", ask_first(way, a, [{"role": "user", "content": f"Hi, number {number}."}]) * MS)


def story(tokens: int, number: int, name: str) -> str:
    """A prompt of about so many tokens, another one for each round and way."""
    words = " ".join(_WORDS[(at * at + at * (tokens + number)) % len(_WORDS)] for at in range(tokens - 40))
    return f"Story {number} of {tokens}, {name}: {words}"


def ask_first(way: Switching, model: str, messages: list[dict[str, str]]) -> float:
    """One streamed request, asked again while the router is still loading; seconds until its first token."""
    fields = {"max_tokens": 4, "temperature": 0, "stream": True, "ignore_eos": True}
    body: dict[str, Any] = {"model": model, "messages": messages, **fields}
    began = time.perf_counter()
    while time.perf_counter() - began < _TIMEOUT_S:
        connection = http.client.HTTPConnection(way.address, timeout=_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            reply = connection.getresponse()
            if reply.status == 503:
                time.sleep(0.05)
                continue
            first_s = None
            for line in reply:
                if first_s is None and b'"content":"' in line.replace(b" ", b""):
                    first_s = time.perf_counter() - began
            if first_s is None:
                raise ContenderError(f"{way.name} answered {reply.status} without text")
            return first_s
    raise ContenderError(f"{way.name} did not answer in time")


def start_proxy(bed: Bed, name: str, contexts: dict[str, Any], *, saves: bool = True) -> Switching:
    """A proxy with both real models; without `saves`, their units keep no contexts."""
    stack: Stack = bed.stack(f"context{next(_NUMBERS)}")
    folder = stack.folder / "contexts"
    folder.mkdir(mode=0o700)
    real = bed.programs.real
    units = {}
    for index, model in enumerate(Kind.REAL.models):
        words = [str(real.server), "-m", str(real.files[index]), "--host", "127.0.0.1", "--port", str(stack.port)]
        units[model] = stack.unit(
            model, shlex.join([*words, *_OPTIONS, *(["--slot-save-path", str(folder)] if saves else [])])
        )
    stack.write_config(units, streaming="live", contexts=contexts)
    proxy = stack.start_proxy()
    return Switching(name, f"127.0.0.1:{proxy.port}", lambda: proxy.log)


def _router(bed: Bed) -> Switching:
    stack = bed.stack("context-router")
    preset = stack.folder / "preset.ini"
    names = {"-t": "threads", "-c": "ctx-size", "-np": "parallel"}
    options = [f"{names[name]} = {value}" for name, value in zip(_OPTIONS[:-1:2], _OPTIONS[1::2], strict=True)]
    parts = ["version = 1"]
    for model, file in zip(Kind.REAL.models, bed.programs.real.files, strict=True):
        parts += ["", f"[{model}]", f"model = {file}", "jinja = true", *options]
    preset.write_text("\n".join([*parts, ""]))
    port = free_port()
    words = ["--models-preset", str(preset), "--models-max", "1", "--host", "127.0.0.1", "--port", str(port)]
    process, _ = spawn([str(bed.programs.real.server), *words], port, bed.env, Path(stack.folder) / "router.log")
    bed.closing.callback(end, process)
    return Switching(ROUTER, f"127.0.0.1:{port}")


def _note_files(log: str, into: Measurement) -> None:
    for row, pattern in (("save", _SAVED), ("restore", _RESTORED)):
        for tokens, size, ms in pattern.findall(log):
            name = f"{row}, about {round(int(tokens), -2)} tokens"
            into.add(name, "ms", float(ms))
            into.add(name, "MB", int(size) / 1e6)
