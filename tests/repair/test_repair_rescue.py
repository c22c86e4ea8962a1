"""Random calls, leaked into the text in each known form: one that is made is rescued, one that is shown stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpus.verdict import exact
from support.breakage import TAME, WILD, Sample, samples
from support.leaked import BARE, MARKED, SHOWN
from support.replies import call_of, plenty, saying
from systemd_llm_switch.repair import RequestFacts, repair_reply

FORMS = MARKED | BARE
few = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def facts_of(sample: Sample) -> RequestFacts:
    return RequestFacts(tools={"do_it": sample.schema, "another": {}})


def repaired(sample: Sample, content: str, finish_reason: str = "stop") -> dict[str, Any]:
    return repair_reply(saying(content, finish_reason), facts_of(sample), budget=plenty())[0]


@pytest.mark.parametrize("form", FORMS)
@few
@given(sample=samples(TAME | WILD))
def test_a_call_that_is_the_whole_answer_is_rescued(form: str, sample: Sample) -> None:
    reply = repaired(sample, FORMS[form]("do_it", sample.value))
    function = call_of(reply)
    assert function["name"] == "do_it"
    assert exact(json.loads(function["arguments"])) == exact(sample.value)
    assert reply["choices"][0]["message"]["content"] is None
    assert reply["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("form", MARKED)
@few
@given(sample=samples(TAME | WILD))
def test_the_words_before_a_call_stay(form: str, sample: Sample) -> None:
    reply = repaired(sample, f"I will do it.\n\n{MARKED[form]('do_it', sample.value)}")
    assert reply["choices"][0]["message"]["content"] == "I will do it."
    assert exact(json.loads(call_of(reply)["arguments"])) == exact(sample.value)


@pytest.mark.parametrize("form", BARE)
@few
@given(sample=samples(TAME))
def test_a_form_without_a_mark_is_not_a_call_behind_words(form: str, sample: Sample) -> None:
    """It may be anything: only as the whole answer it is a call."""
    assert_untouched(sample, f"I will do it.\n\n{BARE[form]('do_it', sample.value)}")


@many
@given(sample=samples(TAME), frame=st.sampled_from(SHOWN), form=st.sampled_from(sorted(MARKED)))
def test_a_call_that_is_shown_stays_text(sample: Sample, frame: str, form: str) -> None:
    assert_untouched(sample, frame.replace("{}", MARKED[form]("do_it", sample.value)))


@many
@given(sample=samples(TAME), form=st.sampled_from(sorted(FORMS)))
def test_a_call_of_a_tool_that_was_not_offered_stays_text(sample: Sample, form: str) -> None:
    assert_untouched(sample, FORMS[form]("do_that", sample.value))


@many
@given(sample=samples(TAME), form=st.sampled_from(sorted(FORMS)))
def test_a_call_that_lacks_what_is_required_stays_text(sample: Sample, form: str) -> None:
    schema = {**sample.schema, "required": [*sample.schema["required"], "reason"]}
    assert_untouched(Sample(schema, sample.value), FORMS[form]("do_it", sample.value))


@many
@given(sample=samples(TAME | WILD), form=st.sampled_from(sorted(FORMS)), data=st.data())
def test_a_cut_call_is_rescued_whole_or_not_at_all(sample: Sample, form: str, data: st.DataObject) -> None:
    """Cut anywhere at max_tokens: no member is less than it was meant to be, and finish_reason stays "length"."""
    text = FORMS[form]("do_it", sample.value)
    cut = text[: data.draw(st.integers(0, len(text)) | st.integers(1, 20).map(lambda left: max(len(text) - left, 0)))]
    reply = repaired(sample, cut, "length")
    assert reply["choices"][0]["finish_reason"] == "length"
    if reply["choices"][0]["message"].get("tool_calls"):
        value = json.loads(call_of(reply)["arguments"])
        assert all(exact(part) == exact(sample.value[name]) for name, part in value.items())


def assert_untouched(sample: Sample, content: str) -> None:
    reply = saying(content)
    assert repair_reply(reply, facts_of(sample), budget=plenty()) == (reply, ())
