"""Content of which the client demanded that it be JSON; any other content is nobody's business here."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .lenient import Reading, Unreadable, read
from .model import Repair, RequestFacts, Schema
from .schema import Misfit, coerce, declared_names, misfit
from .text import decode, encode

_FENCE = re.compile(r"```[\w+-]*[ \t]*\r?\n(.*?)(?:\r?\n[ \t]*```|\Z)", re.DOTALL)
_TAIL = re.compile(r"\s*(?:```|\Z)")
_THOUGHT_END = "</think>"


def repair_content(content: str, facts: RequestFacts) -> tuple[str, tuple[Repair, ...]]:
    """JSON content made valid, guided by the client's schema; the identical string if it is sound, or past repair.

    Fences and prose around the JSON go. A text that was cut is closed (its reader sees by `finish_reason` that it was
    cut), but a required member is never invented. Never raises.
    """
    if not facts.wants_json or not content or content.isspace():
        return content, ()
    schema = facts.json_schema
    try:
        value = decode(content)
    except (ValueError, RecursionError):
        return _extracted(content, schema)
    if _is_wanted(value, schema):
        return content, ()
    try:
        coerced, changed = coerce(value, schema or {}, _unknown)
        if changed and misfit(coerced, schema or {}) is Misfit.NONE:
            return encode(coerced), (Repair("json_content"),)
    except (ValueError, RecursionError):
        pass
    return content, (Repair("unfit_content"),)


def _extracted(content: str, schema: Schema | None) -> tuple[str, tuple[Repair, ...]]:
    for part in _candidates(content):
        try:
            text = _mended(part, schema)
        except (ValueError, RecursionError):
            continue
        return text, (Repair("json_content"),)
    return content, (Repair("unrepairable_content"),)


def _candidates(content: str) -> Iterator[str]:
    """What may be the JSON in a text, the likeliest first."""
    answer = content.rpartition(_THOUGHT_END)[2]
    yield from (match[1] for match in _FENCE.finditer(answer))
    starts = [at for at in (answer.find("{"), answer.find("[")) if at >= 0]
    if starts:
        yield answer[min(starts) :]
    if len(starts) == 2:
        yield answer[answer.find("{") :]


def _mended(text: str, schema: Schema | None) -> str:
    """The JSON that a text starts with; as it was written if it is valid. Raises ValueError or RecursionError."""
    text = text.strip()
    try:
        value, is_valid, source = decode(text), True, _unknown
    except ValueError:
        reading = _read(text, schema)
        value, is_valid, source = reading.value, False, reading.source
    if type(value) is not dict and schema is None:
        raise Unreadable("no object")
    coerced, changed = (value, frozenset()) if schema is None else coerce(value, schema, source)
    if schema is not None and misfit(coerced, schema) is Misfit.MISSING:
        raise Unreadable("a required member is missing")
    return text if is_valid and not changed else encode(coerced)


def _read(text: str, schema: Schema | None) -> Reading:
    names = declared_names(schema) if schema else frozenset()
    reading = read(text, names=names, tail=_TAIL)
    if reading.has_words and (schema is None or misfit(reading.value, schema) is not Misfit.NONE):
        raise Unreadable("strings without quotes")
    if not isinstance(reading.value, dict | list):
        raise Unreadable("neither an object nor a list")
    return reading


def _is_wanted(value: object, schema: Schema | None) -> bool:
    return type(value) is dict if schema is None else misfit(value, schema) is Misfit.NONE


def _unknown(value: object) -> str | None:
    return None
