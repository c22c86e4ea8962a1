"""Prints what became of the corpus, as a table for docs/repair.md: PYTHONPATH=src:tests python -m corpus.report"""

from __future__ import annotations

from collections import Counter

from corpus.cases import load_cases
from corpus.verdict import IDENTICAL, MARKED, REPAIRED, judge

OUTCOMES = (IDENTICAL, REPAIRED, MARKED)
_WRONG = "wrong"


def table() -> str:
    """One line a kind, and one for all; a case counts under its outcome only if it came exactly as expected."""
    counts: dict[str, Counter[str]] = {}
    for case in load_cases():
        verdict = judge(case)
        column = _WRONG if verdict.problems else verdict.outcome
        counts.setdefault(case.kind, Counter())[column] += 1
    lines = [_line(["kind", "cases", *OUTCOMES, _WRONG]), _line(["---"] + ["---:"] * 5)]
    lines += [_row(kind, count) for kind, count in counts.items()]
    return "\n".join([*lines, _row("**all**", sum(counts.values(), Counter()))])


def _row(kind: str, count: Counter[str]) -> str:
    return _line([kind, str(count.total()), *(str(count[column]) for column in (*OUTCOMES, _WRONG))])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(table())
