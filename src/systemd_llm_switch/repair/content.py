"""Repairs content that the client demanded as JSON. Must not touch any other content."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from .budget import Budget, BudgetSpent
from .coercion import coerce, not_known
from .lenient import Reading, best_reading
from .model import Repair, RequestFacts
from .schema import OBJECT, Judge, Node
from .second_opinion import second_opinion
from .strings import Ambiguous, Exhausted, Unreadable
from .text import decode, decode_start, encode

_FENCE = re.compile(r"```[^\n`]*+\n(.*?)(?:\n[ \t]*+```|\Z)", re.DOTALL)
_TAIL = re.compile(r"\s*+(?:```|\Z)|[^\S\n]*+\n[^{}\[\]\"]*+\Z")
_BETWEEN = re.compile(r"[\s,;]*+")
_MAX_CANDIDATES = 8


def repair_content(content: str, facts: RequestFacts, budget: Budget) -> tuple[str, tuple[Repair, ...]]:
    """JSON content made valid, guided by the client's schema; the identical string if it is sound, or past repair.

    Fences and prose around the JSON go. A text that was cut is closed, as nobody runs it and `finish_reason` says that
    it was cut; but a required member is never invented. Never raises.
    """
    if not facts.wants_json or not content or content.isspace():
        return content, ()
    try:
        return _Attempt(facts.content_schema(), budget).repaired(content)
    except BudgetSpent:
        return content, (Repair("repair_budget"),)


def _candidates(content: str) -> Iterator[str]:
    """What may be the JSON in a text, the likeliest first."""
    answer = content.rpartition("</think>")[2]
    yield answer
    for fence in _FENCE.finditer(answer):
        yield fence[1]
    firsts = {answer.find("{"), answer.find("[")}
    lasts = {answer.rfind("\n{") + 1, answer.rfind("\n[") + 1} - {0}
    nexts = {answer.find(bracket, first + 1) for bracket in "{[" for first in firsts if first >= 0}
    for start in sorted((firsts | nexts | lasts) - {-1}):
        yield answer[start:]


class _Several(Unreadable):
    """More than one value, and nothing says which one was meant."""


def _one_after_another(text: str, at: int = 0) -> tuple[list[object], int]:
    """The JSON values from here on, with space or commas between, and where something else comes."""
    values: list[object] = []
    at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
    while text.startswith(("{", "["), at):
        try:
            value, end = decode_start(text, at)
        except (ValueError, RecursionError):
            break
        values.append(value)
        at = _BETWEEN.match(text, end).end()  # type: ignore[union-attr]
    return values, at


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt to repair the content of one choice."""

    schema: Node
    budget: Budget

    def fits(self, value: object) -> bool:
        return Judge(self.budget).fits(value, self.schema)

    def repaired(self, content: str) -> tuple[str, tuple[Repair, ...]]:
        """The content repaired, or as it is with the reason. Raises BudgetSpent."""
        try:
            value = decode(content)
        except (ValueError, RecursionError):
            return self.extracted(content)
        if self.fits(value):
            return content, ()
        is_one = self.schema is not OBJECT and type(value) is list and len(value) == 1
        for candidate in (value, value[0]) if is_one else (value,):
            coerced, changed = coerce(candidate, self.schema, not_known, self.budget)
            if (changed or candidate is not value) and self.fits(coerced):
                return encode(coerced), (Repair("json_content"),)
        return content, (Repair("unfit_content"),)

    def extracted(self, content: str) -> tuple[str, tuple[Repair, ...]]:
        self.budget.allow(len(content))
        for candidate in islice(_candidates(content), _MAX_CANDIDATES):
            self.budget.check()
            try:
                found = self.json_in(candidate.strip())
                if found.startswith("[") and "{" in content.partition(candidate)[0]:
                    continue  # one item of several, of which another is broken
                return found, (Repair("json_content"),)
            except (Exhausted, _Several):
                break
            except (ValueError, RecursionError):
                continue
        return content, (Repair("unrepairable_content"),)

    def json_in(self, text: str) -> str:
        """The JSON that a text starts with, as it was written if it is valid. Raises ValueError or RecursionError."""
        if not text.startswith(("{", "[")):
            raise Unreadable("neither an object nor a list")
        try:
            value, end = decode_start(text)
        except ValueError:
            return self.read(text)
        coerced, changed = coerce(value, self.schema, not_known, self.budget)
        if type(coerced) is list and type(value) is not list:  # the first of them is not all
            values, end = _one_after_another(text)
            coerced, _ = coerce(values, self.schema, not_known, self.budget)
            if "{" in text[end:]:
                raise Unreadable("a broken value among them")
        if not self.fits(coerced):
            raise Unreadable("another value than the client wants")
        if any(other != value and self.fits(other) for other in _one_after_another(text, end)[0]):
            raise _Several("two values that the client may want")
        return encode(coerced) if changed else text[:end]

    def read(self, text: str) -> str:
        try:
            reading = best_reading(text, 0, self.schema.names, _TAIL, self.budget)
        except (Exhausted, Ambiguous):
            raise
        except Unreadable:
            value = second_opinion(text)
            if value is None or not self.fits(value):
                raise
            return encode(value)
        return self.checked(reading)

    def checked(self, reading: Reading) -> str:
        value, _ = coerce(reading.value, self.schema, reading.source, self.budget)
        if not self.fits(value) or reading.has_not_a_number:
            raise Unreadable("nothing that fits")
        if self.schema is OBJECT and reading.has_words:
            raise Unreadable("words that no schema asks for")
        return encode(value)
