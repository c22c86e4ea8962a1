"""Replies as models write them and what each must become, decided by hand from the raw text: see tests/corpus/."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from corpus.cases import Case, load_cases
from corpus.report import OUTCOMES, table
from corpus.verdict import IDENTICAL, judge
from support.replies import plenty
from systemd_llm_switch.repair import (
    Repair,
    RepairKind,
    UnrepairableReply,
    parse_reply,
    repair_history,
    repair_reply,
)

CASES = load_cases()
PAGE = (Path(__file__).parents[2] / "docs" / "repair.md").read_text(encoding="utf-8")
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
    once, _ = repair_reply(case.reply, case.facts, budget=plenty())
    twice, _ = repair_reply(once, case.facts, budget=plenty())
    assert twice is once


def test_the_corpus_is_large_and_a_good_part_of_it_is_sound() -> None:
    """Every name is used once in its kind, and each outcome is seen often."""
    assert len(CASES) >= 320
    assert len({case.id for case in CASES}) == len(CASES)
    outcomes = Counter(judge(case).outcome for case in CASES)
    assert outcomes[IDENTICAL] >= len(CASES) / 4
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


def test_the_page_lists_the_kinds_that_the_code_knows() -> None:
    """Each word once, in the code's order."""
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(get_args(RepairKind))


def test_every_kind_is_noted_somewhere_in_the_corpus() -> None:
    """Except the ones that need a backend, or more text than a corpus should have."""
    seen = {repair.kind for case in CASES for repair in _outcome(case)[2]}
    assert seen == set(get_args(RepairKind)) - {"backend_refusal", "repair_budget"}


def test_the_page_shows_the_report_as_it_comes_out() -> None:
    """Its figures are what this run counts."""
    assert table() in PAGE


def _outcome(case: Case) -> tuple[object, object, tuple[Repair, ...]]:
    """What went in, what came out, and what was noted."""
    if "body" in case.raw:
        try:
            reply, repairs = parse_reply(case.body, budget=plenty())
        except UnrepairableReply:
            return case.body, None, ()
        mended, more = repair_reply(reply, case.facts, budget=plenty())
        return reply, mended, repairs + more
    if case not in REPLIES:
        body = case.replayed
        return body, *repair_history(body, budget=plenty())
    reply = case.reply
    return reply, *repair_reply(reply, case.facts, budget=plenty())


def _is_untouched(case: Case) -> bool:
    before, after, repairs = _outcome(case)
    return after is before and not repairs
