"""When llama-server's parser gives up on what the model wrote: the raw text once more, as a chat reply. Pure.

It then answers 500 "The model produced output that does not match the expected … format", and the text is only in its
log. `/apply-template` gives the very prompt, and `/completion` the text for it, with the request's own sampling and
without any parser; whatever call is in it is rescued like any other leaked one. Where a client of a live stream has
the beginning already, that stands behind the prompt, and the model goes on from there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from systemd_llm_switch.openai.shapes import Json, dump

REFUSAL = b"output that does not match the expected"
TEMPLATE_PATH = "/apply-template"
COMPLETION_PATH = "/completion"

# What a chat request has and a prompt has not; the rest is sampling and passes through.
_NOT_FOR_COMPLETION = frozenset(
    ("messages", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format",
     "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "logprobs", "top_logprobs",
     "chat_template_kwargs", "reasoning_format")
)  # fmt: skip


def is_refusal(status: int, body: bytes) -> bool:
    """Whether a backend's error is its parser's, not the request's or the model's."""
    return status == 500 and REFUSAL in body


@dataclass(frozen=True, slots=True)
class Told:
    """How far a reply was read before the parser gave up."""

    thoughts: str = ""
    text: str = ""
    tokens: int = 0

    @property
    def words(self) -> str:
        """The text without the white space at its end, which models write as the beginning of their next token."""
        return self.text.rstrip()

    @property
    def space(self) -> str:
        return self.text[len(self.words) :]

    @property
    def kept_tokens(self) -> int:
        """Those of thoughts and words: the space is written once more."""
        return self.tokens - bool(self.space)


def completion_message(sent: bytes, template_reply: bytes, told: Told) -> bytes | None:
    """The request for the raw text from there on; None where `/apply-template`'s reply holds no prompt.

    `sent` is the chat request as the backend had it.
    """
    try:
        prompt = json.loads(template_reply)["prompt"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(prompt, str):
        return None
    body: Json = json.loads(sent)
    sampling = {name: value for name, value in body.items() if name not in _NOT_FOR_COMPLETION}
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    left = {"n_predict": max(limit - told.kept_tokens, 1)} if isinstance(limit, int) else {}
    return dump(sampling | {"prompt": _continued(prompt, told), "stream": False} | left)


def _continued(prompt: str, told: Told) -> str:
    """The prompt with the reply's beginning, as a model writes it that thinks between `<think>` and `</think>`."""
    if told.thoughts:
        begun = "" if prompt.rstrip().endswith("<think>") else "<think>\n"
        prompt += f"{begun}{told.thoughts}\n</think>\n\n"
    return prompt + told.words


def chat_reply(completion_reply: bytes, model: str, told: Told) -> Json | None:
    """A chat completion with the raw text from there on as its content, and the whole usage; None when there is no
    text."""
    try:
        reply = json.loads(completion_reply)
        text = reply["content"]
        used = int(reply.get("tokens_predicted", 0)) + told.kept_tokens
        read = int(reply.get("tokens_evaluated", 0)) - told.kept_tokens
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(text, str):
        return None
    if told.space:
        text = text.removeprefix(told.space) if text.startswith(told.space) else text.lstrip()
    thought, end, answer = text.rpartition("</think>")
    message: Json = {"role": "assistant", "content": answer.lstrip("\n") if end else text}
    if end:
        message["reasoning_content"] = thought.removeprefix("<think>").strip("\n")
    finish = "length" if reply.get("stop_type") == "limit" else "stop"
    return {
        "id": f"chatcmpl-recovered-{reply.get('id_slot', 0)}-{used}",
        "object": "chat.completion",
        "created": 0,
        "model": reply.get("model") or model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": read, "completion_tokens": used, "total_tokens": read + used},
    }
