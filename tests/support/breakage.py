"""Random schemas with arguments that fit them, and the known ways in which models break such arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]
NAMES = ("path", "content", "start_line", "isDryRun", "max-count", "filter", "Tags", "x1", "größe", "command")
TAME = st.text(alphabet=st.sampled_from("abcxyzÄß東 .-_/0123456789"), min_size=1, max_size=12)
WILD = st.text(
    alphabet=st.characters(exclude_categories=("Cs", "Cc", "Co", "Cn")) | st.sampled_from("\n\t\"'\\{}[],:/#`<>")
)
_ROLES = st.sampled_from(["required", "given", "left out"])
_ENUM = ["celsius", "dark_blue"]


@dataclass(frozen=True)
class Sample:
    """Arguments that fit a tool's schema."""

    schema: Json
    value: Json


@dataclass(frozen=True)
class Style:
    """How a value is written; JSON by default."""

    quote: str = '"'
    literals: tuple[str, str, str] = ("true", "false", "null")
    comma_at_end: str = ""
    comment: str = ""
    raw_newlines: bool = False

    def text(self, value: object) -> str:
        if value is None or isinstance(value, bool):
            return self.literals[2 if value is None else int(not value)]
        if isinstance(value, str):
            return self.string(value)
        if isinstance(value, dict):
            parts = [f"{self.string(name)}: {self.text(part)}" for name, part in value.items()]
            return f"{{{self.joined(parts)}}}"
        if isinstance(value, list):
            return f"[{self.joined([self.text(item) for item in value])}]"
        return json.dumps(value)

    def joined(self, parts: list[str]) -> str:
        return f",{self.comment} ".join(parts) + (self.comma_at_end if parts else "") + (self.comment if parts else "")

    def string(self, value: str) -> str:
        inside = json.dumps(value, ensure_ascii=False)[1:-1]
        if self.quote == "'":
            inside = inside.replace('\\"', '"').replace("'", "\\'")
        if self.raw_newlines:
            inside = re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[0]), inside)
        return f"{self.quote}{inside}{self.quote}"


STYLES = st.builds(
    Style,
    quote=st.sampled_from("\"'"),
    literals=st.sampled_from([("true", "false", "null"), ("True", "False", "None")]),
    comma_at_end=st.sampled_from(["", ","]),
    comment=st.sampled_from(["", " // of it\n", "  # of it\n", " /* of it */", "\n\n"]),
    raw_newlines=st.booleans(),
)


def samples(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Sample]:
    """Objects of any depth with a schema for each; `texts` are the strings in them."""
    return _typed(_object(_parts(texts)))


# -- schemas and values ------------------------------------------------------------------------------------

_Pair = tuple[Json, Any]
# Each strategy is built once: to build one for every value took most of the tests' time.


def _parts(texts: st.SearchStrategy[str]) -> st.SearchStrategy[_Pair]:
    return st.recursive(_scalars(texts), lambda inner: _object(inner) | _array(inner), max_leaves=8)


def _scalars(texts: st.SearchStrategy[str]) -> st.SearchStrategy[_Pair]:
    return st.one_of(
        st.tuples(st.just({"type": "string"}), texts),
        st.tuples(st.just({"type": "integer"}), st.integers(-(2**53), 2**53)),
        st.tuples(st.just({"type": "number"}), st.floats(allow_nan=False, allow_infinity=False, width=32)),
        st.tuples(st.just({"type": "boolean"}), st.booleans()),
        st.tuples(st.just({"type": ["integer", "null"]}), st.none() | st.integers(0, 9)),
        st.tuples(st.just({"type": "string", "enum": _ENUM}), st.sampled_from(_ENUM)),
    )


def _object(inner: st.SearchStrategy[_Pair]) -> st.SearchStrategy[_Pair]:
    members = st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=4)
    return st.builds(_object_of, members, st.tuples(*[_ROLES] * 4), st.booleans())


def _object_of(members: dict[str, _Pair], roles: tuple[str, ...], is_closed: bool) -> _Pair:
    """At least one member is given."""
    role_of = dict(zip(members, roles, strict=False))
    given = [name for name in members if role_of[name] != "left out"] or [next(iter(members))]
    schema: Json = {
        "type": "object",
        "properties": {name: part for name, (part, _) in members.items()},
        "required": sorted(name for name in given if role_of[name] == "required"),
    }
    if is_closed:
        schema["additionalProperties"] = False
    return schema, {name: members[name][1] for name in given}


def _array(inner: st.SearchStrategy[_Pair]) -> st.SearchStrategy[_Pair]:
    return st.builds(_array_of, inner, st.integers(0, 2))


def _array_of(item: _Pair, length: int) -> _Pair:
    schema, value = item
    return {"type": "array", "items": schema}, [value] * length


def _typed(pairs: st.SearchStrategy[_Pair]) -> st.SearchStrategy[Sample]:
    return pairs.map(lambda pair: Sample(*pair))


# -- ways to break -----------------------------------------------------------------------------------------


def _without_closers(text: str) -> str:
    return text.rstrip("}] ")


def _in_another_case(sample: Sample) -> str:
    return json.dumps(_renamed(sample.value), ensure_ascii=False)


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name.swapcase().replace("_", "-"): _renamed(part) for name, part in value.items()}
    return [_renamed(item) for item in value] if isinstance(value, list) else value


def _of_wrong_types(sample: Sample) -> str:
    return json.dumps(_retyped(sample.value, sample.schema, is_root=True), ensure_ascii=False)


def _retyped(value: Any, schema: Json, is_root: bool = False) -> Any:
    """Each part in a type that leaves no doubt what was meant."""
    if isinstance(value, dict):
        parts = {name: _retyped(part, schema["properties"][name]) for name, part in value.items()}
        return parts if is_root else json.dumps(parts)
    if isinstance(value, list):
        items = [_retyped(item, schema["items"]) for item in value]
        is_plain = len(items) == 1 and not isinstance(value[0], str | list) and value[0] is not None
        return items[0] if is_plain else json.dumps(items)
    if value is None or isinstance(value, str):
        return value
    return str(value) if isinstance(value, bool) else json.dumps(value)


BREAKAGES: dict[str, Callable[[Sample], str]] = {
    "trailing commas": lambda it: Style(comma_at_end=",").text(it.value),
    "single quotes": lambda it: Style(quote="'").text(it.value),
    "Python literals": lambda it: Style(literals=("True", "False", "None")).text(it.value),
    "Python": lambda it: Style(quote="'", literals=("True", "False", "None"), comma_at_end=",").text(it.value),
    "line comments": lambda it: Style(comment=" // of it\n").text(it.value),
    "hash comments": lambda it: Style(comment="  # of it\n").text(it.value),
    "block comments": lambda it: Style(comment=" /* of it */").text(it.value),
    "raw newlines": lambda it: Style(raw_newlines=True).text(it.value),
    "missing closers": lambda it: _without_closers(json.dumps(it.value)),
    "missing last brace": lambda it: json.dumps(it.value, indent=2).removesuffix("}"),
    "one brace too many": lambda it: json.dumps(it.value) + "}",
    "fence": lambda it: f"```json\n{json.dumps(it.value)}\n```",
    "marks": lambda it: f"<tool_call>{json.dumps(it.value)}</tool_call><|im_end|>",
    "words behind": lambda it: f"{json.dumps(it.value)}\nThat is the call.",
    "encoded twice": lambda it: json.dumps(json.dumps(it.value)),
    "encoded twice, then broken": lambda it: json.dumps(Style(comma_at_end=",").text(it.value)),
    "wrong types": _of_wrong_types,
    "names in another case": _in_another_case,
}
"""Each loses nothing: what was meant can be told from the text and the schema."""
