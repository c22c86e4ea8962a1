"""Reads the corpus. Owns the meaning of the files' keys; knows nothing of repair but the types that go in.

A case is one reply (or one replayed history) and what must become of it:

| key | the input |
| --- | --- |
| `tools`, `request`, `usage` | set of tools, further fields of the request and the reply |
| `rescue`, `thoughts` | `repair.rescue` (true), `repair.thoughts` (here: false) |
| `tool` and `arguments` | one call, by the tool's name and the text of its arguments |
| `content`, `text`, `message`, `choices` | a chat's words, a text completion, a whole message, all choices |
| `body` | the backend's bytes (`latin1`: each letter is one of them) |
| `history`, `messages` | arguments of a replayed call, or all messages of the request |
| `finish_reason` | as the backend said it |

| key | what is expected |
| --- | --- |
| `expect: same` | the identical object, and nothing noted |
| `marked` | the identical object, and this kind noted |
| `becomes`, `tool_becomes`, `keeps` | the one call's arguments as a value, its tool, its arguments as text |
| `calls`, `text` beside `content` | the calls, and the words that stay (none: null) |
| `content_becomes`, `text_becomes` | JSON content as a value |
| `message_becomes`, `choices_become`, `body_becomes`, `messages_become`, `history_becomes` | that part as a whole |
| `finish_becomes` | finish_reason, if not the one that the calls demand |
| `repairs` | the kinds noted, sorted |
| `unrepairable: true` | the body is refused |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from systemd_llm_switch.repair import RequestFacts

FOLDER = Path(__file__).parent
TOOLS_FILE = "tools.yaml"


@dataclass(frozen=True)
class Case:
    """One case; `raw` has the keys of its file, and those that hold for the whole file."""

    kind: str
    name: str
    raw: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def is_sound(self) -> bool:
        """Whether the reply must stay the identical object."""
        return bool(self.raw.get("expect") == "same")

    @property
    def request(self) -> dict[str, Any]:
        """The request's body, as far as repair looks at it."""
        declared = _read(FOLDER / TOOLS_FILE)
        tools = [
            {"type": "function", "function": {"name": name, "parameters": declared["parameters"][name]}}
            for name in declared["sets"][self.raw.get("tools", "none")]
        ]
        return {**({"tools": tools} if tools else {}), **self.raw.get("request", {})}

    @property
    def facts(self) -> RequestFacts:
        return RequestFacts.of(
            self.request, rescue=self.raw.get("rescue", True), thoughts=self.raw.get("thoughts", False)
        )

    @property
    def reply(self) -> dict[str, Any]:
        """The reply as an object; not for cases with a body or a history."""
        usage = {"usage": self.raw["usage"]} if "usage" in self.raw else {}
        return {"id": "x", "object": "chat.completion", "choices": self._choices(), **usage}

    @property
    def body(self) -> bytes:
        text: str = self.raw["body"]
        return text.encode("latin-1" if self.raw.get("latin1") else "utf-8")

    @property
    def replayed(self) -> dict[str, Any]:
        """The request that replays a history."""
        return {"model": "m", "messages": self.raw.get("messages", self.history_of(self.raw.get("history")))}

    @staticmethod
    def history_of(arguments: object) -> list[dict[str, Any]]:
        call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "y"},
        ]

    def _choices(self) -> list[dict[str, Any]]:
        raw = self.raw
        if "choices" in raw:
            return list(raw["choices"])
        if "arguments" in raw:
            function = {"name": raw["tool"], "arguments": raw["arguments"]}
            calls = [{"id": "call_1", "type": "function", "function": function}]
            said: dict[str, Any] = {"message": {"role": "assistant", "content": None, "tool_calls": calls}}
        elif "message" in raw:
            said = {"message": raw["message"]}
        elif "content" in raw:
            said = {"message": {"role": "assistant", "content": raw["content"]}}
        else:
            said = {"text": raw["text"]}
        speaks = "content" in raw or "text" in raw
        return [{"index": 0, **said, "finish_reason": raw.get("finish_reason", "stop" if speaks else "tool_calls")}]


def load_cases() -> list[Case]:
    """All cases, in the files' order."""
    return [case for path in sorted(FOLDER.glob("*.yaml")) if path.name != TOOLS_FILE for case in _cases_of(path)]


def _cases_of(path: Path) -> list[Case]:
    document = _read(path)
    shared = {key: value for key, value in document.items() if key not in ("kind", "cases")}
    own = [_without_overridden(shared, raw) | raw for raw in document["cases"]]
    return [Case(document["kind"], raw["name"], raw) for raw in own]


def _without_overridden(shared: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in shared.items() if key not in raw}


@cache
def _read(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
