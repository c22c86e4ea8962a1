"""A call as each family of models writes it into its text, and the ways in which a text shows one without making it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]


def _named(name: str, arguments: Json, key: str = "arguments") -> str:
    return json.dumps({"name": name, key: arguments}, ensure_ascii=False)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _qwen_coder(name: str, arguments: Json) -> str:
    parameters = "".join(f"<parameter={key}>\n{_plain(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def _glm(name: str, arguments: Json) -> str:
    pairs = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{_plain(value)}</arg_value>\n" for key, value in arguments.items()
    )
    return f"<tool_call>{name}\n{pairs}</tool_call>"


MARKED: dict[str, Callable[[str, Json], str]] = {
    "Hermes": lambda name, it: f"<tool_call>\n{_named(name, it)}\n</tool_call>",
    "Hermes, no end": lambda name, it: f"<tool_call>\n{_named(name, it)}",
    "Hermes, a brace missing": lambda name, it: f"<tool_call>\n{_named(name, it)[:-1]}\n</tool_call>",
    "Qwen3-Coder": _qwen_coder,
    "Mistral's list": lambda name, it: f"[TOOL_CALLS][{_named(name, it)}]",
    "Mistral's name": lambda name, it: f"[TOOL_CALLS]{name}[ARGS]{json.dumps(it)}",
    "python_tag": lambda name, it: f"<|python_tag|>{_named(name, it, 'parameters')}",
    "function tag": lambda name, it: f"<function={name}>{json.dumps(it)}</function>",
    "GLM": _glm,
}
"""Believed on a line of its own, whatever words stand around."""

BARE: dict[str, Callable[[str, Json], str]] = {
    "bare": lambda name, it: _named(name, it, "parameters"),
    "fenced": lambda name, it: f"```json\n{_named(name, it)}\n```",
}
"""Believed only as the whole answer."""

SHOWN = (
    "A call looks like this:\n\n{}",
    "For example:\n{}",
    "The text `{}` is a call.",
    "Qwen:\n\n```\n{}\n```\nThat is all.",
    "Qwen:\n\n~~~~xml\n{}\n~~~~\n",
    "<think>\n{}\n</think>\nNo.",
    "It says {} and stops.",
)
"""Sentences that speak of the call in their braces."""
