"""Records of repair: the facts of a request that it needs, and the repairs that it made."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .schema import OBJECT, Node, Schema, compile_schema
from .text import fold

RepairKind = Literal[
    "reply_body", "role", "finish_reason", "empty_content",
    "tool_call_id", "tool_call_type", "tool_call_shape", "tool_name",
    "arguments_syntax", "arguments_encoding", "arguments_wrapper", "arguments_object", "arguments_names",
    "arguments_types", "unrepairable_arguments", "unfit_arguments",
    "rescued_call", "json_content", "unfit_content", "unrepairable_content", "history_arguments", "history_id",
    "backend_refusal", "repair_budget", "thoughts",
]  # fmt: skip
"""What a repair may be called; docs/repair.md says what each word means."""


_MAX_NAME = 500
_TOKEN = re.compile(r"\s|<|\[(?:ARGS|CALL_ID)\]")
_TAG_BEFORE = re.compile(r"<?+function=|\A\s*+<[a-z_]{1,20}+>")
_CALL_NUMBER = re.compile(r":\d{1,4}\Z")
_SPOILT_ID = re.compile(r"functions?_(?P<name>.*?)(?P<number>_\d{1,4})?\Z", re.S)
"""Kimi's `functions.f:0` as clients that allow fewer characters hand it back."""


class UnrepairableReply(ValueError):
    """The backend's body is not a JSON object, and none can be made of it without inventing."""


@dataclass(frozen=True, slots=True)
class Repair:
    """One thing that was repaired (or, for `unrepairable_*` and `unfit_*`, could not be).

    `kind` is stable, as the status and the journal count by it; `tool` names the tool it happened to.
    """

    kind: RepairKind
    tool: str | None = None


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """The part of a request that decides what a sound reply to it looks like."""

    tools: Mapping[str, Schema] = field(default_factory=dict)
    wants_json: bool = False
    json_schema: Schema | None = None
    rescue: bool = True
    thoughts: bool = False
    """Thoughts in the content become `reasoning_content`."""
    is_legacy: bool = False
    """The request knows only `functions`, so a rescued call goes into `function_call`."""
    max_tokens: int | None = None
    """A reply of that many tokens was cut, whatever its finish_reason claims (some backends say "tool_calls")."""
    _compiled: dict[str, Node] = field(default_factory=dict, init=False, repr=False, compare=False)
    _folded: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def schema_of(self, tool: str) -> Node | None:
        """The compiled schema of a tool's arguments; None if the request does not declare the tool."""
        if tool not in self._compiled:
            if tool not in self.tools:
                return None
            self._compiled[tool] = compile_schema(self.tools[tool])
        return self._compiled[tool]

    def content_schema(self) -> Node:
        """The compiled schema that JSON content must fit."""
        if self.json_schema is None:
            return OBJECT
        if "" not in self._compiled:  # no tool has this name
            self._compiled[""] = compile_schema(self.json_schema)
        return self._compiled[""]

    def argument_names(self) -> frozenset[str]:
        """The folded names of all members that the tools declare."""
        return frozenset().union(*(node.names for tool in self.tools if (node := self.schema_of(tool))))

    def known_name(self, name: str) -> str | None:
        """The declared tool that a model meant by this name; None unless it is exactly one."""
        if name in self.tools:
            return name
        if len(name) > _MAX_NAME:
            return None
        if not self._folded:
            for known in self.tools:
                self._folded.setdefault(fold(known), []).append(known)
        for spelling in filter(None, map(fold, _spellings(name))):
            matches = self._folded.get(spelling, [])
            if len(matches) == 1:
                return matches[0]
        return None

    def members_of(self, tool: str) -> Collection[str]:
        """The names that a tool declares for its arguments."""
        schema = self.schema_of(self.known_name(tool) or "")
        return schema.members if schema else ()

    @classmethod
    def of(cls, body: Mapping[str, object], *, rescue: bool = True, thoughts: bool = False) -> RequestFacts:
        """Read the facts off a request body of any shape; what is odd in it counts as absent. Never raises."""
        legacy = _functions(body.get("functions"))
        tools = _functions([_inner(tool) for tool in _list(body.get("tools"))])
        wants_json, json_schema = _response_format(body.get("response_format"))
        return cls(
            tools={**legacy, **tools},
            wants_json=wants_json,
            json_schema=json_schema,
            rescue=rescue and "none" not in (body.get("tool_choice"), body.get("function_call")),
            thoughts=thoughts,
            is_legacy=bool(legacy) and not tools,
            max_tokens=_limit(body.get("max_completion_tokens")) or _limit(body.get("max_tokens")),
        )


def _spellings(name: str) -> Iterator[str]:
    """What a name may mean, the likeliest first: without a namespace, the number of a call, or the form's tokens."""
    yield name
    name = _TAG_BEFORE.sub("", name.rpartition("to=")[2], count=1)
    half = len(name) // 2
    if name[:half] == name[half:]:  # two streamed pieces that a backend put together
        yield name[:half]
    plain = _TOKEN.split(name.strip(), maxsplit=1)[0] if name.strip()[:1] != "<" else name
    plain = _CALL_NUMBER.sub("", plain).removesuffix(".call")
    yield plain
    yield plain.replace("/", ".").replace(":", ".").rpartition(".")[2]
    if spoilt := _SPOILT_ID.match(plain):
        yield spoilt["name"] + (spoilt["number"] or "")
        yield spoilt["name"]
    for suffix in ("json", "commentary"):
        yield plain.removesuffix(suffix).rpartition(".")[2]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _inner(tool: object) -> object:
    return tool.get("function") if isinstance(tool, dict) else None


def _functions(declared: object) -> dict[str, Schema]:
    tools: dict[str, Schema] = {}
    for function in _list(declared):
        if isinstance(function, dict) and isinstance(name := function.get("name"), str) and name:
            parameters = function.get("parameters")
            tools[name] = parameters if isinstance(parameters, dict) else {}
    return tools


def _response_format(declared: object) -> tuple[bool, Schema | None]:
    """Both `{"type": "json_schema", "json_schema": {"schema": …}}` and llama.cpp's `{"type": …, "schema": …}`."""
    if not isinstance(declared, dict) or declared.get("type") not in ("json_object", "json_schema"):
        return False, None
    wrapper = declared.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else declared.get("schema")
    return True, schema if isinstance(schema, dict) else None


def _limit(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
