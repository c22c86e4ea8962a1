"""Corrects names, types and spellings of a value if the schema allows only one meaning. Invents nothing."""

from __future__ import annotations

from collections.abc import Callable

from .budget import Budget
from .lenient import read
from .schema import ANYTHING, MAX_DEPTH, Judge, Node, is_of_type, is_same
from .strings import Unreadable
from .text import decode, encode, fold

Source = Callable[[object], str | None]
NAMES, TYPES = "names", "types"
"""What may be changed."""
_NO_VALUE = object()
_SAFE_INTEGER = 2**53
_NULLS = ("null", "None", "NULL")
_BOOLEANS = {"1": "true", "0": "false"}


def coerce(value: object, schema: Node, source: Source, budget: Budget) -> tuple[object, frozenset[str]]:
    """The value as the schema wants it, and what was changed: `NAMES`, `TYPES` or both.

    `source` returns how a part of the value was written, or None if that is not known. Nothing is mutated. The result
    need not fit. Raises BudgetSpent.
    """
    coercer = _Coercer(source, budget)
    return coercer.coerce(value, schema, 0), frozenset(coercer.changed)


def not_known(value: object) -> str | None:
    """The source of a value that was valid JSON: how its parts were written was not kept."""
    return None


class _Coercer(Judge):
    """Sets names and types right on the way down. Each pair of a value and a node is coerced once."""

    def __init__(self, source: Source, budget: Budget) -> None:
        super().__init__(budget)
        self.budget = budget
        self.source = source
        self.changed: set[str] = set()
        self.outcomes: dict[tuple[int, int], tuple[object, object, frozenset[str]]] = {}

    def coerce(self, value: object, node: Node, depth: int) -> object:
        if node is ANYTHING or depth > MAX_DEPTH or (value is None and node.is_nullable):
            return value
        key = (id(value), id(node))
        if (known := self.outcomes.get(key)) is not None:
            self.changed |= known[2]
            return known[1]
        self.step()
        self.outcomes[key] = (value, value, frozenset())
        before, self.changed = self.changed, set()
        outcome = self.coerced(value, node, depth)
        self.outcomes[key] = (value, outcome, frozenset(self.changed))
        self.changed |= before
        return outcome

    def coerced(self, value: object, node: Node, depth: int) -> object:
        for branches in node.unions:
            value = self.through_union(value, branches, depth)
        for part in node.parts:
            value = self.coerce(value, part, depth + 1)
        if not node.is_of_type(value):
            value = self.retyped(value, node, depth)
        if not node.is_listed(value):
            value = self.picked(value, node)
        if type(value) is dict:
            return self.through_members(value, node, depth)
        if type(value) is list and node.items is not None:
            return [self.coerce(item, node.items, depth + 1) for item in value]
        return value

    def through_union(self, value: object, branches: tuple[Node, ...], depth: int) -> object:
        """The value as it is if a branch takes it, else what it becomes in the branches, if that is one thing."""
        if any(self.fits(value, branch, depth + 1) for branch in branches):
            return value
        outcomes = [self.attempt(value, branch, depth + 1) for branch in branches]
        return self.only_one(outcomes, value)

    def retyped(self, value: object, node: Node, depth: int) -> object:
        return self.only_one([self.as_type(value, name, node, depth) for name in node.types], value)

    def attempt(self, value: object, node: Node, depth: int) -> object:
        """What a value becomes under a schema, if it then fits; the note of changes is left alone."""
        before = set(self.changed)
        outcome = self.coerce(value, node, depth)
        self.changed = before
        return outcome if self.fits(outcome, node, depth) else _NO_VALUE

    def only_one(self, outcomes: list[object], value: object) -> object:
        distinct: list[object] = []
        for outcome in outcomes:
            if outcome is not _NO_VALUE and not any(is_same(outcome, other) for other in distinct):
                distinct.append(outcome)
        if len(distinct) != 1:
            return value
        self.changed.add(TYPES)
        return distinct[0]

    def as_type(self, value: object, name: str, node: Node, depth: int) -> object:
        if name == "string":
            return self.as_string(value)
        if name == "array":
            return self.as_array(value, node, depth)
        if name == "boolean" and type(value) is int and value in (0, 1):
            return value == 1
        return parsed(value, name, self.budget) if isinstance(value, str) else _NO_VALUE

    def as_string(self, value: object) -> object:
        """A number or an object as it was written; a list might as well mean its only item, so it stays."""
        if isinstance(value, bool):
            return encode(value)
        if isinstance(value, int):
            return str(value)
        written = self.source(value) if isinstance(value, float | dict) else None
        return _NO_VALUE if written is None else written

    def as_array(self, value: object, node: Node, depth: int) -> object:
        """The list that a string spells out, else a list of the one value, if its items then fit."""
        if value is None:
            return _NO_VALUE
        if isinstance(value, str) and value.lstrip().startswith("["):
            return parsed(value, "array", self.budget)
        item = self.attempt(value, node.items or ANYTHING, depth + 1)
        is_other = item is _NO_VALUE or (isinstance(value, dict) and isinstance(item, str))
        return _NO_VALUE if is_other else [item]

    def picked(self, value: object, node: Node) -> object:
        """The one listed value that differs only in case, separators or quotes."""
        spelled = fold(str(value)) if isinstance(value, str | int | float) else ""
        if not spelled or node.listed is None:
            return value
        takes_null = node.is_nullable or None in node.listed
        if takes_null and value in _NULLS:
            self.changed.add(TYPES)
            return None
        return self.only_one([entry for entry in node.listed if fold(str(entry)) == spelled], value)

    def through_members(self, value: dict[str, object], node: Node, depth: int) -> dict[str, object]:
        if not node.members and node.extra is None:
            return value
        renames = self.renames(value, node)
        result: dict[str, object] = {}
        for written, part in value.items():
            name = renames.get(written, written)
            declared = node.members.get(name, node.extra or ANYTHING)
            if part is None and self.may_be_left_out(name, node, depth):
                self.changed.add(TYPES)
            else:
                result[name] = self.coerce(part, declared, depth + 1)
        return result

    def may_be_left_out(self, name: str, node: Node, depth: int) -> bool:
        """Whether a member is optional and null although it must not be: leaving it out means the same."""
        return name in node.members and name not in node.required and not self.fits(None, node.members[name], depth + 1)

    def renames(self, value: dict[str, object], node: Node) -> dict[str, str]:
        """Names as they were written to the declared ones that were meant."""
        if node.takes_others:
            return {}
        meant = {name: node.meant_name(name, value) for name in value if name not in node.members}
        renames = {name: known for name, known in meant.items() if known is not None}
        if not renames or len(set(renames.values())) != len(renames):
            return {}
        self.changed.add(NAMES)
        return renames


def parsed(text: str, name: str, budget: Budget) -> object:
    """The value of this type that a string spells out, if it does."""
    text = text.strip()
    try:
        value = decode(
            {"boolean": _BOOLEANS.get(text, text.lower()), "null": "null" if text == "None" else text}.get(name, text)
        )
    except ValueError:
        value = _read_brackets(text, budget)
    except RecursionError:
        return _NO_VALUE
    if name == "integer" and isinstance(value, float) and value.is_integer() and abs(value) < _SAFE_INTEGER:
        return int(value)
    return value if value is not _NO_VALUE and is_of_type(value, name) else _NO_VALUE


def _read_brackets(text: str, budget: Budget) -> object:
    """A list or an object in Python's spelling, or otherwise nearly JSON."""
    if not text.startswith(("[", "{")):
        return _NO_VALUE
    try:
        reading = read(text, budget=budget)
    except Unreadable:
        return _NO_VALUE
    is_whole = reading.end == len(text) and not reading.is_cut and not reading.open_depths
    is_plain = not (reading.has_words or reading.has_not_a_number or reading.valueless or reading.doubts)
    return reading.value if is_whole and is_plain else _NO_VALUE
