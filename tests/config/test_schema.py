"""`config.schema.json` and the tables that check the config say the same."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from systemd_llm_switch.config.file import PACKAGED
from systemd_llm_switch.config.keys import CONTEXTS, MODEL, REPAIR, SERVER, TOP, Section
from systemd_llm_switch.config.records import ContextSettings, Model, RepairSettings, ServerSettings
from systemd_llm_switch.config.schema import as_text

COMMITTED = PACKAGED.with_name("config.schema.json")
SCHEMA: dict[str, Any] = json.loads(as_text())
KEYS = [(table, key) for table in (SERVER, CONTEXTS, MODEL, REPAIR) for key in table]


def test_the_committed_schema_is_the_generated_one() -> None:
    """After a change of the tables: python -m systemd_llm_switch.config.schema > …/config.schema.json."""
    assert COMMITTED.read_text() == as_text()


def test_the_packaged_config_names_the_schema_in_its_first_line() -> None:
    first = PACKAGED.read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named
    assert (PACKAGED.parent / Path(named[1])).samefile(COMMITTED)


def test_the_schema_takes_the_keys_that_the_parser_takes() -> None:
    properties = SCHEMA["properties"]
    assert set(properties) == set(TOP)
    assert set(properties["server"]["properties"]) == set(SERVER)
    assert set(properties["repair"]["properties"]) == set(REPAIR)
    short, long = properties["models"]["additionalProperties"]["oneOf"]
    assert set(long["properties"]) == set(MODEL)
    assert short["type"] == "string"
    assert set(yaml.safe_load(PACKAGED.read_text())) <= set(properties)


@pytest.mark.parametrize(
    ("table", "record"),
    [(SERVER, ServerSettings), (MODEL, Model), (REPAIR, RepairSettings), (CONTEXTS, ContextSettings)],
)
def test_each_key_has_its_field(table: dict[str, Any], record: type[Any]) -> None:
    assert set(table) <= {field.name for field in dataclasses.fields(record)}


def test_the_keys_of_a_section_within_a_section_show_their_defaults() -> None:
    contexts = SCHEMA["properties"]["server"]["properties"]["contexts"]["properties"]
    assert {name: key["default"] for name, key in contexts.items()} == dataclasses.asdict(ContextSettings())


JSON_VALUES: list[Any] = [True, 0, 1, 0.5, -1, 70_000, "", "x", "x.service", [], ["x"], [1], {}, None, "http://h:1"]


@pytest.mark.parametrize(("table", "key"), KEYS, ids=lambda it: it if isinstance(it, str) else "")
def test_the_schema_refuses_no_type_that_the_cast_takes(table: dict[str, Any], key: str) -> None:
    kind = table[key].kind
    if isinstance(kind, Section):
        return  # its own keys are in the list
    for value in JSON_VALUES:
        try:
            kind.cast(value)
        except ValueError:
            continue
        assert fits(kind.schema, value), value


def fits(schema: dict[str, Any], value: Any) -> bool:
    """The part of JSON Schema that the tables use."""
    if "enum" in schema:
        return value in schema["enum"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    types = {
        "boolean": isinstance(value, bool), "string": isinstance(value, str), "array": isinstance(value, list),
        "object": isinstance(value, dict), "number": is_number, "integer": is_number and value == int(value),
    }  # fmt: skip
    return (
        types[schema["type"]]
        and not (is_number and value < schema.get("minimum", value))
        and not (is_number and value > schema.get("maximum", value))
        and not (is_number and "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"])
        and not (isinstance(value, str) and len(value) < schema.get("minLength", 0))
        and not (isinstance(value, str) and not re.search(schema.get("pattern", ""), value))
        and not (isinstance(value, list) and not all(fits(schema["items"], item) for item in value))
    )


def test_every_key_has_a_description() -> None:
    for table, key in KEYS:
        assert re.fullmatch(r"[a-zA-Z].+\.", table[key].description), key
