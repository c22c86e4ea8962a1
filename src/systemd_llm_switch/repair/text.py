"""JSON text in and out, as strict as the strictest client: no NaN, no infinity, nothing that UTF-8 cannot carry."""

from __future__ import annotations

import json
import re
from typing import Any

from systemd_llm_switch.openai.decoder import Decoder
from systemd_llm_switch.openai.json_cost import bounded_int, has_too_many_values

MOST_VALUES = 100_000
"""Of arguments, or of content that is JSON: far more than a model writes."""
_NOT_IN_NAMES = re.compile(r"[\W_]+")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_RULES: dict[str, Any] = {"parse_constant": _refuse_constant, "parse_int": bounded_int}
_STRICT = json.JSONDecoder(**_RULES)
_OF_BODIES = Decoder(**_RULES)


def decode(text: str) -> Any:
    """The value of a strictly valid JSON text. Python parses it in one go, and no other thread runs meanwhile.

    Raises ValueError where the text is not valid JSON or holds too many values, and RecursionError where it is nested
    too deeply to tell.
    """
    if len(text) > MOST_VALUES and has_too_many_values(text.encode(errors="replace"), MOST_VALUES):
        raise ValueError(f"it holds more than {MOST_VALUES} values")
    return _STRICT.decode(text)


def decode_body(raw: bytes, most_values: int) -> Any:
    """The same for a body in UTF-8 that may hold more values.

    Raises TooLarge, too.
    """
    return _OF_BODIES.decode(raw, most_values)


def decode_start(text: str, at: int = 0) -> tuple[Any, int]:
    """The value that a text has at this place, and where it ends; raises as `decode` does."""
    return _STRICT.raw_decode(text, at)


def encode(value: object) -> str:
    """The compact JSON text of a value; non-ASCII stays readable unless UTF-8 could not carry it.

    Raises ValueError for numbers that JSON has not, RecursionError for values nested too deeply.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if text.isascii() or is_encodable(text):
        return text
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def fold(name: str) -> str:
    """A name without case and separators: `filePath`, `file_path` and `File-Path` are the same to a model."""
    return _NOT_IN_NAMES.sub("", name).casefold()


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can carry a text: half of a surrogate pair it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
