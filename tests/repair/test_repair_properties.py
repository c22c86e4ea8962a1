"""Random arguments, broken in the known ways: their value comes back, or the call is marked; never a wrong value.

The samples and the ways to break them are in tests/support/breakage.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from corpus.verdict import exact
from support.breakage import BREAKAGES, STYLES, TAME, WILD, Sample, Style, samples
from support.replies import call_of, calling, plenty, saying
from systemd_llm_switch.repair import (
    RequestFacts,
    UnrepairableReply,
    parse_reply,
    repair_history,
    repair_reply,
)

MARKS = ("unrepairable_arguments", "unfit_arguments")
FILE_SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "content": {"type": "string"}, "line_count": {"type": "integer"}},
    "required": ["path", "content"],
    "additionalProperties": False,
}
LINES = (
    'print("a")', 'x = {"a": "b", "c": ["d"]}', 'if x == "}":', '    y = "]"', 's = f"{x}"', '"""Doc."""', "", "{", "}",
    '<div class="a">', '  "name": "x",', 'echo "$1" > "b"', '# say "hi", or not', 'const a = {b: "c"}; // "d"', "]",
    '"content": "z"', 're.sub(r"\\d+", "", s)', 'a,"b",,"c"', 'f("path", "content")', "});", "it's",
)  # fmt: skip
codes = st.lists(st.sampled_from(LINES), min_size=1, max_size=6).map("\n".join) | st.lists(
    st.sampled_from(LINES), min_size=1, max_size=5
).map(lambda lines: "".join(f"{line}\n" for line in lines))
AROUND = ("{}", "```json\n{}\n```", "<tool_call>\n{}\n</tool_call>", "{}}}", "// the call\n{}")
each_breakage = pytest.mark.parametrize("breakage", BREAKAGES)
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
some = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def repaired(sample: Sample, text: str, *, is_cut: bool = False) -> Any:
    """The value of the arguments that came out; None where they are marked, and then they are what went in."""
    facts = RequestFacts(tools={"f": sample.schema})
    mended, repairs = repair_reply(calling("f", text, "length" if is_cut else "tool_calls"), facts, budget=plenty())
    arguments = call_of(mended)["arguments"]
    assert isinstance(arguments, str)
    if any(repair.kind in MARKS for repair in repairs):
        assert arguments == text
        return None
    return json.loads(arguments)


# -- what is broken comes back -----------------------------------------------------------------------------


@each_breakage
@few
@given(sample=samples(TAME))
def test_the_value_comes_back(breakage: str, sample: Sample) -> None:
    """Exactly: every member, type and character."""
    assert exact(repaired(sample, BREAKAGES[breakage](sample))) == exact(sample.value)


@each_breakage
@few
@given(sample=samples(WILD))
def test_a_wrong_value_is_never_presented_as_sound(breakage: str, sample: Sample) -> None:
    """Whatever quotes, brackets and marks the strings hold."""
    value = repaired(sample, BREAKAGES[breakage](sample))
    assert value is None or exact(value) == exact(sample.value)


@many
@given(sample=samples(TAME), style=STYLES, around=st.sampled_from(AROUND), loses_closers=st.booleans())
def test_several_faults_at_once(sample: Sample, style: Style, around: str, loses_closers: bool) -> None:
    text = style.text(sample.value)
    if loses_closers and not style.comment.strip():
        text = text.rstrip("}], \n")
    assert exact(repaired(sample, around.replace("{}", text, 1))) == exact(sample.value)


@many
@given(code=codes, order=st.sampled_from(("last", "first", "between")))
def test_code_comes_back_as_it_was_written(code: str, order: str) -> None:
    """Neither its quotes nor its newlines escaped; it keeps its last newline."""
    text = {
        "last": f'{{"path": "p", "content": "{code}"}}',
        "first": f'{{"content": "{code}", "path": "p"}}',
        "between": f'{{"path": "p", "content": "{code}", "line_count": 3}}',
    }[order]
    assume("\n" in code or "\\" not in code)  # else a backslash may be JSON's or the code's
    value = repaired(Sample(FILE_SCHEMA, {}), text)
    assert (value["path"], value["content"]) == ("p", code)


# -- what is sound stays -----------------------------------------------------------------------------------


@many
@given(
    sample=samples(WILD),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]),
    ensure_ascii=st.booleans(),
    finish_reason=st.sampled_from(["tool_calls", "length"]),
)
def test_a_sound_call_stays_the_identical_object(
    sample: Sample, indent: Any, separators: tuple[str, str], ensure_ascii: bool, finish_reason: str
) -> None:
    """However it is printed, and whatever its strings hold."""
    text = json.dumps(sample.value, indent=indent, separators=separators, ensure_ascii=ensure_ascii)
    reply = calling("f", text, finish_reason)
    assert repair_reply(reply, RequestFacts(tools={"f": sample.schema}), budget=plenty()) == (reply, ())
    assert repair_reply(reply, RequestFacts(tools={"f": sample.schema}), budget=plenty())[0] is reply


@many
@given(content=WILD, offers_tools=st.booleans())
def test_words_stay_the_identical_object(content: str, offers_tools: bool) -> None:
    reply = saying(content)
    facts = RequestFacts(tools={"f": FILE_SCHEMA} if offers_tools else {})
    assert repair_reply(reply, facts, budget=plenty())[0] is reply


@some
@given(sample=samples(WILD))
def test_sound_json_content_stays_the_identical_object(sample: Sample) -> None:
    reply = saying(json.dumps(sample.value))
    assert repair_reply(reply, RequestFacts(wants_json=True, json_schema=sample.schema), budget=plenty())[0] is reply


# -- what was cut is not presented as whole ----------------------------------------------------------------


@many
@given(sample=samples(WILD), style=STYLES, data=st.data())
def test_a_cut_call_has_only_whole_members(sample: Sample, style: Style, data: st.DataObject) -> None:
    """Cut anywhere at max_tokens: marked, or each member that is there is whole, and each required one is there."""
    text = style.text(sample.value)
    cut = text[: data.draw(st.integers(0, len(text)) | st.integers(1, 3).map(lambda left: max(len(text) - left, 0)))]
    value = repaired(sample, cut, is_cut=True)
    if value is not None:
        assert all(exact(part) == exact(sample.value[name]) for name, part in value.items())
        assert value.keys() >= set(sample.schema["required"])


@many
@given(code=codes, is_last=st.booleans(), data=st.data())
def test_a_cut_file_is_never_presented_as_whole(code: str, is_last: bool, data: st.DataObject) -> None:
    """Its quotes not escaped, so that the cut may be behind any of them, or behind any brace."""
    tail = "" if is_last else ', "line_count": 3'
    text = f'{{"path": "p", "content": "{code}"{tail}}}'
    cut = text[: data.draw(st.integers(20, len(text) - 1))]
    assume(not _is_json(cut))  # nobody could tell that from a whole one
    value = repaired(Sample(FILE_SCHEMA, {}), cut, is_cut=True)
    assert value is None or value["content"] == code


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


# -- whatever comes ----------------------------------------------------------------------------------------

_KEYS = (
    "choices", "message", "role", "content", "tool_calls", "function_call", "function", "name", "arguments", "type",
    "id", "finish_reason", "usage", "completion_tokens", "text", "messages", "tools", "functions", "parameters",
    "properties", "required", "items", "anyOf", "$ref", "enum", "response_format", "max_tokens", "tool_choice",
)  # fmt: skip
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WILD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5),
    max_leaves=20,
)
objects = st.dictionaries(st.sampled_from(_KEYS), anything)
FRAGMENTS = (
    "{", "}", "[", "]", '"', "'", "`", "```", ",", ":", "\\", "\n", " ", "//", "/*", "*/", "#", "\\u00", "\ud800",
    "NaN", "true", "None", "1", "1e999", "-", ".", "_", "path", '"path": ', '"content": ', "<tool_call>",
    "</tool_call>", "<function=f>", "<parameter=path>", "</parameter>", "[TOOL_CALLS]", "f[ARGS]", "<|python_tag|>",
    "<think>", "</think>", "<arg_key>", '{"name": "f", "arguments": ', "<|im_end|>", "\u2028", "\ufeff", "\x00",
)  # fmt: skip
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)


@pytest.mark.slow
@many
@given(reply=objects, request=objects)
def test_no_shape_of_a_reply_or_a_request_raises(reply: dict[str, Any], request: dict[str, Any]) -> None:
    repair_reply(reply, RequestFacts.of(request), budget=plenty())
    repair_history(request, budget=plenty())


@many
@given(text=fragments, finish_reason=st.sampled_from(["stop", "length", None]), wants_json=st.booleans())
def test_no_text_raises_and_no_repair_needs_another(text: str, finish_reason: Any, wants_json: bool) -> None:
    """As content and as arguments: a second repair finds nothing to change."""
    facts = RequestFacts(tools={"f": FILE_SCHEMA}, wants_json=wants_json)
    for reply in (saying(text, finish_reason), calling("f", text, finish_reason)):
        once, _ = repair_reply(reply, facts, budget=plenty())
        assert repair_reply(once, facts, budget=plenty())[0] is once


@many
@given(text=fragments)
def test_arguments_come_out_as_a_string(text: str) -> None:
    """That holds an object that fits, or the text that went in."""
    facts = RequestFacts(tools={"f": FILE_SCHEMA})
    mended, repairs = repair_reply(calling("f", text), facts, budget=plenty())
    arguments = call_of(mended)["arguments"]
    assert isinstance(arguments, str)
    if not any(repair.kind in MARKS for repair in repairs):
        assert json.loads(arguments).keys() >= {"path", "content"}


@many
@given(body=st.binary() | fragments.map(lambda text: text.encode(errors="replace")))
def test_a_body_becomes_an_object_or_is_refused(body: bytes) -> None:
    try:
        reply, _ = parse_reply(body, budget=plenty())
    except UnrepairableReply:
        return
    assert type(reply) is dict


@many
@given(arguments=fragments | anything)
def test_a_replayed_call_has_an_object_that_utf8_can_carry(arguments: object) -> None:
    """Else the backend answers 500 for as long as it is in the conversation."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    mended, _ = repair_history({"messages": [{"role": "assistant", "tool_calls": [call]}]}, budget=plenty())
    text: Any = mended["messages"][0]["tool_calls"][0]["function"]["arguments"]  # type: ignore[index]
    value = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert type(value) is dict
    json.dumps(value, ensure_ascii=False).encode()
