"""When llama-server's parser refuses what the model wrote: the raw text is generated again, as a chat reply. Pure.

llama-server then answers 500 "The model produced output that does not match the expected … format", and the text is
only in its log. `/apply-template` gives the same prompt, and `/completion` the text for it, with the request's own
sampling and without a parser. A call in that text is rescued like any other leaked one. A client of a live stream has
the beginning of the reply already: it is appended to the prompt, and the model continues from there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from systemd_llm_switch.openai.shapes import Json, dump

REFUSAL = b"output that does not match the expected"
TEMPLATE_PATH = "/apply-template"
COMPLETION_PATH = "/completion"

# Fields of a chat request that `/completion` does not take. The others are sampling, and are passed on.
_NOT_FOR_COMPLETION = frozenset(
    ("messages", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format",
     "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "logprobs", "top_logprobs",
     "chat_template_kwargs", "reasoning_format")
)  # fmt: skip


def is_refusal(status: int, body: bytes) -> bool:
    """Whether a backend's error comes from its parser, and not from the request or the model."""
    return status == 500 and REFUSAL in body


@dataclass(frozen=True, slots=True)
class Beginning:
    """The part of a reply that was read before the parser refused the rest."""

    thoughts: str = ""
    text: str = ""
    tokens: int = 0

    @property
    def words(self) -> str:
        """The text without the white space at its end: models write that as the beginning of their next token."""
        return self.text.rstrip()

    @property
    def space(self) -> str:
        return self.text[len(self.words) :]

    @property
    def kept_tokens(self) -> int:
        """The tokens of thoughts and words: the space is generated again."""
        return self.tokens - bool(self.space)


def completion_message(sent: bytes, template_reply: bytes, begun: Beginning) -> bytes | None:
    """The request for the raw text after `begun`; None if `/apply-template`'s reply holds no prompt.

    `sent`: the chat request as the backend got it.
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
    left = {"n_predict": max(limit - begun.kept_tokens, 1)} if isinstance(limit, int) else {}
    return dump(sampling | {"prompt": _continued(prompt, begun), "stream": False} | left)


def _continued(prompt: str, begun: Beginning) -> str:
    """The prompt with the beginning of the reply, as models write it that think between `<think>` and `</think>`."""
    if begun.thoughts:
        opening = "" if prompt.rstrip().endswith("<think>") else "<think>\n"
        prompt += f"{opening}{begun.thoughts}\n</think>\n\n"
    return prompt + begun.words


def chat_reply(completion_reply: bytes, model: str, begun: Beginning) -> Json | None:
    """A chat completion whose content is the raw text after `begun`, with the usage of all; None if there is no
    text."""
    try:
        reply = json.loads(completion_reply)
        text = reply["content"]
        used = int(reply.get("tokens_predicted", 0)) + begun.kept_tokens
        read = int(reply.get("tokens_evaluated", 0)) - begun.kept_tokens
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(text, str):
        return None
    if begun.space:
        text = text.removeprefix(begun.space) if text.startswith(begun.space) else text.lstrip()
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
