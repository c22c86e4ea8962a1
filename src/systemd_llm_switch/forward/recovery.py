"""Recovers replies that llama-server's own parser refused: gets the raw text, and makes a chat reply of it. Pure.

llama-server then answers 500 "The model produced output that does not match the expected … format", and the text is
only in its log. So it is generated again: `/apply-template` gives the same prompt, and `/completion` generates from it
with the request's own sampling and without a parser. Older builds answer "Failed to parse input at pos N: …", and the
error contains the text. A call in the text is rescued like any other leaked call. A client of a live stream has the
beginning of the reply already: it is appended to the prompt, and the model continues from there.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass

from systemd_llm_switch.openai.shapes import Json, dump, load
from systemd_llm_switch.repair import THOUGHTS_END, is_in_call, starts_with_call

REFUSAL = b"output that does not match the expected"
REFUSAL_WITH_TEXT = b"Failed to parse input at pos "
_REFUSED_TEXT = re.compile(r"Failed to parse input at pos (?P<at>\d{1,9}+): (?P<text>.*)", re.DOTALL)
TEMPLATE_PATH = "/apply-template"
COMPLETION_PATH = "/completion"
PROPS_PATH = "/props"

# Fields of a chat request that `/completion` does not take. All others are sampling parameters and are passed on.
_NOT_FOR_COMPLETION = frozenset(
    ("messages", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format",
     "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "logprobs", "top_logprobs",
     "chat_template_kwargs", "reasoning_format")
)  # fmt: skip


def is_refusal(status: int, body: bytes) -> bool:
    """Whether a backend's error comes from its parser, not from the request or the model."""
    return status == 500 and (REFUSAL in body or REFUSAL_WITH_TEXT in body)


@dataclass(frozen=True, slots=True)
class PartialReply:
    """The part of a reply that was read before the parser refused the rest or the answer was paused."""

    thoughts: str = ""
    text: str = ""
    tokens: int = 0
    goes_on_thinking: bool = False  # the thoughts are not finished, and the model goes on with them

    @property
    def words(self) -> str:
        """The text without the white space at its end, because models write that at the beginning of a token."""
        return self.text.rstrip()

    @property
    def space(self) -> str:
        return self.text[len(self.words) :]

    @property
    def kept_tokens(self) -> int:
        """The number of tokens without the space, which is generated again."""
        return self.tokens - bool(self.space)


def refused_text(body: bytes) -> str | None:
    """The refused text, if the error contains it; None if it must be generated again.

    Older builds of llama-server write "Failed to parse input at pos N: " and the text from there on. If that is not the
    whole text, it must begin with a call: otherwise its beginning may be lost.
    """
    try:
        message = load(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return None
    found = _REFUSED_TEXT.search(message) if isinstance(message, str) else None
    if found is None or not found["text"].strip():
        return None
    text = found["text"]
    return text if int(found["at"]) == 0 or starts_with_call(text) else None


def refused_reply(text: str, model: str, begun: PartialReply, created: int) -> Json:
    """A chat completion whose content is the refused text. It has no usage, because the error does not report it."""
    return {**_envelope(model, created), "choices": [_choice(text, begun, "stop")]}


def completion_message(
    sent: bytes, template_reply: bytes, begun: PartialReply, *, stream: bool = False
) -> bytes | None:
    """The request for the raw text after `begun`; None if `/apply-template`'s reply holds no prompt.

    `sent`: the chat request as the backend got it.
    """
    try:
        prompt = load(template_reply)["prompt"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(prompt, str):
        return None
    body: Json = json.loads(sent)
    sampling = {name: value for name, value in body.items() if name not in _NOT_FOR_COMPLETION}
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    left = {"n_predict": max(limit - begun.kept_tokens, 1)} if isinstance(limit, int) else {}
    return dump(sampling | {"prompt": _continued(prompt, begun), "stream": stream} | left)


def _continued(prompt: str, begun: PartialReply) -> str:
    """The prompt with the beginning of the reply, in the form of models that think in `<think>…</think>`."""
    if begun.thoughts:
        opening = "" if prompt.rstrip().endswith("<think>") else "<think>\n"
        prompt += opening + begun.thoughts + ("" if begun.goes_on_thinking else "\n</think>\n\n")
    return prompt + begun.words


def thinks_in_tags(props: bytes) -> bool:
    """Whether a model writes its thoughts as `<think>…</think>`: its chat template in `/props`' reply says so."""
    try:
        return THOUGHTS_END in load(props)["chat_template"]
    except (ValueError, KeyError, TypeError):
        return False


def chat_reply(completion_reply: bytes, model: str, begun: PartialReply, created: int) -> Json | None:
    """A chat completion whose content is the raw text after `begun`, with the usage of the whole reply; None if the
    reply has no text."""
    try:
        reply = load(completion_reply)
        text = reply["content"]
        used = int(reply.get("tokens_predicted", 0)) + begun.kept_tokens
        read = int(reply.get("tokens_evaluated", 0)) - begun.kept_tokens
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(text, str):
        return None
    finish = "length" if reply.get("stop_type") == "limit" else "stop"
    return {
        **_envelope(model, created),
        "choices": [_choice(text, begun, finish)],
        "usage": {"prompt_tokens": read, "completion_tokens": used, "total_tokens": read + used},
    }


class Continuation:
    """The text after `begun`, taken from the events of a streamed completion. `end` is the last event, without text:
    what `chat_reply` takes. It is empty until that event came."""

    def __init__(self, begun: PartialReply) -> None:
        self.end = b""
        self.timings: object = None
        self._space = begun.space
        self._held: str | None = "" if begun.space else None  # until it is known how much white space is repeated

    def take(self, data: bytes) -> str:
        """Takes one event's data; returns the text that is new.

        Raises:
            ValueError: it is not an event of a completion.
        """
        try:
            event = load(data)
            text = event["content"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an event of a completion: {error!r}") from error
        if not isinstance(text, str):
            raise ValueError("an event of a completion without text")
        if event.get("stop"):
            self.end, self.timings = dump(event | {"content": ""}), event.get("timings")
        return text if self._held is None else self._without_space(self._held + text)

    def _without_space(self, text: str) -> str:
        self._held = None if text.strip() else text
        return "" if self._held is not None else _without_repeated(self._space, text)


def _without_repeated(space: str, text: str) -> str:
    """The text without the white space that the client already has: the model may write it again, or another one."""
    return text.removeprefix(space) if text.startswith(space) else text.lstrip()


def _envelope(model: str, created: int) -> Json:
    """The fields around the choices. The id is random, so that a restart never repeats one."""
    return {"id": f"chatcmpl-{os.urandom(12).hex()}", "object": "chat.completion", "created": created, "model": model}


def _choice(text: str, begun: PartialReply, finish: str) -> Json:
    if begun.space:
        text = _without_repeated(begun.space, text)
    thought, end, answer = text.partition(THOUGHTS_END)
    if is_in_call(thought):
        end = ""
    if begun.goes_on_thinking:
        said = {"content": answer.lstrip("\n"), "reasoning_content": thought} if end else {"reasoning_content": text}
        return {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": finish}
    message: Json = {"role": "assistant", "content": answer.lstrip("\n") if end else text}
    if end:
        message["reasoning_content"] = thought.removeprefix("<think>").strip("\n")
    return {"index": 0, "message": message, "finish_reason": finish}
