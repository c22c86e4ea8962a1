"""Compiles JSON schemas, and checks whether values fit them.

A schema is compiled once, to a graph of `Node`s of bounded size, and then asked often. It covers what tool definitions
use: types, members, items, enums, unions, local references. What it does not know counts as fitting, and so does what
lies beyond the bounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from .budget import Budget
from .text import fold

Schema = Mapping[str, object]
"""A JSON schema as the client sent it; nothing about it has been checked."""

MAX_DEPTH = 60
_MAX_NODES = 2000
_MAX_NAMES = 2000
_MAX_LISTED = 2000
_MAX_REFERENCES = 16
_MAX_REFERENCE_LENGTH = 500
_CHECK_EVERY = 128
_MARKUP = re.compile(r"</?(?:longcat_)?(?:arg_key|arg_value|parameter|param)\b[^<>]{0,99}+>?+")
"""A tag of a call's form that a backend's parser left on a name."""


class Misfit(IntEnum):
    """How badly a value misses its schema."""

    NONE = 0
    VALUE = 1
    """A value of a wrong type or outside its enum, or a name that is not declared."""
    MISSING = 2
    """A required member is not there: to make it fit, its value would have to be invented."""


@dataclass(slots=True, eq=False)
class Node:
    """One compiled schema; a node without any constraint takes everything."""

    types: tuple[str, ...] = ()
    is_nullable: bool = False
    listed: tuple[object, ...] | None = None
    """The values of `enum` or `const`."""
    members: dict[str, Node] = field(default_factory=dict)
    folded: dict[str, list[str]] = field(default_factory=dict)
    """The declared names by their folded form."""
    required: tuple[str, ...] = ()
    unions: tuple[tuple[Node, ...], ...] = ()
    parts: tuple[Node, ...] = ()
    """The schemas of `allOf`."""
    items: Node | None = None
    extra: Node | None = None
    """The schema of members that are not declared."""
    takes_others: bool = False
    """The schema itself says that members may have other names."""
    forbids_others: bool = False
    names: frozenset[str] = frozenset()
    """For a root: the folded names of all members at any level."""

    def is_listed(self, value: object) -> bool:
        return self.listed is None or any(is_same(value, entry) for entry in self.listed)

    def is_of_type(self, value: object) -> bool:
        return not self.types or any(name not in _IS or _IS[name](value) for name in self.types)

    def meant_name(self, name: str, value: Mapping[str, object]) -> str | None:
        """The declared name, not used yet, that differs from this one only in case and separators, or in a tag."""
        spelled = fold(name)
        if spelled not in self.folded and "<" in name and not _MARKUP.search(str(value.get(name, ""))[:_MAX_NAMES]):
            spelled = fold(_MARKUP.sub("", name[:_MAX_NAMES]))
        matches = [known for known in self.folded.get(spelled, ()) if known not in value]
        return matches[0] if len(matches) == 1 else None


ANYTHING = Node()
_NOTHING = Node(listed=())
OBJECT = Node(types=("object",))


def compile_schema(root: Schema) -> Node:
    """The graph of a schema. Never raises, whatever the client sent."""
    compiler = _Compiler(root)
    node = compiler.node(root, 0)
    if node is ANYTHING:
        return node
    node.names = frozenset(compiler.names - {""})
    return node


class _Compiler:
    def __init__(self, root: Schema) -> None:
        self.root = root
        self.nodes: dict[int, Node] = {}
        self.names: set[str] = set()

    def node(self, declared: object, depth: int) -> Node:
        schema = self.resolve(declared)
        if schema is None:
            return _NOTHING
        if not schema:
            return ANYTHING
        if (known := self.nodes.get(id(schema))) is not None:
            return known
        if depth > MAX_DEPTH or len(self.nodes) >= _MAX_NODES:
            return ANYTHING
        node = self.nodes[id(schema)] = Node()
        self.fill(node, schema, depth)
        return node

    def fill(self, node: Node, schema: Schema, depth: int) -> None:
        node.types = _type_names(schema.get("type"))
        node.is_nullable = schema.get("nullable") is True
        node.listed = _listed(schema)
        node.required = tuple(_strings(schema.get("required")))
        for name, part in _members(schema):
            node.members[name] = self.node(part, depth + 1)
            folded = fold(name)
            node.folded.setdefault(folded, []).append(name)
            if len(self.names) < _MAX_NAMES:
                self.names.add(folded)
        node.folded.pop("", None)
        unions = (self.all_of(schema.get(keyword), depth) for keyword in ("anyOf", "oneOf"))
        node.unions = tuple(filter(None, unions))
        node.parts = self.all_of(schema.get("allOf"), depth)
        if "items" in schema:
            node.items = self.node(schema["items"], depth + 1)
        extra = schema.get("additionalProperties")
        node.extra = self.node(extra, depth + 1) if isinstance(extra, Mapping) else None
        has_unknown = "patternProperties" in schema or (bool(schema.get("properties")) and not node.members)
        node.takes_others = extra not in (None, False) or has_unknown
        node.forbids_others = extra is False and not has_unknown

    def all_of(self, declared: object, depth: int) -> tuple[Node, ...]:
        if not isinstance(declared, list) or len(declared) > _MAX_LISTED:
            return ()
        return tuple(self.node(part, depth + 1) for part in declared)

    def resolve(self, declared: object) -> Schema | None:
        """The schema that a `$ref` within this document stands for; None if nothing may fit."""
        for _ in range(_MAX_REFERENCES):
            if not isinstance(declared, Mapping):
                return None if declared is False else {}
            reference = declared.get("$ref")
            if not isinstance(reference, str):
                return declared
            declared = self.look_up(reference)
        return {}

    def look_up(self, reference: str) -> object:
        if not reference.startswith("#") or len(reference) > _MAX_REFERENCE_LENGTH:
            return {}
        part: object = self.root
        for step in filter(None, reference[1:].split("/")):
            if not isinstance(part, Mapping):
                return {}
            part = part.get(step.replace("~1", "/").replace("~0", "~"), {})
        return part


def _members(schema: Schema) -> list[tuple[str, object]]:
    found = schema.get("properties")
    if not isinstance(found, Mapping) or len(found) > _MAX_NAMES:
        return []
    return list(found.items())


def _strings(declared: object) -> list[str]:
    return [name for name in declared[:_MAX_NAMES] if isinstance(name, str)] if isinstance(declared, list) else []


def _type_names(declared: object) -> tuple[str, ...]:
    return (declared,) if isinstance(declared, str) else tuple(_strings(declared)[:16])


def _listed(schema: Schema) -> tuple[object, ...] | None:
    if "const" in schema:
        return (schema["const"],)
    declared = schema.get("enum")
    if not isinstance(declared, list | tuple) or len(declared) > _MAX_LISTED:
        return None
    return tuple(declared)


class Judge:
    """Answers how well values fit. Each pair of a value and a node is judged once, so recursion cannot explode."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._steps = 0
        self._known: dict[tuple[int, int], tuple[object, Misfit]] = {}

    def step(self) -> None:
        """Count a piece of work. Raises BudgetSpent."""
        self._steps += 1
        if self._steps % _CHECK_EVERY == 0:
            self._budget.check()

    def fits(self, value: object, node: Node, depth: int = 0) -> bool:
        return self.misfit(value, node, depth) is Misfit.NONE

    def misfit(self, value: object, node: Node, depth: int = 0) -> Misfit:
        if node is ANYTHING or depth > MAX_DEPTH or (value is None and node.is_nullable):
            return Misfit.NONE
        key = (id(value), id(node))
        if (known := self._known.get(key)) is not None:
            return known[1]
        self.step()
        self._known[key] = (value, Misfit.NONE)  # the value is kept, so that no other one gets its id
        result = self._judged(value, node, depth)
        self._known[key] = (value, result)
        return result

    def _judged(self, value: object, node: Node, depth: int) -> Misfit:
        if not node.is_of_type(value) or not node.is_listed(value):
            return Misfit.VALUE
        worst = self._union_misfit(value, node, depth)
        if type(value) is dict:
            return max(worst, self._object_misfit(value, node, depth))
        if type(value) is list and node.items is not None:
            return max((self.misfit(item, node.items, depth + 1) for item in value), default=worst)
        return worst

    def _union_misfit(self, value: object, node: Node, depth: int) -> Misfit:
        worst = Misfit.NONE
        for branches in node.unions:
            worst = max(worst, min(self.misfit(value, branch, depth + 1) for branch in branches))
        for part in node.parts:
            worst = max(worst, self.misfit(value, part, depth + 1))
        return worst

    def _object_misfit(self, value: dict[str, object], node: Node, depth: int) -> Misfit:
        if any(name not in value for name in node.required):
            return Misfit.MISSING
        worst = Misfit.NONE
        for name, part in value.items():
            self.step()
            if name in node.members:
                worst = max(worst, self.misfit(part, node.members[name], depth + 1))
            elif node.extra is not None:
                worst = max(worst, self.misfit(part, node.extra, depth + 1))
            elif not node.takes_others and (node.forbids_others or node.meant_name(name, value)):
                worst = max(worst, Misfit.VALUE)
        return worst


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


def is_of_type(value: object, name: str) -> bool:
    return name not in _IS or _IS[name](value)


def is_same(one: object, other: object) -> bool:
    """JSON's equality: true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
