"""Which value was meant, where the schema leaves only one: names, types and spellings set right, nothing made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .lenient import read
from .model import RepairKind, Schema
from .schema import (
    ANYTHING,
    Judge,
    is_listed,
    is_of_type,
    is_same,
    listed_schemas,
    meant_name,
    members,
    required_names,
    takes_other_names,
    type_names,
)
from .strings import Unreadable
from .text import decode, encode, fold

Source = Callable[[object], str | None]
_NO_VALUE = object()
_SAFE_INTEGER = 2**53


def coerce(value: object, schema: Schema, source: Source) -> tuple[object, frozenset[RepairKind]]:
    """The value as the schema wants it, and what was changed: names, types or both.

    `source` tells how a part of the value was written (None: not known). Mutates nothing; the result need not fit.
    """
    coercer = _Coercer(schema, source)
    return coercer.coerce(value, schema, 0), frozenset(coercer.changed)


def not_known(value: object) -> str | None:
    """The source of a value that was valid JSON: how its parts were written was not kept."""
    return None


class _Coercer(Judge):
    """Sets names and types right on the way down."""

    def __init__(self, root: Schema, source: Source) -> None:
        super().__init__(root)
        self.source = source
        self.changed: set[RepairKind] = set()

    def coerce(self, value: object, declared: object, depth: int) -> object:
        schema = self.resolve(declared)
        if not schema or self.is_spent(depth) or (value is None and schema.get("nullable") is True):
            return value
        for union in ("anyOf", "oneOf"):
            if branches := listed_schemas(schema, union):
                value = self.through_union(value, branches, depth)
        for part in listed_schemas(schema, "allOf"):
            value = self.coerce(value, part, depth + 1)
        if not is_of_type(value, schema.get("type")):
            value = self.retyped(value, schema, depth)
        if not is_listed(value, schema):
            value = self.picked(value, schema)
        if type(value) is dict:
            return self.through_members(value, schema, depth)
        if type(value) is list and "items" in schema:
            return [self.coerce(item, schema["items"], depth + 1) for item in value]
        return value

    def through_union(self, value: object, branches: list[object], depth: int) -> object:
        """The value as it is if a branch takes it, else what it becomes in the branches, if that is one thing."""
        if any(self.fits(value, branch, depth + 1) for branch in branches):
            return value
        outcomes = [self.attempt(value, branch, depth + 1) for branch in branches]
        return self.only_one(outcomes, value)

    def retyped(self, value: object, schema: Schema, depth: int) -> object:
        names = type_names(schema.get("type"))
        return self.only_one([self.as_type(value, name, schema, depth) for name in names], value)

    def attempt(self, value: object, declared: object, depth: int) -> object:
        """What a value becomes under a schema, if it then fits; the note of changes is left alone."""
        before = set(self.changed)
        outcome = self.coerce(value, declared, depth)
        self.changed = before
        return outcome if self.fits(outcome, declared, depth) else _NO_VALUE

    def only_one(self, outcomes: list[object], value: object) -> object:
        distinct: list[object] = []
        for outcome in outcomes:
            if outcome is not _NO_VALUE and not any(is_same(outcome, other) for other in distinct):
                distinct.append(outcome)
        if len(distinct) != 1:
            return value
        self.changed.add("arguments_types")
        return distinct[0]

    def as_type(self, value: object, name: str, schema: Schema, depth: int) -> object:
        if name == "string":
            return self.as_string(value)
        if name == "array":
            return self.as_array(value, schema, depth)
        return parsed(value, name) if isinstance(value, str) else _NO_VALUE

    def as_string(self, value: object) -> object:
        """A number or an object as it was written; a list might as well mean its only item, so it stays."""
        if isinstance(value, bool):
            return encode(value)
        if isinstance(value, int):
            return str(value)
        written = self.source(value) if isinstance(value, float | dict) else None
        return _NO_VALUE if written is None else written

    def as_array(self, value: object, schema: Schema, depth: int) -> object:
        """The list that a string spells out, else a list of the one value, if its items then fit."""
        if value is None:
            return _NO_VALUE
        if isinstance(value, str) and value.lstrip().startswith("["):
            return parsed(value, "array")
        item = self.attempt(value, schema.get("items", ANYTHING), depth + 1)
        return _NO_VALUE if item is _NO_VALUE else [item]

    def picked(self, value: object, schema: Schema) -> object:
        """The one listed value that differs only in case, separators or quotes."""
        listed = [schema["const"]] if "const" in schema else schema["enum"]
        spelled = fold(str(value))
        if not isinstance(listed, list) or not spelled:
            return value
        return self.only_one([entry for entry in listed if fold(str(entry)) == spelled], value)

    def through_members(self, value: dict[str, object], schema: Schema, depth: int) -> dict[str, object]:
        declared, extra = members(schema), schema.get("additionalProperties")
        if not declared and not isinstance(extra, Mapping):
            return value
        renames = self.renames(value, schema)
        result: dict[str, object] = {}
        for written, part in value.items():
            name = renames.get(written, written)
            if part is None and self.may_be_left_out(name, schema, depth):
                self.changed.add("arguments_types")
            else:
                result[name] = self.coerce(part, declared.get(name, extra), depth + 1)
        return result

    def may_be_left_out(self, name: str, schema: Schema, depth: int) -> bool:
        """An optional member that must not be null but is: left out, it says the same."""
        declared = members(schema)
        return (
            name in declared and name not in required_names(schema) and not self.fits(None, declared[name], depth + 1)
        )

    def renames(self, value: dict[str, object], schema: Schema) -> dict[str, str]:
        """Names as they were written to the declared ones that were meant."""
        if takes_other_names(schema):
            return {}
        declared = members(schema)
        meant = {name: meant_name(name, value, declared) for name in value if name not in declared}
        renames = {name: known for name, known in meant.items() if known is not None}
        if not renames or len(set(renames.values())) != len(renames):
            return {}
        self.changed.add("arguments_names")
        return renames


def parsed(text: str, name: str) -> object:
    """The value of this type that a string spells out, if it does."""
    text = text.strip()
    try:
        value = decode({"boolean": text.lower(), "null": "null" if text == "None" else text}.get(name, text))
    except ValueError:
        value = _read_brackets(text)
    except RecursionError:
        return _NO_VALUE
    if name == "integer" and isinstance(value, float) and value.is_integer() and abs(value) < _SAFE_INTEGER:
        return int(value)
    return value if value is not _NO_VALUE and is_of_type(value, name) else _NO_VALUE


def _read_brackets(text: str) -> object:
    """A list or an object in Python's spelling, or otherwise nearly JSON."""
    if not text.startswith(("[", "{")):
        return _NO_VALUE
    try:
        reading = read(text)
    except Unreadable:
        return _NO_VALUE
    is_whole = reading.end == len(text) and not reading.is_cut and not reading.open_depths
    is_plain = not (reading.has_words or reading.has_not_a_number or reading.valueless or reading.doubts)
    return reading.value if is_whole and is_plain else _NO_VALUE
