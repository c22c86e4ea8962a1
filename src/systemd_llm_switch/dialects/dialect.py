"""The interface of a dialect, for one request. The plain one is OpenAI's own chat and translates nothing."""

from __future__ import annotations

from systemd_llm_switch.openai.shapes import Json, dump
from systemd_llm_switch.openai.sse import error_event


class Dialect:
    """Translates the answers of one request for its route. Other dialects keep the state of a stream."""

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
    """An event with a line for its name, which is its type: SDKs skip events without a name."""
    return b"event: " + str(event["type"]).encode("ascii") + b"\ndata: " + dump(event) + b"\n\n"
