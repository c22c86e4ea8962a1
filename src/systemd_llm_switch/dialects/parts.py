"""The parts of a chat's reply, in the order in which a client gets them: thoughts, text, calls, the end.

Both a finished reply and a stream of chunks are read into them, so that a dialect writes each part in one place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from systemd_llm_switch.openai.shapes import Json, choices_of, dump, object_of, objects_of
from systemd_llm_switch.repair import MALFORMED_ARGUMENTS, decode


class Thought(NamedTuple):
    """A piece of what the model thought."""

    text: str


class Text(NamedTuple):
    """A piece of what it answered."""

    text: str


class Call(NamedTuple):
    """A whole tool call. Its arguments are always a JSON object: clients parse them, and crash on anything else."""

    id: str
    name: str
    arguments: str


class End(NamedTuple):
    """The end of a reply, and what it says about itself."""

    finish_reason: str
    usage: Json


Part = Thought | Text | Call | End


def parts_of(reply: Json) -> Iterator[Part]:
    """The parts of a finished reply: its first choice."""
    choice = next(iter(choices_of(reply)), {})
    message = object_of(choice.get("message"))
    yield from _words(message)
    for call in objects_of(message.get("tool_calls")):
        yield _call(call)
    yield End(str(choice.get("finish_reason") or "stop"), object_of(reply.get("usage")))


@dataclass(slots=True)
class PartReader:
    """The parts of a stream of chunks, as each becomes complete. A call is kept until the next part begins."""

    usage: Json = field(default_factory=dict)
    model: str = ""
    created: int = 0
    _finish_reason: str = "stop"
    _calls: list[Json] = field(default_factory=list)
    _arguments: list[list[str]] = field(default_factory=list)  # of each call, in pieces

    def feed(self, frames: bytes) -> list[Part]:
        """What the frames say, which are whole ones; the end comes with `[DONE]`."""
        return [part for frame in frames.split(b"\n\n") if frame for part in self._read(frame.removeprefix(b"data: "))]

    def _read(self, data: bytes) -> Iterator[Part]:
        if data == b"[DONE]":
            yield from map(self._whole, self._calls, self._arguments)
            yield End(self._finish_reason, self.usage)
            return
        chunk: Json = json.loads(data)
        self.usage = object_of(chunk.get("usage")) or self.usage
        self.model = self.model or str(chunk.get("model") or "")
        self.created = self.created or whole_number(chunk.get("created"))
        for choice in choices_of(chunk):
            delta = object_of(choice.get("delta"))
            self._finish_reason = str(choice.get("finish_reason") or self._finish_reason)
            yield from _words(delta)
            for call in objects_of(delta.get("tool_calls")):
                self._add(call)

    def _add(self, delta: Json) -> None:
        """Takes in the delta of a call: the first one of each has its name."""
        function = object_of(delta.get("function"))
        if function.get("name") is not None or not self._calls:
            self._calls.append({**delta, "function": dict(function)})
            self._arguments.append([])
        else:
            self._arguments[-1].append(str(function.get("arguments") or ""))

    @staticmethod
    def _whole(call: Json, pieces: list[str]) -> Call:
        """A call with all pieces of its arguments, which are joined once."""
        function = call["function"]
        if pieces:
            function = function | {"arguments": "".join((str(function.get("arguments") or ""), *pieces))}
        return _call({**call, "function": function})


def _words(message: Json) -> Iterator[Part]:
    thought, text = message.get("reasoning_content"), message.get("content")
    if isinstance(thought, str) and thought:
        yield Thought(thought)
    if isinstance(text, str) and text:
        yield Text(text)


def _call(call: Json) -> Call:
    function = object_of(call.get("function"))
    return Call(str(call.get("id") or ""), str(function.get("name") or ""), _as_object(function.get("arguments")))


def _as_object(arguments: object) -> str:
    """Arguments that could not be repaired: an object with their text, under a name that says so to the model."""
    text = arguments if isinstance(arguments, str) else dump(arguments).decode()
    try:
        if isinstance(decode(text), dict):
            return text
    except (ValueError, RecursionError):
        pass
    return dump({MALFORMED_ARGUMENTS: text} if text.strip() else {}).decode()


def whole_number(value: object) -> int:
    """A number of a backend's reply, such as a count of tokens; 0 for anything else."""
    return value if isinstance(value, int) else 0
