"""A model's entry in the config file, written and removed as text: every other byte of the file stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from systemd_llm_switch.config.document import UnreadableFile, parse_yaml
from systemd_llm_switch.config.parse import parse
from systemd_llm_switch.config.records import Config, ConfigError
from systemd_llm_switch.setup.places import SetupError

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class CannotEdit(SetupError):
    """The file cannot be edited safely. The message says what to write or remove by hand."""


def added(text: str, name: str, values: Mapping[str, object]) -> str:
    """The text with one more model, whose `values` have at least the unit.

    Raises:
        CannotEdit
    """
    try:
        fresh = _with_entry(text, name, values)
        before, after = _config(text), _config(fresh)
    except (_Unclear, UnreadableFile, ConfigError, yaml.YAMLError) as error:
        raise CannotEdit(_by_hand(name, values, error)) from error
    if _without(after, name) != _models(before) or _rest(after) != _rest(before):
        raise CannotEdit(_by_hand(name, values, "its form is unusual"))
    return fresh


def removed(text: str, name: str) -> str:
    """The text without this model.

    Raises:
        CannotEdit
    """
    try:
        fresh = _without_entry(text, name)
        before, after = _config(text), _config(fresh)
    except (_Unclear, UnreadableFile, ConfigError, yaml.YAMLError) as error:
        raise CannotEdit(f"take {name} out of the config by hand: {error}") from error
    if _models(after) != _without(before, name) or _rest(after) != _rest(before):
        raise CannotEdit(f"take {name} out of the config by hand: its form is unusual")
    return fresh


def entry(name: str, values: Mapping[str, object], indent: str = "  ") -> str:
    """The lines to add."""
    key = _scalar(name)
    if list(values) == ["unit"]:
        return f"{indent}{key}: {_quoted(values['unit'])}\n"
    lines = [f"{indent}{key}:"] + [f"{indent}  {field}: {_quoted(value)}" for field, value in values.items()]
    return "\n".join(lines) + "\n"


class _Unclear(Exception):
    """The entry's place in the text cannot be determined."""


def _with_entry(text: str, name: str, values: Mapping[str, object]) -> str:
    models = _models_node(text)
    if models.flow_style:
        at = models.end_mark.index - 1
        before = text[models.start_mark.index + 1 : at].rstrip()
        comma = "" if not models.value or before.endswith(",") else ", "
        fields = ", ".join(f"{field}: {_quoted(value)}" for field, value in values.items())
        return f"{text[:at]}{comma}{_scalar(name)}: {{{fields}}}{text[at:]}"
    first_key, last_value = models.value[0][0], models.value[-1][1]
    at = _end_of_line(text, _last_index(last_value))
    indent = " " * first_key.start_mark.column
    newline = "" if text[:at].endswith("\n") else "\n"
    lines = entry(name, values, indent)
    return text[:at] + newline + (lines.replace("\n", "\r\n") if "\r\n" in text[:at] else lines) + text[at:]


def _without_entry(text: str, name: str) -> str:
    models = _models_node(text)
    index = next((at for at, (key, _) in enumerate(models.value) if key.value == name), None)
    if index is None:
        raise _Unclear(f"there is no {name} in it")
    key, value = models.value[index]
    if not models.flow_style:
        begin = key.start_mark.index - key.start_mark.column
        if text[begin : key.start_mark.index].strip():
            raise _Unclear("something precedes it in its line")
        return text[:begin] + text[_end_of_line(text, _last_index(value)) :]
    begin, end = key.start_mark.index, value.end_mark.index
    if index + 1 < len(models.value):
        end = models.value[index + 1][0].start_mark.index
    elif index > 0:
        begin = models.value[index - 1][1].end_mark.index
    return text[:begin] + text[end:]


def _models_node(text: str) -> yaml.MappingNode:
    """The mapping below `models:`."""
    parse_yaml(text, "the config")  # checks the bounds first
    top: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, value in top.value if isinstance(top, yaml.MappingNode) else ():
        if key.value == "models" and isinstance(value, yaml.MappingNode) and (value.value or value.flow_style):
            return value
    raise _Unclear("it has no section `models:` with entries")


def _last_index(node: yaml.Node) -> int:
    """Where a node's own text ends. PyYAML puts the end of a block after the comments that follow it."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last: Any = node.value[-1]
        node = last[1] if isinstance(node, yaml.MappingNode) else last
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        raise _Unclear("its last value is a block of text")
    index: int = node.end_mark.index
    return index


def _end_of_line(text: str, index: int) -> int:
    found = text.find("\n", index)
    return len(text) if found < 0 else found + 1


def _config(text: str) -> Config:
    return parse(parse_yaml(text, "the config"))


def _models(config: Config) -> dict[str, Any]:
    return dict(config.models)


def _without(config: Config, name: str) -> dict[str, Any]:
    return {key: model for key, model in config.models.items() if key != name}


def _rest(config: Config) -> Config:
    return replace(config, models={}, names={}, folded={})


def _scalar(text: str) -> str:
    """A key, with quotes unless YAML reads it as a string without them."""
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return _quoted(text)


def _quoted(value: object) -> str:
    """The value in YAML, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_quoted(str(key))}: {_quoted(it)}' for key, it in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_quoted, value))}]"
    if isinstance(value, float) and "." not in repr(value):
        return repr(value).replace("e", ".0e")  # YAML takes 1e-05 for a string
    return json.dumps(value, ensure_ascii=False)


def _by_hand(name: str, values: Mapping[str, object], reason: object) -> str:
    lines = entry(name, values)
    return f"the config cannot be edited safely ({reason}); add this to its `models:` by hand:\n{lines}"
