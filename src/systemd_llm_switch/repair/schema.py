"""Does a value fit a JSON schema, and which value was meant if the schema leaves only one.

Covers what tool definitions use (types, members, items, enums, unions, local references); what it does not know
counts as fitting. The work is bounded whatever the schema: beyond the bound everything fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum

from .model import Schema
from .text import decode, encode, fold

_MAX_DEPTH = 60
_MAX_WORK = 300_000
_ANYTHING: Schema = {}
_NOTHING: Schema = {"enum": ()}


class Misfit(IntEnum):
    """How badly a value misses its schema."""

    NONE = 0
    VALUE = 1
    """A value of a wrong type, outside its enum, or with a name that is not declared."""
    MISSING = 2
    """A required member is not there: to make it fit, its value would have to be invented."""


def misfit(value: object, schema: Schema) -> Misfit:
    """How badly a value misses a schema; the worst of all its parts."""
    return _Judge(schema).misfit(value, schema, 0)


def declared_names(schema: Schema) -> frozenset[str]:
    """The folded names of all members that the schema declares at any level."""
    found: set[str] = set()
    todo: list[object] = [schema]
    while todo and len(found) < 1000:
        part = todo.pop()
        if isinstance(part, Mapping):
            if isinstance(members := part.get("properties"), Mapping):
                found.update(fold(name) for name in members)
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)
    return frozenset(found - {""})


def coerce(value: object, schema: Schema, source: Callable[[object], str | None]) -> tuple[object, frozenset[str]]:
    """The value with names and types set right where the schema leaves one choice, and which of both were.

    `source` tells how a part of the value was written (None: not known). Nothing is mutated; the result need not fit.
    """
    coercer = _Coercer(schema, source)
    return coercer.coerce(value, schema, 0), frozenset(coercer.changed)


class _Judge:
    """Knows the whole schema, for its references, and how much work is left."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self.work_left = _MAX_WORK

    def misfit(self, value: object, declared: object, depth: int) -> Misfit:
        schema = self.resolve(declared)
        self.work_left -= 1
        if depth > _MAX_DEPTH or self.work_left < 0 or not schema:
            return Misfit.NONE
        if value is None and schema.get("nullable") is True:
            return Misfit.NONE
        if not _is_of_type(value, schema.get("type")) or not _is_listed(value, schema):
            return Misfit.VALUE
        worst = self.union_misfit(value, schema, depth)
        if type(value) is dict:
            return max(worst, self.object_misfit(value, schema, depth))
        if type(value) is list and "items" in schema:
            items = schema["items"]
            return max((self.misfit(item, items, depth + 1) for item in value), default=worst)
        return worst

    def union_misfit(self, value: object, schema: Schema, depth: int) -> Misfit:
        worst = Misfit.NONE
        for union in ("anyOf", "oneOf"):
            if branches := _schemas(schema.get(union)):
                worst = max(worst, min(self.misfit(value, branch, depth + 1) for branch in branches))
        for part in _schemas(schema.get("allOf")):
            worst = max(worst, self.misfit(value, part, depth + 1))
        return worst

    def object_misfit(self, value: dict[str, object], schema: Schema, depth: int) -> Misfit:
        required = schema.get("required")
        if isinstance(required, list) and any(isinstance(name, str) and name not in value for name in required):
            return Misfit.MISSING
        members, extra = _members(schema), schema.get("additionalProperties")
        worst = Misfit.NONE
        for name, part in value.items():
            if name in members:
                worst = max(worst, self.misfit(part, members[name], depth + 1))
            elif extra is False and "patternProperties" not in schema:
                worst = max(worst, Misfit.VALUE)
            elif isinstance(extra, Mapping):
                worst = max(worst, self.misfit(part, extra, depth + 1))
        return worst

    def resolve(self, declared: object) -> Schema:
        """The schema that a `$ref` within this document stands for; boolean schemas as mappings."""
        for _ in range(16):
            if not isinstance(declared, Mapping):
                return _NOTHING if declared is False else _ANYTHING
            reference = declared.get("$ref")
            if not isinstance(reference, str):
                return declared
            declared = self.look_up(reference)
        return _ANYTHING

    def look_up(self, reference: str) -> object:
        if not reference.startswith("#"):
            return _ANYTHING
        part: object = self.root
        for step in filter(None, reference[1:].split("/")):
            if not isinstance(part, Mapping):
                return _ANYTHING
            part = part.get(step.replace("~1", "/").replace("~0", "~"), _ANYTHING)
        return part


class _Coercer(_Judge):
    """Sets names and types right on the way down."""

    def __init__(self, root: Schema, source: Callable[[object], str | None]) -> None:
        super().__init__(root)
        self.source = source
        self.changed: set[str] = set()

    def coerce(self, value: object, declared: object, depth: int) -> object:
        schema = self.resolve(declared)
        if depth > _MAX_DEPTH or self.work_left < 0 or not schema:
            return value
        for union in ("anyOf", "oneOf"):
            if branches := _schemas(schema.get(union)):
                value = self.coerce_union(value, branches, depth)
        for part in _schemas(schema.get("allOf")):
            value = self.coerce(value, part, depth + 1)
        if not _is_of_type(value, schema.get("type")) and not (value is None and schema.get("nullable") is True):
            value = self.retype(value, schema, depth)
        elif not _is_listed(value, schema):
            value = self.pick(value, schema)
        if type(value) is dict:
            return self.coerce_object(value, schema, depth)
        if type(value) is list and "items" in schema:
            return self.coerce_items(value, schema["items"], depth)
        return value

    def coerce_union(self, value: object, branches: list[object], depth: int) -> object:
        """The value as it is if a branch takes it, else what it becomes in the branches, if that is one thing."""
        if any(self.misfit(value, branch, depth + 1) is Misfit.NONE for branch in branches):
            return value
        before = set(self.changed)
        outcomes: list[object] = []
        for branch in branches:
            outcome = self.coerce(value, branch, depth + 1)
            if self.misfit(outcome, branch, depth + 1) is Misfit.NONE and not _holds(outcomes, outcome):
                outcomes.append(outcome)
        if len(outcomes) == 1:
            return outcomes[0]
        self.changed = before
        return value

    def retype(self, value: object, schema: Schema, depth: int) -> object:
        outcomes: list[object] = []
        for name in _type_names(schema.get("type")):
            outcome = self.as_type(value, name, schema)
            if outcome is not _NO_VALUE and not _holds(outcomes, outcome):
                outcomes.append(outcome)
        if len(outcomes) != 1:
            return value
        self.changed.add("types")
        return outcomes[0]

    def as_type(self, value: object, name: str, schema: Schema) -> object:
        if name == "string":
            return self.as_string(value)
        if name == "array":
            return self.as_array(value, schema)
        if not isinstance(value, str):
            return _NO_VALUE
        return _parsed(value, name)

    def as_string(self, value: object) -> object:
        """A number or an object as it was written; a list might as well be one of its items, so it stays."""
        if value is True or value is False:
            return encode(value)
        if isinstance(value, int):
            return str(value)
        if isinstance(value, float | dict):
            return self.source(value) or _NO_VALUE
        return _NO_VALUE

    def as_array(self, value: object, schema: Schema) -> object:
        """The list that a string spells out, else a list of the single value; either only if its items then fit."""
        if value is None:
            return _NO_VALUE
        items = schema.get("items", _ANYTHING)
        if isinstance(value, str) and type(listed := _parsed(value, "array")) is list:
            return listed
        before = set(self.changed)
        item = self.coerce(value, items, 1)
        if self.misfit(item, items, 1) is Misfit.NONE:
            return [item]
        self.changed = before
        return _NO_VALUE

    def pick(self, value: object, schema: Schema) -> object:
        """The one listed value that differs only in case, separators or quotes."""
        spelled = fold(value if isinstance(value, str) else str(value))
        listed = [schema["const"]] if "const" in schema else schema["enum"]
        matches = [entry for entry in listed if fold(str(entry)) == spelled]  # type: ignore[attr-defined]
        if len(matches) != 1 or not spelled:
            return value
        self.changed.add("types")
        return matches[0]

    def coerce_object(self, value: dict[str, object], schema: Schema, depth: int) -> dict[str, object]:
        members = _members(schema)
        if not members and not isinstance(schema.get("additionalProperties"), Mapping):
            return value
        renames = self.renames(value, schema, members)
        extra = schema.get("additionalProperties")
        result: dict[str, object] = {}
        for name, part in value.items():
            name = renames.get(name, name)
            declared = members.get(name, extra)
            if part is None and name in members and self.may_be_left_out(name, schema):
                self.changed.add("types")
                continue
            result[name] = self.coerce(part, declared, depth + 1)
        return result

    def may_be_left_out(self, name: str, schema: Schema) -> bool:
        """An optional member that must not be null, but is: left out, it says the same."""
        required = schema.get("required")
        if isinstance(required, list) and name in required:
            return False
        return self.misfit(None, _members(schema)[name], 1) is not Misfit.NONE

    def renames(self, value: dict[str, object], schema: Schema, members: Schema) -> dict[str, str]:
        if schema.get("additionalProperties") not in (None, False) or "patternProperties" in schema:
            return {}
        unknown = [name for name in value if name not in members]
        if not unknown:
            return {}
        free: dict[str, list[str]] = {}
        for name in members:
            if name not in value:
                free.setdefault(fold(name), []).append(name)
        wanted = {name: free.get(fold(name), []) for name in unknown}
        renames = {name: found[0] for name, found in wanted.items() if len(found) == 1}
        if len(set(renames.values())) != len(renames):
            return {}
        if renames:
            self.changed.add("names")
        return renames

    def coerce_items(self, value: list[object], items: object, depth: int) -> list[object]:
        return [self.coerce(item, items, depth + 1) for item in value]


_NO_VALUE = object()
_IS: dict[str, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int or (isinstance(value, float) and value.is_integer()),
    "number": lambda value: type(value) is int or isinstance(value, float),
    "boolean": lambda value: value is True or value is False,
    "null": lambda value: value is None,
    "object": lambda value: type(value) is dict,
    "array": lambda value: type(value) is list,
}


def _type_names(declared: object) -> list[str]:
    if isinstance(declared, str):
        return [declared]
    return [name for name in declared if isinstance(name, str)] if isinstance(declared, list) else []


def _is_of_type(value: object, declared: object) -> bool:
    if isinstance(declared, str):
        return declared not in _IS or _IS[declared](value)
    names = _type_names(declared)
    return not names or any(name not in _IS or _IS[name](value) for name in names)


def _is_listed(value: object, schema: Schema) -> bool:
    if "const" in schema:
        return _same(value, schema["const"])
    listed = schema.get("enum")
    return not isinstance(listed, list | tuple) or _holds(list(listed), value)


def _same(one: object, other: object) -> bool:
    """JSON's equality: true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _holds(values: list[object], value: object) -> bool:
    return any(_same(value, entry) for entry in values)


def _schemas(declared: object) -> list[object]:
    return declared if isinstance(declared, list) else []


def _members(schema: Schema) -> Schema:
    members = schema.get("properties")
    return members if isinstance(members, Mapping) else _ANYTHING


def _parsed(text: str, name: str) -> object:
    """The value of this type that a string spells out."""
    text = text.strip()
    try:
        value = decode(text.lower() if name == "boolean" else "null" if text == "None" else text)
    except (ValueError, RecursionError):
        return _NO_VALUE
    if name == "integer" and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if name in _IS and _IS[name](value) else _NO_VALUE
