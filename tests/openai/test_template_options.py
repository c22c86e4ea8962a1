"""`chat_template_kwargs` of `params`, the request and `force` are merged option by option."""

from __future__ import annotations

import json
from typing import Any

import pytest

from systemd_llm_switch.openai.request import parse_request, to_backend

NAME = "chat_template_kwargs"


def sent(options: Any, params: dict[str, Any], force: dict[str, Any]) -> Any:
    """What the backend gets for a request with these options; None for none."""
    body = {"model": "m", "messages": []} | ({} if options is None else {NAME: options})
    request = parse_request("/v1/chat/completions", json.dumps(body).encode(), ["m"])
    return json.loads(to_backend(request, request.body, params, force)).get(NAME)


@pytest.mark.parametrize(
    ("options", "params", "force", "merged"),
    [
        ({"a": 1}, {NAME: {"b": 2}}, {}, {"a": 1, "b": 2}),
        ({"a": 1}, {}, {NAME: {"b": 2}}, {"a": 1, "b": 2}),
        ({"a": 1}, {NAME: {"a": 2}}, {}, {"a": 1}),
        ({"a": 1}, {}, {NAME: {"a": 2}}, {"a": 2}),
        (None, {NAME: {"a": 1}}, {NAME: {"b": 2}}, {"a": 1, "b": 2}),
        ({"a": {"x": 1}}, {NAME: {"a": {"y": 2}}}, {}, {"a": {"x": 1}}),  # one level deep
        ({"a": 1}, {}, {}, {"a": 1}),
        (None, {}, {}, None),
    ],
    ids=["params", "force", "request over params", "force over request", "both", "one level", "request", "none"],
)
def test_options_are_merged_one_by_one(
    options: Any, params: dict[str, Any], force: dict[str, Any], merged: dict[str, Any] | None
) -> None:
    assert sent(options, params, force) == merged


def test_options_that_are_not_an_object_are_left_to_the_backend() -> None:
    assert sent("odd", {NAME: {"a": 1}}, {}) == "odd"
