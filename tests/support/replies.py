"""Chat replies as a backend sends them: whole, or in pieces as a stream, and what a client puts together again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from systemd_llm_switch.repair import Budget

Json = dict[str, Any]


def plenty() -> Budget:
    """CPU time enough for any reply of a test, however busy the machine is."""
    return Budget(base_s=60)


def saying(content: str, finish_reason: str = "stop") -> Json:
    """A reply of words."""
    message = {"role": "assistant", "content": content}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


def calling(tool: str, arguments: object, finish_reason: str = "tool_calls") -> Json:
    """A reply of one tool call."""
    call = {"id": "call_1", "type": "function", "function": {"name": tool, "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


def call_of(reply: Json) -> Json:
    """The name and the arguments of a reply's only call."""
    (call,) = reply["choices"][0]["message"]["tool_calls"]
    function: Json = call["function"]
    return function


def events_of(reply: Json, sizes: Iterable[int]) -> Iterator[bytes]:
    """The stream that tells this reply; its texts in pieces of these sizes."""
    size = iter(sizes)
    for choice in reply["choices"]:
        for delta in _deltas(choice["message"], size):
            yield _event(choice["index"], delta, None)
        yield _event(choice["index"], {}, choice["finish_reason"])
    if "usage" in reply:
        yield json.dumps({"choices": [], "usage": reply["usage"]}).encode()


def told_by(frames: Iterable[bytes]) -> dict[int, Json]:
    """What a client puts together of a stream, by the choice's index."""
    told: dict[int, Json] = {}
    for event in b"".join(frames).split(b"\n\n"):
        if not event.startswith(b"data: {"):
            continue
        for choice in json.loads(event.removeprefix(b"data: "))["choices"]:
            _add(told.setdefault(choice["index"], _nothing()), choice)
    return told


def told_whole(reply: Json) -> dict[int, Json]:
    """The same of a finished reply."""
    told: dict[int, Json] = {}
    for choice in reply["choices"]:
        message = choice["message"]
        told[choice["index"]] = {
            "text": message.get("content") or "",
            "calls": {
                position: {name: call["function"][name] for name in ("name", "arguments")}
                for position, call in enumerate(message.get("tool_calls") or [])
            },
            "function": message.get("function_call"),
            "finish": choice["finish_reason"],
        }
    return told


def _deltas(message: Json, size: Iterator[int]) -> Iterator[Json]:
    yield {"role": message["role"]} if "role" in message else {}
    yield from ({name: message[name]} for name in ("reasoning_content", "refusal") if message.get(name))
    yield from ({"content": piece} for piece in _pieces(message.get("content") or "", size))
    for index, call in enumerate(message.get("tool_calls") or []):
        function = call["function"]
        text = function.get("arguments")
        is_text = isinstance(text, str)
        yield {"tool_calls": [call | {"index": index, "function": function | ({"arguments": ""} if is_text else {})}]}
        for piece in _pieces(text, size) if is_text else ():
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
    if function := message.get("function_call"):
        yield {"function_call": function | {"arguments": ""}}
        yield from ({"function_call": {"arguments": piece}} for piece in _pieces(function["arguments"], size))


def _pieces(text: str, size: Iterator[int]) -> Iterator[str]:
    at = 0
    while at < len(text):
        end = at + next(size)
        yield text[at:end]
        at = end


def _event(index: int, delta: Json, finish_reason: str | None) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason}
    return json.dumps({"id": "x", "object": "chat.completion.chunk", "choices": [choice]}).encode()


def _nothing() -> Json:
    return {"text": "", "calls": {}, "function": None, "finish": None}


def _add(told: Json, choice: Json) -> None:
    assert told["finish"] is None, "something came behind finish_reason"
    delta = choice["delta"]
    told["text"] += delta.get("content") or ""
    for part in delta.get("tool_calls") or []:
        call = told["calls"].setdefault(part["index"], {"name": part["function"].get("name"), "arguments": ""})
        call["arguments"] += part["function"].get("arguments") or ""
    if part := delta.get("function_call"):
        told["function"] = told["function"] or {"name": part["name"], "arguments": ""}
        told["function"]["arguments"] += part.get("arguments") or ""
    told["finish"] = choice["finish_reason"]
