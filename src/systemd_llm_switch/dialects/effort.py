"""How hard a model should think, in the words of chat templates: llama-server hands them on to the template."""

from __future__ import annotations

from systemd_llm_switch.openai.shapes import Json, object_of

# gpt-oss and others know three words.
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def with_thinking(chat: Json, *, effort: object = None, is_off: bool = False) -> Json:
    """The chat request with what was asked for. What the client says in `chat_template_kwargs` itself counts more."""
    asked: Json = {"enable_thinking": False} if is_off or effort == "none" else {}
    if isinstance(effort, str) and effort in _EFFORTS:
        asked["reasoning_effort"] = _EFFORTS[effort]
    return chat | {"chat_template_kwargs": asked | object_of(chat.get("chat_template_kwargs"))} if asked else chat
