"""A call as each family of models writes it into its text, and the ways in which a text shows one without making it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
_M3 = "]<]minimax[>["


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


def _invoke(name: str, arguments: Json, prefix: str = "") -> str:
    parameters = "".join(
        f'<{prefix}parameter name="{key}">{_plain(value)}</{prefix}parameter>\n' for key, value in arguments.items()
    )
    return f'<{prefix}invoke name="{name}">\n{parameters}</{prefix}invoke>'


def _elements(arguments: Json, token: str = "") -> str:
    """Each parameter as an element, with a token before each tag."""
    return "".join(f"{token}<{key}>{_plain(value)}{token}</{key}>" for key, value in arguments.items())


def _python_dict(name: str, arguments: Json) -> str:
    return f"{name}({arguments!r})"


def _quoted(value: object, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return f"{{{','.join(f'{json.dumps(key)}:{_quoted(part, quote)}' for key, part in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(_quoted(part, quote) for part in value)}]"
    return json.dumps(value)


def _deepseek_r1(name: str, it: Json) -> str:
    return (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json.dumps(it)}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )


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
    "harmony": lambda name, it: (
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{json.dumps(it)}<|call|>"
    ),
    "harmony, recipient first": lambda name, it: (
        f"<|start|>assistant to=functions.{name}<|channel|>commentary json<|message|>{json.dumps(it)}<|call|>"
    ),
    "harmony, stripped": lambda name, it: f"commentary to=functions.{name} json{json.dumps(it)}",
    "Kimi": lambda name, it: (
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{json.dumps(it)}"
        "<|tool_call_end|><|tool_calls_section_end|>"
    ),
    "DeepSeek R1": _deepseek_r1,
    "DeepSeek V3.1": lambda name, it: (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json.dumps(it)}"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "DSML": lambda name, it: f"<｜DSML｜function_calls>\n{_invoke(name, it, '｜DSML｜')}\n</｜DSML｜function_calls>",
    "MiniMax M2": lambda name, it: f"<minimax:tool_call>\n{_invoke(name, it)}\n</minimax:tool_call>",
    "MiniMax M3": lambda name, it: (
        f'{_M3}<tool_call>\n{_M3}<invoke name="{name}">{_elements(it, _M3)}{_M3}</invoke>\n{_M3}</tool_call>'
    ),
    "Cline": lambda name, it: f"<{name}>\n{_elements(it)}\n</{name}>",
    "Claude": lambda name, it: f"<function_calls>\n{_invoke(name, it)}\n</function_calls>",
    "Seed-OSS": lambda name, it: (
        _qwen_coder(name, it).replace("<tool_call>", "<seed:tool_call>").replace("</tool_call>", "</seed:tool_call>")
    ),
    "Granite": lambda name, it: f"<|tool_call|>[{_named(name, it)}]",
    "Phi-4": lambda name, it: f"<|tool_call|>[{_named(name, it)}]<|/tool_call|>",
    "Phi-4-mini": lambda name, it: f"functools[{_named(name, it)}]",
    "Nemotron": lambda name, it: f"<TOOLCALL>[{_named(name, it)}]</TOOLCALL>",
    "Command R": lambda name, it: (
        f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "{name}", "parameters": {json.dumps(it)}}}]'
        "<|END_ACTION|>"
    ),
    "Qwen 2.5 in brackets": lambda name, it: f"[tool_call]\n{_named(name, it)}\n[/tool_call]",
    "Qwen 2.5 with tools": lambda name, it: f"<tools>\n{_named(name, it)}\n</tools>",
    "LFM2": lambda name, it: f"<|tool_call_start|>[{_python_dict(name, it)}]<|tool_call_end|>",
    "Gemma 3": lambda name, it: f"```tool_code\n{_python_dict(name, it)}\n```",
    "Gemma 4": lambda name, it: f"<|tool_call>call:{name}{_quoted(it, '<|' + chr(34) + '|>')}<tool_call|>",
    "FunctionGemma": lambda name, it: f"<start_function_call>call:{name}{_quoted(it, '<escape>')}<end_function_call>",
    "calling tool": lambda name, it: f"[Calling tool: {name}({json.dumps(it)})]",
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
