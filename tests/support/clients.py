"""What real clients talk to: the real model, an embedder, and stand-ins with one fault each, behind one proxy."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.stack import Proxy, Stack, free_port, wait_for

MODES = ("buffered", "live")
TEMPLATE = Path(__file__).with_name("tools.jinja")
# What makes the small model call a tool: to be forced is not enough, llama-server lets it talk before the call
# (https://github.com/ggml-org/llama.cpp/issues/27217).
CALL_PROMPT = """Repeat this, and nothing else:
<tool_call>
{"name": "NAME", "arguments": {"city": "Oslo", "days": 2}}
</tool_call>"""

# What a model that formats badly makes of two calls: no id, no type, Python's quotes, a number as a text, a trailing
# comma, an object for a string.
_FIRST_CALL = "{'city': 'Paris', 'days': '3',}"
_BROKEN_CALLS: list[dict[str, Any]] = [
    {"function": {"name": "get_weather", "arguments": _FIRST_CALL}},
    {"function": {"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}},
]
MEANT_CALLS = [{"city": "Paris", "days": 3}, {"city": "Oslo", "days": 2}]
_BROKEN_JSON = "```json\n{'city': 'Paris', 'days': '3',}\n```"
LATE_ERROR = "the model fell over"


def _split(text: str) -> list[str]:
    return [text[start : start + 4] for start in range(0, len(text), 4)]


def _broken_calls() -> dict[str, Any]:
    deltas: list[dict[str, Any]] = [{"role": "assistant"}]
    first, second = _BROKEN_CALLS
    for piece in _split(_FIRST_CALL):
        name = {"name": "get_weather"} if len(deltas) == 1 else {}
        deltas.append({"tool_calls": [{"index": 0, "function": {**name, "arguments": piece}}]})
    deltas.append({"tool_calls": [{"index": 1, **second}]})
    return {
        "message": {"role": "assistant", "content": "", "tool_calls": [first, second]},
        "deltas": deltas,
        "then": {
            "message": {"role": "assistant", "content": "It rains."},
            "deltas": [{"role": "assistant"}, {"content": "It "}, {"content": "rains."}],
        },
    }


def _broken_json() -> dict[str, Any]:
    deltas = [{"role": "assistant"}, *({"content": piece} for piece in _split(_BROKEN_JSON))]
    return {"message": {"role": "assistant", "content": _BROKEN_JSON}, "deltas": deltas}


def _thinking() -> dict[str, Any]:
    """A reply that has everything at once."""
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    whole = {"role": "assistant", "reasoning_content": "Hm. Rain?", "content": "I look it up.", "tool_calls": [call]}
    deltas = [
        {"role": "assistant"}, {"reasoning_content": "Hm. "}, {"reasoning_content": "Rain?"},
        {"content": "I look "}, {"content": "it up."}, {"tool_calls": [{"index": 0, **call}]},
    ]  # fmt: skip
    return {"message": whole, "deltas": deltas, "finish": "tool_calls"}


def _late_error(mode: str) -> dict[str, Any]:
    """An error that comes when the client already has its 200."""
    if mode == "buffered":
        told = {"error": {"message": LATE_ERROR, "type": "server_error", "code": 500}}
        return {"delay_s": 2.2, "status": 500, "raw": json.dumps(told)}
    return {"stream_error": {"message": LATE_ERROR, "type": "server_error", "code": 500}}


@dataclass(frozen=True, slots=True)
class Bed:
    """The running proxy.

    Models: `real`, `embedder`; and of the stand-in `standin`, `broken-calls`, `broken-json`, `thinking`, `failing`
    (500 at once), `late-failing`, `endless` (streams without end, where it is asked to), `hanging`.
    """

    stack: Stack
    proxy: Proxy
    standin_port: int

    @property
    def url(self) -> str:
        return f"{self.proxy.url}/v1"

    def seen(self) -> Any:
        """What the stand-in saw."""
        return self.stack.seen(self.standin_port)

    def last_body(self) -> Any:
        """The last request that reached the stand-in."""
        return self.seen()["bodies"][-1]

    def wait_until_generating(self) -> None:
        """Blocks until the stand-in works on a request."""
        wait_for(lambda: self.seen()["running"], what="the stand-in works")

    def expect_freed(self, cancel: Callable[[], object]) -> None:
        """Cancels a request that the stand-in works on: the stand-in is freed, and the journal says 499."""
        dropped, told = self.seen()["dropped"], self.proxy.log.count("status=499")
        cancel()
        wait_for(lambda: self._drops() == (dropped + 1, 0), what="the backend is freed")
        wait_for(lambda: self.proxy.log.count("status=499") == told + 1, what="the journal says status=499")

    def _drops(self) -> tuple[int, int]:
        """How many requests the stand-in has dropped, and how many it works on."""
        seen = self.seen()
        return seen["dropped"], seen["running"]


def lay(stack: Stack, real_unit: Callable[..., str], mode: str) -> Bed:
    """Starts the stack's proxy with all models. `mode` is its `server.streaming`."""
    port, embedder_port = free_port(), free_port()
    real = real_unit("real", "--chat-template-file", str(TEMPLATE))
    standin = stack.standin("standin", port=port)
    orders: dict[str, dict[str, Any]] = {
        "standin": {},
        "broken-calls": _broken_calls(),
        "broken-json": _broken_json(),
        "thinking": _thinking(),
        "failing": {"status": 500},
        "late-failing": _late_error(mode),
        "endless": {"deltas": [{"content": "x "}] * 5000, "delta_s": 0.05} if mode == "live" else {"hang": True},
        "hanging": {"hang": True},
    }
    apart = {"llama_url": f"http://127.0.0.1:{port}", "vram": 0}
    models: dict[str, Any] = {
        "real": real,
        "embedder": {
            "unit": real_unit("embedder", "--embedding", "--pooling", "mean", port=embedder_port),
            "llama_url": f"http://127.0.0.1:{embedder_port}",
            "vram": 0,
        },
        **{name: {"unit": standin, **apart, "force": {"standin": order}} for name, order in orders.items()},
    }
    proxy = stack.run(models, streaming=mode)
    assert proxy.chat("standin").status == 200  # it is loaded, and stays so
    return Bed(stack, proxy, port)


@contextlib.contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A client's process that is gone afterwards, whatever happens."""
    with process:
        try:
            yield process
        finally:
            process.kill()
