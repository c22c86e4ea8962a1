"""Does a value fit a JSON schema?

Covers what tool definitions use (types, members, items, enums, unions, local references); what it does not know counts
as fitting. The work is bounded whatever the schema: beyond the bound everything fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum

from .model import Schema
from .text import fold

MAX_DEPTH = 60
_MAX_WORK = 300_000
_MAX_NAMES = 2000
ANYTHING: Schema = {}
_NOTHING: Schema = {"enum": ()}


class Misfit(IntEnum):
    """How badly a value misses its schema."""

    NONE = 0
    VALUE = 1
    """A value of a wrong type or outside its enum, or a name that is not declared."""
    MISSING = 2
    """A required member is not there: to make it fit, its value would have to be invented."""


def misfit(value: object, schema: Schema) -> Misfit:
    """How badly a value misses a schema: the worst of all its parts."""
    return Judge(schema).misfit(value, schema, 0)


def declared_names(schemas: Iterable[Schema]) -> frozenset[str]:
    """The folded names of all members that the schemas declare at any level."""
    found: set[str] = set()
    todo: list[object] = list(schemas)
    while todo and len(found) < _MAX_NAMES:
        part = todo.pop()
        if isinstance(part, Mapping):
            found.update(map(fold, members(part)))
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)
    return frozenset(found - {""})


class Judge:
    """Knows the whole schema, for its references, and how much work is left."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self.work_left = _MAX_WORK

    def is_spent(self, depth: int) -> bool:
        """Whether this part is too deep, or came too late, to be looked at."""
        self.work_left -= 1
        return depth > MAX_DEPTH or self.work_left < 0

    def fits(self, value: object, declared: object, depth: int) -> bool:
        return self.misfit(value, declared, depth) is Misfit.NONE

    def misfit(self, value: object, declared: object, depth: int) -> Misfit:
        schema = self.resolve(declared)
        if not schema or self.is_spent(depth) or (value is None and schema.get("nullable") is True):
            return Misfit.NONE
        if not is_of_type(value, schema.get("type")) or not is_listed(value, schema):
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
            if branches := listed_schemas(schema, union):
                worst = max(worst, min(self.misfit(value, branch, depth + 1) for branch in branches))
        for part in listed_schemas(schema, "allOf"):
            worst = max(worst, self.misfit(value, part, depth + 1))
        return worst

    def object_misfit(self, value: dict[str, object], schema: Schema, depth: int) -> Misfit:
        if any(name not in value for name in required_names(schema)):
            return Misfit.MISSING
        declared, extra = members(schema), schema.get("additionalProperties")
        worst = Misfit.NONE
        for name, part in value.items():
            if name in declared:
                worst = max(worst, self.misfit(part, declared[name], depth + 1))
            elif isinstance(extra, Mapping):
                worst = max(worst, self.misfit(part, extra, depth + 1))
            elif not takes_other_names(schema) and (extra is False or meant_name(name, value, declared)):
                worst = max(worst, Misfit.VALUE)
        return worst

    def resolve(self, declared: object) -> Schema:
        """The schema that a `$ref` within this document stands for; boolean schemas as mappings."""
        for _ in range(16):
            if not isinstance(declared, Mapping):
                return _NOTHING if declared is False else ANYTHING
            reference = declared.get("$ref")
            if not isinstance(reference, str):
                return declared
            declared = self.look_up(reference)
        return ANYTHING

    def look_up(self, reference: str) -> object:
        part: object = self.root if reference.startswith("#") else ANYTHING
        for step in filter(None, reference[1:].split("/")):
            if not isinstance(part, Mapping):
                return ANYTHING
            part = part.get(step.replace("~1", "/").replace("~0", "~"), ANYTHING)
        return part


# -- the parts of a schema, whatever was sent in their place -----------------------------------------------


def members(schema: Schema) -> Schema:
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else ANYTHING


def required_names(schema: Schema) -> list[str]:
    found = schema.get("required")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def listed_schemas(schema: Schema, keyword: str) -> list[object]:
    found = schema.get(keyword)
    return found if isinstance(found, list) else []


def type_names(declared: object) -> list[str]:
    if isinstance(declared, str):
        return [declared]
    return [name for name in declared if isinstance(name, str)] if isinstance(declared, list) else []


def takes_other_names(schema: Schema) -> bool:
    """Whether the schema says itself that members may have names that it does not list."""
    return schema.get("additionalProperties") not in (None, False) or "patternProperties" in schema


def meant_name(name: str, value: Mapping[str, object], declared: Schema) -> str | None:
    """The declared name, not used yet, that differs from this one only in case and separators."""
    folded = fold(name)
    if not folded:
        return None
    matches = [known for known in declared if known not in value and fold(known) == folded]
    return matches[0] if len(matches) == 1 else None


# -- single values -----------------------------------------------------------------------------------------

_IS: dict[str, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int or (isinstance(value, float) and value.is_integer()),
    "number": lambda value: type(value) is int or isinstance(value, float),
    "boolean": lambda value: value is True or value is False,
    "null": lambda value: value is None,
    "object": lambda value: type(value) is dict,
    "array": lambda value: type(value) is list,
}


def is_of_type(value: object, declared: object) -> bool:
    if isinstance(declared, str):
        return declared not in _IS or _IS[declared](value)
    names = type_names(declared)
    return not names or any(name not in _IS or _IS[name](value) for name in names)


def is_listed(value: object, schema: Schema) -> bool:
    if "const" in schema:
        return is_same(value, schema["const"])
    listed = schema.get("enum")
    return not isinstance(listed, list | tuple) or any(is_same(value, entry) for entry in listed)


def is_same(one: object, other: object) -> bool:
    """JSON's equality: true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
