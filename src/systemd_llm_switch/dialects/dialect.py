"""What a dialect does for one request. The plain one is OpenAI's own: nothing is translated."""

from __future__ import annotations

from systemd_llm_switch.openai.shapes import Json, dump
from systemd_llm_switch.openai.sse import error_event


class Dialect:
    """One request's answers, in the words of its route. A dialect other than this one keeps the state of a stream."""

    is_translation = False

    def whole(self, reply: Json, raw: bytes) -> bytes:
        """A finished chat's reply; `raw` are its bytes."""
        return raw

    def events(self, frames: bytes) -> bytes:
        """The next whole frames of a chat's stream."""
        return frames

    def error_events(self, status: int, error: Json, *, may_get_better: bool) -> bytes:
        """An error that ends a stream; `error` has OpenAI's shape, without the object around it."""
        return error_event(error, may_get_better=may_get_better)


def named_event(event: Json) -> bytes:
    """An event whose name is its type. A line for the name: SDKs skip events without it."""
    return b"event: " + str(event["type"]).encode("ascii") + b"\ndata: " + dump(event) + b"\n\n"
