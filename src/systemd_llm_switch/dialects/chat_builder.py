"""Builds a chat's conversation from another API's: roles, content and calls in the form that templates accept."""

from __future__ import annotations

from systemd_llm_switch.errors import InvalidRequest
from systemd_llm_switch.openai.shapes import Json

Content = str | list[Json]


class ChatBuilder:
    """Grows message by message."""

    def __init__(self) -> None:
        self.messages: list[Json] = []

    def add_system(self, content: Content) -> None:
        """Adds instructions. Many templates accept only one such message, and only as the first. So instructions at the
        beginning are joined, and later ones become the user's."""
        if not content:
            return
        if not self.messages:
            self.messages.append({"role": "system", "content": content})
        elif len(self.messages) == 1 and self.messages[0]["role"] == "system":
            self.messages[0]["content"] = _joined(self.messages[0]["content"], content)
        else:
            self.add_user(content)

    def add_user(self, content: Content) -> None:
        """Adds the user's content."""
        if content:
            self.messages.append({"role": "user", "content": content})

    def add_result(self, call_id: object, content: Content) -> None:
        """Adds a tool's result."""
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})

    def add_text(self, content: Content) -> None:
        """Adds the model's answer."""
        message = self._assistant()
        message["content"] = _joined(message["content"], content) if message["content"] else content

    def add_thought(self, text: str) -> None:
        """Adds the model's thoughts."""
        if text:
            message = self._assistant()
            message["reasoning_content"] = message.get("reasoning_content", "") + text

    def add_call(self, call_id: object, name: object, arguments: object) -> None:
        """Adds a tool call. Its arguments may be broken: the history is repaired later."""
        function = {"name": name, "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        self._assistant().setdefault("tool_calls", []).append(call)

    def _assistant(self) -> Json:
        """The message that the model's next words belong to."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": ""})
        return self.messages[-1]


def text_part(text: object) -> Json:
    """A part of a content."""
    return {"type": "text", "text": text if isinstance(text, str) else ""}


def image_part(url: object) -> Json:
    """An image, by its URL or as a data URL."""
    return {"type": "image_url", "image_url": {"url": url}}


def left_out(kind: object) -> Json:
    """A note in place of something that llama-server cannot take. The model must know that something was left out, and
    refusing the request would block the conversation."""
    name = kind if isinstance(kind, str) else "unknown"
    return text_part(f"[{name[:100]}: left out, this model cannot read it]")


def content_of(parts: list[Json]) -> Content:
    """Parts as content: a string if there is only text, because every template accepts that."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def list_at(owner: Json, name: str) -> list[Json]:
    """A list of objects in a request; empty if it is missing.

    Raises:
        InvalidRequest: it is something else.
    """
    value = owner.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidRequest(f"`{name}` must be a list of objects", param=name)
    return value


def _joined(first: Content, second: Content) -> Content:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return _parts(first) + _parts(second)


def _parts(content: Content) -> list[Json]:
    return [text_part(content)] if isinstance(content, str) else content
