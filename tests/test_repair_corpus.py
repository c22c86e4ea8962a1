"""Replies as models write them and what each must become, decided by hand from the raw text: see tests/corpus/."""

from __future__ import annotations

from collections import Counter

import pytest

from corpus.cases import Case, load_cases
from corpus.report import OUTCOMES, table
from corpus.verdict import IDENTICAL, judge
from systemd_llm_switch.repair import UnrepairableReply, parse_reply, repair_history, repair_reply

CASES = load_cases()
REPLIES = [case for case in CASES if not {"body", "history", "messages"} & case.raw.keys()]
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
each_reply = pytest.mark.parametrize("case", REPLIES, ids=lambda case: case.id)


@each
def test_a_reply_becomes_what_a_human_expects(case: Case) -> None:
    """Sound: the identical object. Broken: the expected value. Past repair: as it was written, and marked."""
    assert judge(case).problems == ()


@each_reply
def test_what_was_repaired_needs_no_second_repair(case: Case) -> None:
    """A repaired reply is sound: nothing more is changed in it."""
    once, _ = repair_reply(case.reply, case.facts)
    twice, _ = repair_reply(once, case.facts)
    assert twice is once


def test_the_corpus_is_large_and_a_good_third_of_it_is_sound() -> None:
    """Every name is used once in its kind, and each outcome is seen often."""
    assert len(CASES) >= 320
    assert len({case.id for case in CASES}) == len(CASES)
    outcomes = Counter(judge(case).outcome for case in CASES)
    assert outcomes[IDENTICAL] >= len(CASES) * 0.3
    assert min(outcomes[outcome] for outcome in OUTCOMES) >= 50


def test_every_sound_case_stays_the_identical_object() -> None:
    """Not an equal one: identity is what lets the proxy pass on the backend's own bytes."""
    assert [case.id for case in CASES if case.is_sound and not _is_untouched(case)] == []


def test_the_report_counts_every_case_and_none_as_wrong() -> None:
    last = [cell.strip() for cell in table().splitlines()[-1].split("|")[1:-1]]
    assert last[0] == "**all**"
    assert int(last[1]) == len(CASES)
    assert sum(map(int, last[2:-1])) == len(CASES)
    assert last[-1] == "0"


def _is_untouched(case: Case) -> bool:
    if "body" in case.raw:
        try:
            reply, repairs = parse_reply(case.body)
        except UnrepairableReply:
            return False
        return not repairs and repair_reply(reply, case.facts)[0] is reply
    if case not in REPLIES:
        body = case.replayed
        return repair_history(body) == (body, ()) and repair_history(body)[0] is body
    reply = case.reply
    mended, repairs = repair_reply(reply, case.facts)
    return mended is reply and not repairs
