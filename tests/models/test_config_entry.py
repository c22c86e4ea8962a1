"""A model's entry goes into the config and out of it, and every other byte stays."""

from __future__ import annotations

import pytest
import yaml

from support.stack import ROOT
from systemd_llm_switch.models.config_entry import CannotEdit, added, removed

PACKAGED = (ROOT / "src/systemd_llm_switch/config.yaml").read_text()
FORMS = {
    "packaged": PACKAGED,
    "short": "models:\n  a: a.service\n",
    "no newline at the end": "models:\n  a: a.service",
    "comment at the end": "models:\n  a: a.service # one\n  # two\n\n# three\n",
    "long": "models:\n  a:\n    unit: a.service # x\n    aliases: [b, c]   # y\n  # z\nserver:\n  port: 3002\n",
    "a list": "models:\n  a:\n    unit: a.service\n    aliases:\n      - b\n      - c # x\n# y\nserver: {port: 3002}\n",
    "four": "models:\n    a: a.service\n    # x\n",
    "flow": "models: {a: a.service}  # x\n",
    "flow over lines": "models: {\n  a: a.service, # x\n  b: b.service,\n}\nserver: {}\n",
    "windows": "models:\r\n  a: a.service # x\r\nserver:\r\n  port: 3002\r\n",
    "tagged": "server:\n  port: 3002\nmodels: &all # x\n  a: {unit: a.service}\n",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "values", [{"unit": "n.service"}, {"unit": "n.service", "vram": 0, "llama_url": "http://127.0.0.1:3999"}]
)
def test_an_entry_goes_in_and_out_again(text: str, values: dict[str, str | float]) -> None:
    fresh = added(text, "new", values)
    assert yaml.safe_load(fresh)["models"]["new"] in (values, values["unit"])
    kept = removed(fresh, "new")
    assert kept.rstrip("\r\n") == text.rstrip("\r\n") or yaml.safe_load(kept) == yaml.safe_load(text)
    assert [line for line in text.split("\n") if "#" in line and line not in kept] == []


def test_lists_and_mappings_arrive_as_they_are() -> None:
    values = {"unit": "n.service", "aliases": ["a: b", "#c"], "ttl": 60, "force": {"min_p": 1e-05, "stop": ["x\ny"]}}
    for text in (FORMS["short"], FORMS["flow"]):
        assert yaml.safe_load(added(text, "new", values))["models"]["new"] == values


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_no_line_with_a_comment_is_lost(text: str) -> None:
    fresh = added(text, "new", {"unit": "n.service"})
    comments = [line.partition("#")[2] for line in text.split("\n") if "#" in line]
    assert [it for it in comments if it not in fresh] == []


@pytest.mark.parametrize("name", ["yes", "1e5", "null", "a:b", "Müller", "it's", 'a"b', "#x", "a/b", "~", "- a", "{a}"])
def test_any_name_arrives_as_it_is(name: str) -> None:
    assert name in yaml.safe_load(added(FORMS["short"], name, {"unit": "n.service"}))["models"]


def test_the_first_of_two_is_removed_with_its_own_comment_only() -> None:
    text = "models:\n  # of a\n  a: a.service # a's\n  # of b\n  b: b.service # b's\n"
    assert removed(text, "a") == "models:\n  # of a\n  # of b\n  b: b.service # b's\n"


@pytest.mark.parametrize(
    "text",
    [
        "models: &m\n  a: a.service\nserver: {port: 3002}\nmodels2: *m\n",
        "x: &m {a: a.service}\nmodels: *m\n",
        "models:\n  a:\n    unit: |\n      a.service\n",
        "models:\n  a: a.service\nsurver: {}\n",
        "models: [",
        "",
    ],
)
def test_what_cannot_be_edited_safely_is_left_alone(text: str) -> None:
    with pytest.raises(CannotEdit, match="by hand"):
        added(text, "new", {"unit": "n.service"})
