"""Builds a chat's conversation from another API's: roles, content and calls in the form that templates accept."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile

from systemd_llm_switch.errors import InvalidRequest
from systemd_llm_switch.openai.shapes import Json

Content = str | list[Json]


@dataclass(slots=True)
class _Draft:
    """A message that may still grow. What it holds is joined once, at the end: to join it piece by piece would copy the
    first pieces again and again."""

    role: str
    contents: list[Content] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Json] = field(default_factory=list)
    call_id: object = None  # of the call that a tool's result answers

    def finished(self) -> Json:
        message: Json = {"role": self.role, "content": _joined(self.contents)}
        if self.role == "tool":
            message["tool_call_id"] = self.call_id
        if self.thoughts:
            message["reasoning_content"] = "".join(self.thoughts)
        if self.calls:
            message["tool_calls"] = self.calls
        return message


class ChatBuilder:
    """Grows message by message."""

    def __init__(self) -> None:
        self._drafts: list[_Draft] = []

    def messages(self) -> list[Json]:
        """The conversation."""
        return [draft.finished() for draft in self._drafts]

    def add_system(self, content: Content) -> None:
        """Adds instructions. Many templates accept only one such message, and only as the first. So instructions at the
        beginning are joined, and later ones become the user's."""
        if not content:
            return
        if not self._drafts:
            self._drafts.append(_Draft("system", [content]))
        elif len(self._drafts) == 1 and self._drafts[0].role == "system":
            self._drafts[0].contents.append(content)
        else:
            self.add_user(content)

    def add_user(self, content: Content) -> None:
        """Adds the user's content."""
        if content:
            self._drafts.append(_Draft("user", [content]))

    def add_result(self, call_id: object, content: Content) -> None:
        """Adds a tool's result."""
        self._drafts.append(_Draft("tool", [content], call_id=call_id))

    def add_text(self, content: Content) -> None:
        """Adds the model's answer."""
        draft = self._assistant()
        if content or draft.contents:
            draft.contents.append(content)

    def add_thought(self, text: str) -> None:
        """Adds the model's thoughts."""
        if text:
            self._assistant().thoughts.append(text)

    def add_call(self, call_id: object, name: object, arguments: object) -> None:
        """Adds a tool call. Its arguments may be broken: the history is repaired later."""
        function = {"name": name, "arguments": arguments}
        self._assistant().calls.append({"id": call_id, "type": "function", "function": function})

    def _assistant(self) -> _Draft:
        """The message that the model's next words belong to."""
        if not self._drafts or self._drafts[-1].role != "assistant":
            self._drafts.append(_Draft("assistant"))
        return self._drafts[-1]


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


def _joined(contents: list[Content]) -> Content:
    """All contents as one: a string as long as there are only strings."""
    strings = [content for content in takewhile(lambda it: isinstance(it, str), contents) if isinstance(content, str)]
    text = "\n\n".join(strings)
    if len(strings) == len(contents):
        return text
    first = [text_part(text)] if strings else []
    return [*first, *(part for content in contents[len(strings) :] for part in _parts(content))]


def _parts(content: Content) -> list[Json]:
    return [text_part(content)] if isinstance(content, str) else content
