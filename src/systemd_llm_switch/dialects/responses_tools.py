"""The tools of a request of OpenAI's responses API: the functions that a chat has for them, and the way back.

A chat knows functions only. A tool of free text (`custom`) becomes a function of one string. The tools of a namespace,
as Codex declares some, become functions whose names begin with the namespace.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from systemd_llm_switch.dialects.chat_builder import list_at
from systemd_llm_switch.dialects.parts import Call
from systemd_llm_switch.openai.shapes import Json, dump, object_of

_FREE_TEXT = "input"
_FIELDS = ("name", "description", "parameters", "strict")


class _Origin(NamedTuple):
    """What a function was in the request."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


class Tools:
    """The tools of one request."""

    def __init__(self, body: Json) -> None:
        """Raises: InvalidRequest"""
        self._origins: dict[str, _Origin] = {}
        self.functions: list[Json] = []
        for tool in list_at(body, "tools"):
            if tool.get("type") == "namespace":
                for inner in list_at(tool, "tools"):
                    self._add(inner, str(tool.get("name")))
            else:
                self._add(tool, None)

    def _add(self, tool: Json, namespace: str | None) -> None:
        """Adds a tool that the client runs; what OpenAI's servers would run is left out."""
        name, kind = tool.get("name"), tool.get("type")
        if not isinstance(name, str) or kind not in ("function", "custom"):
            return
        flat = flat_name(name, namespace)
        function = {field: tool[field] for field in _FIELDS if tool.get(field) is not None} | {"name": flat}
        if kind == "custom":
            function["parameters"] = _free_text_schema(tool)
        self._origins[flat] = _Origin(name, namespace, kind == "custom")
        self.functions.append({"type": "function", "function": function})

    def item_of(self, call: Call, item_id: str) -> Json:
        """A call as an item of the output."""
        origin = self._origins.get(call.name, _Origin(call.name))
        item: Json = {"id": item_id, "status": "completed", "call_id": call.id, "name": origin.name}
        if origin.namespace is not None:
            item["namespace"] = origin.namespace
        if origin.is_custom:
            return {"type": "custom_tool_call", **item, "input": _free_text(call.arguments)}
        return {"type": "function_call", **item, "arguments": call.arguments}


def flat_name(name: object, namespace: object) -> str:
    """The name of the function for a tool."""
    return f"{namespace}__{name}" if isinstance(namespace, str) and namespace else str(name or "")


def arguments_of_free_text(text: object) -> str:
    """The arguments of the function for a tool of free text."""
    return dump({_FREE_TEXT: text}).decode()


def _free_text(arguments: str) -> str:
    """The text again; arguments of another form are the text."""
    text = object_of(json.loads(arguments)).get(_FREE_TEXT)
    return text if isinstance(text, str) else arguments


def _free_text_schema(tool: Json) -> Json:
    wanted = object_of(tool.get("format"))
    described = {"description": f"{wanted.get('syntax')}: {wanted['definition']}"} if wanted.get("definition") else {}
    return {"type": "object", "properties": {_FREE_TEXT: {"type": "string", **described}}, "required": [_FREE_TEXT]}
