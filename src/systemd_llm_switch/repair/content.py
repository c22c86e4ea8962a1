"""Content of which the client demanded that it be JSON; any other content is nobody's business here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from .coercion import coerce, not_known
from .lenient import Reading, best_reading
from .model import Repair, RequestFacts, Schema
from .schema import Misfit, declared_names, misfit
from .second_opinion import second_opinion
from .strings import Exhausted, Unreadable
from .text import decode, decode_start, encode

_OBJECT: Schema = {"type": "object"}
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_TAIL = re.compile(r"\s*(?:```|\Z|\n[^{}\[\]\"]*\Z)")
_MAX_CANDIDATES = 6


def repair_content(content: str, facts: RequestFacts) -> tuple[str, tuple[Repair, ...]]:
    """JSON content made valid, guided by the client's schema; the identical string if it is sound, or past repair.

    Fences and prose around the JSON go. A text that was cut is closed, as nobody runs it and `finish_reason` tells; but
    a required member is never invented. Never raises.
    """
    if not facts.wants_json or not content or content.isspace():
        return content, ()
    schema = facts.json_schema or _OBJECT
    try:
        value = decode(content)
        if misfit(value, schema) is Misfit.NONE:
            return content, ()
    except (ValueError, RecursionError):
        return _extracted(content, schema)
    coerced, changed = coerce(value, schema, not_known)
    if changed and misfit(coerced, schema) is Misfit.NONE:
        return encode(coerced), (Repair("json_content"),)
    return content, (Repair("unfit_content"),)


def _extracted(content: str, schema: Schema) -> tuple[str, tuple[Repair, ...]]:
    for candidate in islice(_candidates(content), _MAX_CANDIDATES):
        try:
            return _mended(candidate.strip(), schema), (Repair("json_content"),)
        except Exhausted:
            break
        except (ValueError, RecursionError):
            continue
    return content, (Repair("unrepairable_content"),)


def _candidates(content: str) -> Iterator[str]:
    """What may be the JSON in a text, the likeliest first."""
    answer = content.rpartition("</think>")[2]
    yield answer
    for fence in _FENCE.finditer(answer):
        yield fence[1]
    for start in sorted({answer.find("{"), answer.find("[")} - {-1}):
        yield answer[start:]


def _mended(text: str, schema: Schema) -> str:
    """The JSON that a text starts with, as it was written if it is valid. Raises ValueError or RecursionError."""
    if not text.startswith(("{", "[")):
        raise Unreadable("neither an object nor a list")
    try:
        value, end = decode_start(text)
    except ValueError:
        return _read(text, schema)
    coerced, changed = coerce(value, schema, not_known)
    if misfit(coerced, schema) is not Misfit.NONE:
        raise Unreadable("another value than the client wants")
    return encode(coerced) if changed else text[:end]


def _read(text: str, schema: Schema) -> str:
    try:
        reading = best_reading(text, 0, declared_names([schema]), _TAIL)
    except Unreadable:
        value = second_opinion(text)
        if value is None or misfit(value, schema) is not Misfit.NONE:
            raise
        return encode(value)
    return _checked(reading, schema)


def _checked(reading: Reading, schema: Schema) -> str:
    value, _ = coerce(reading.value, schema, reading.source)
    if misfit(value, schema) is not Misfit.NONE or reading.has_not_a_number:
        raise Unreadable("nothing that fits")
    if schema is _OBJECT and reading.has_words:
        raise Unreadable("words that no schema asks for")
    return encode(value)
