"""When llama-server's parser gives up on what the model wrote: the raw text once more, as a chat reply. Pure.

It then answers 500 "The model produced output that does not match the expected … format", and the text is only in its
log. `/apply-template` gives the very prompt, and `/completion` the text for it, with the request's own sampling and
without any parser; whatever call is in it is rescued like any other leaked one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from systemd_llm_switch.protocol import Json, dump

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


def completion_message(body: Mapping[str, object], template_reply: bytes) -> bytes | None:
    """The request for the raw text, from `/apply-template`'s reply; None when that holds no prompt."""
    try:
        prompt = json.loads(template_reply)["prompt"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(prompt, str):
        return None
    sampling = {name: value for name, value in body.items() if name not in _NOT_FOR_COMPLETION}
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return dump(sampling | {"prompt": prompt, "stream": False} | ({"n_predict": limit} if limit else {}))


def chat_reply(completion_reply: bytes, model: str) -> Json | None:
    """A chat completion with the raw text as its content; None when there is no text."""
    try:
        told = json.loads(completion_reply)
        text = told["content"]
        used, read = int(told.get("tokens_predicted", 0)), int(told.get("tokens_evaluated", 0))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(text, str):
        return None
    thought, end, answer = text.rpartition("</think>")
    message: Json = {"role": "assistant", "content": answer.lstrip("\n") if end else text}
    if end:
        message["reasoning_content"] = thought.removeprefix("<think>").strip("\n")
    finish = "length" if told.get("stop_type") == "limit" else "stop"
    return {
        "id": f"chatcmpl-recovered-{told.get('id_slot', 0)}-{used}",
        "object": "chat.completion",
        "created": 0,
        "model": told.get("model") or model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": read, "completion_tokens": used, "total_tokens": read + used},
    }
