"""What may mean two things is not decided by a guess: it is read as what was written, or marked and left as it was."""

from __future__ import annotations

import json

import pytest

from support.replies import call_of, calling, plenty
from systemd_llm_switch.repair import RequestFacts, repair_reply

NUMBERS = {"type": "array", "items": {"type": "number"}}
STRINGS = {"type": "array", "items": {"type": "string"}}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "object"}, "c": {}, "names": STRINGS, "sizes": NUMBERS},
}
FACTS = RequestFacts(tools={"f": SCHEMA})


@pytest.mark.parametrize(
    "arguments",
    ['{"a": {"b": 1], "c": 2}', '{"a": {"b": 1], "c": 2}}', '{"a": {"b": "x"] , "c": 2}', "{'a': {'b': 1]; 'c': 2}"],
)
def test_a_member_behind_a_wrong_bracket_is_not_read_into_the_inner_object(arguments: str) -> None:
    reply, repairs = repair_reply(calling("f", arguments), FACTS, budget=plenty())
    assert [repair.kind for repair in repairs] == ["unrepairable_arguments"]
    assert call_of(reply)["arguments"] == arguments


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ('{"a": {"b": 1]}, "c": 2}', {"a": {"b": 1}, "c": 2}),
        ('{"a": {"b": [1}], "c": 2}', {"a": {"b": [1]}, "c": 2}),
        ('{"c": 1]}', {"c": 1}),
        ('{"c": 1], "a": {}}', {"c": 1, "a": {}}),
    ],
)
def test_a_bracket_too_many_is_passed_over_where_nothing_changes(arguments: str, value: object) -> None:
    reply, _ = repair_reply(calling("f", arguments), FACTS, budget=plenty())
    assert json.loads(call_of(reply)["arguments"]) == value


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ('{"names": [1 2]}', {"names": ["1", "2"]}),
        ('{"names": [true 1]}', {"names": ["true", "1"]}),
        ('{"sizes": [1 2.5]}', {"sizes": [1, 2.5]}),
        ('{"names": [a b]}', {"names": ["a b"]}),
    ],
)
def test_values_without_commas_are_several_items(arguments: str, value: object) -> None:
    """Words without quotes may be one string."""
    reply, _ = repair_reply(calling("f", arguments), FACTS, budget=plenty())
    assert json.loads(call_of(reply)["arguments"]) == value
