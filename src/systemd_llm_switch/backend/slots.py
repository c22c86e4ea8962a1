"""llama-server's slots: lists them, saves one to a file, restores one, and fills one with a prompt that it still has.

Each call blocks at most until its deadline. Must not know files, units or conversations.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.backend.exchange import BackendDeadline, BackendLost, Bounds, Message, ReplyTooLarge
from systemd_llm_switch.openai.shapes import load
from systemd_llm_switch.waiting import Client

_LARGEST_REPLY = 8 << 20  # an old build's list of slots repeats their prompts
_QUOTED = 200
# If it is asked more often, llama-server keeps working on requests whose clients have gone.
LIST_PAUSE_S = 1.0


class SlotError(Exception):
    """The backend refused, did not answer in time, or ended; the message says which."""


class SlotRefused(SlotError):
    """The backend answered with an error."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot. `tokens` is how many of a prompt and its answer it holds; `task` grows with each request, and is -1
    before the first."""

    number: int
    tokens: int
    is_busy: bool
    task: int = -1


@dataclass(frozen=True, slots=True)
class Transfer:
    """A slot that was saved or restored: how many tokens, how many bytes, and how long it took."""

    tokens: int
    size: int
    took_s: float


@dataclass(frozen=True, slots=True)
class Replay:
    """A prompt that was sent again: in which slot it is, and how much of it the backend still had."""

    slot: int
    tokens: int
    cached: int


class Slots:
    """The slots of one backend. Not thread-safe."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._listed_at = -math.inf

    def list(self, deadline: float) -> list[Slot] | None:
        """All slots; None if they were listed less than a second ago.

        Raises:
            SlotError
        """
        if time.monotonic() < self._listed_at + LIST_PAUSE_S:
            return None
        self._listed_at = time.monotonic()
        found = self._ask("GET", "/slots", None, deadline)
        try:
            return [_parse_slot(it) for it in found]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SlotError(f"GET /slots answered in an unknown form: {error!r}") from error

    def save(self, slot: int, name: str, deadline: float) -> Transfer:
        """The backend writes a slot's content to a file in its own folder.

        Raises:
            SlotError
        """
        return self._transfer(slot, "save", name, ("n_saved", "n_written"), deadline)

    def restore(self, slot: int, name: str, deadline: float) -> Transfer:
        """The backend fills a slot from a file.

        Raises:
            SlotError
        """
        return self._transfer(slot, "restore", name, ("n_restored", "n_read"), deadline)

    def replay(self, body: dict[str, Any], is_chat: bool, deadline: float) -> Replay:
        """The backend loads a prompt again that it has read before. It generates one token, which is not used.

        Raises:
            SlotError
        """
        prompt = self._prompt(body, deadline) if is_chat else body.get("prompt")
        if not isinstance(prompt, str):
            raise SlotError("the prompt cannot be sent again")
        reply = self._complete(prompt, deadline)
        try:
            timings = reply["timings"]
            cached = int(timings["cache_n"])
            return Replay(int(reply["id_slot"]), cached + int(timings["prompt_n"]), cached)
        except (KeyError, TypeError, ValueError) as error:
            raise SlotError(f"POST /completion answered in an unknown form: {error!r}") from error

    def tokens(self, body: dict[str, Any], deadline: float) -> tuple[int, ...]:
        """The tokens of a chat's prompt.

        Raises:
            SlotError
        """
        order = {"content": self._prompt(body, deadline), "add_special": True, "parse_special": True}
        tokens = _field(self._ask("POST", "/tokenize", order, deadline), "tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise SlotError("POST /tokenize answered in an unknown form")
        return tuple(tokens)

    def read(self, tokens: Sequence[int], deadline: float) -> None:
        """The backend reads these tokens into a slot, except for those that the slot holds already.

        Raises:
            SlotError
        """
        self._complete(tuple(tokens), deadline)

    def _prompt(self, body: dict[str, Any], deadline: float) -> object:
        return _field(self._ask("POST", "/apply-template", body, deadline), "prompt")

    def _complete(self, prompt: str | tuple[int, ...], deadline: float) -> Any:
        order = {"prompt": prompt, "n_predict": 1, "cache_prompt": True, "stream": False}
        return self._ask("POST", "/completion", order, deadline)

    def _transfer(self, slot: int, action: str, name: str, fields: tuple[str, str], deadline: float) -> Transfer:
        began = time.monotonic()
        reply = self._ask("POST", f"/slots/{slot}?action={action}", {"filename": name}, deadline)
        try:
            tokens, size = (int(reply[field]) for field in fields)
        except (KeyError, TypeError, ValueError) as error:
            raise SlotError(f"slot {slot}: {action} answered in an unknown form: {error!r}") from error
        return Transfer(tokens, size, time.monotonic() - began)

    def _ask(self, method: str, path: str, body: object, deadline: float) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        status, reply = self._fetch(method, path, data, deadline)
        try:
            value = load(reply)
        except ValueError as error:
            raise SlotError(f"{method} {path} answered {status}, and not with JSON") from error
        if status != 200:
            raise SlotRefused(f"{method} {path} answered {status}: {_message(value)}")
        return value

    def _fetch(self, method: str, path: str, data: bytes, deadline: float) -> tuple[int, bytes]:
        message, bounds = Message(method, path, data, "application/json"), Bounds(deadline, _LARGEST_REPLY)
        try:
            with contextlib.closing(self._backend.ask(message, Client(None), bounds)) as exchange:
                reply = exchange.read()
        except BackendLost as lost:
            raise SlotError(f"{method} {path}: {lost}") from lost
        except BackendDeadline as late:
            raise SlotError(f"{method} {path}: no answer in time") from late
        except ReplyTooLarge as large:
            raise SlotError(f"it answered with more than {_LARGEST_REPLY >> 20} MiB") from large
        return reply.status, reply.body


def _parse_slot(fields: Any) -> Slot:
    tokens, task = int(fields.get("n_prompt_tokens") or 0), int(fields.get("id_task", -1))
    return Slot(int(fields["id"]), tokens, bool(fields["is_processing"]), task)


def _field(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def _message(value: object) -> str:
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return repr(str(message)[:_QUOTED])
