"""`config.schema.json`, made from the tables that check the config. Editors use it to complete and check. Pure.

`python -m systemd_llm_switch.config.schema` prints it; a test compares the committed file with it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from systemd_llm_switch.config.keys import MODEL, TOP, Json, Key, Section
from systemd_llm_switch.config.limits import MOST_MODELS
from systemd_llm_switch.config.records import Model, RepairSettings, ServerSettings

_RECORDS: Mapping[str, type[Any]] = {"server": ServerSettings, "repair": RepairSettings}
_OF_THE_SERVER = ("streaming",)  # a model's default is the server's value


def make_schema() -> Json:
    """The whole schema (https://json-schema.org/draft-07)."""
    sections = {name: _key_schema(key, _RECORDS.get(name)) for name, key in TOP.items()}
    sections["models"] |= {
        "minProperties": 1,
        "maxProperties": MOST_MODELS,
        "additionalProperties": {"oneOf": [_key_schema(MODEL["unit"], None), _model_schema()]},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "The config of systemd-llm-switch",
        "type": "object",
        "properties": sections,
        "required": ["models"],
        "additionalProperties": False,
    }


def _model_schema() -> Json:
    return _object_schema(MODEL, Model) | {"required": ["unit"]}


def _object_schema(keys: Mapping[str, Key], record: type[Any] | None) -> Json:
    defaults = _defaults(record) if record is not None else {}
    properties = {}
    for name, key in keys.items():
        default = defaults.get(name)
        is_shown = isinstance(default, str | int | float) and not (record is Model and name in _OF_THE_SERVER)
        own_record = type(default) if dataclasses.is_dataclass(default) else None
        properties[name] = _key_schema(key, own_record) | ({"default": default} if is_shown else {})
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _key_schema(key: Key, record: type[Any] | None) -> Json:
    body = _object_schema(key.kind.keys, record) if isinstance(key.kind, Section) else dict(key.kind.schema)
    if isinstance(key.kind, Section):
        body["type"] = ["object", "null"]  # a section whose keys are all commented out
    return {"description": key.description} | body


def _defaults(record: type[Any]) -> Mapping[str, object]:
    return {field.name: field.default for field in dataclasses.fields(record)}


def as_text() -> str:
    """The file's text."""
    return json.dumps(make_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(as_text(), end="")
