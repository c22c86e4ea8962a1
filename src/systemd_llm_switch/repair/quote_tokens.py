"""Turns strings between tokens into strings of JSON.

Gemma 4 writes `<|"|>text<|"|>`, FunctionGemma `<escape>text<escape>`.
"""

from __future__ import annotations

import re

from .strings import CLOSER_OF
from .text import encode

_PART = re.compile(
    r'<\|"\|>.*?<\|"\|>|<escape>.*?<escape>|"(?>(?:[^"\\]|\\.)*)"|[\[\](){}"]|<(?:\|"\|>|escape>)|[^\[\](){}"<]++|<',
    re.S,
)
QUOTE_TOKEN = re.compile(r'<\|"\|>|<escape>')
_BEFORE_VALUES = (":", "[", ",", "(", "{")


def as_json(text: str, *, is_whole: bool = True) -> tuple[str, bool]:
    """The text with its strings as JSON's, and whether it ends within a string.

    A token may close a string that a plain quote opened. `is_whole` says that nothing was cut: then brackets that the
    last string ends with are the object's, if its closing token is missing.
    """
    *parts, last = QUOTE_TOKEN.split(text)
    written: list[str] = []
    outside: list[str] = []
    is_inside = False
    for part in parts:
        if is_inside:
            written.append(encode(part))
            is_inside = False
            continue
        opened = _opened_at(part)
        outside.append(part[:opened])
        written.append(part[:opened])
        if opened < len(part):
            written.append(encode(part[opened + 1 :]))
        else:
            is_inside = True
    if not is_inside:
        return "".join([*written, last]), False
    closers = _closers_of("".join(outside))
    if is_whole and closers and _without_space(last[-2 * len(closers) - 8 :]).endswith(closers):
        end = _end_before(last, closers)
        return "".join([*written, encode(last[:end]), closers]), False
    return "".join([*written, encode(last)]), True


def end_of_object(text: str, start: int) -> int:
    """Behind the bracket that closes the one here; -1 if a string or a bracket is not closed."""
    depth, at = 0, start
    while part := _PART.match(text, at):
        if part[0] == '"' or QUOTE_TOKEN.fullmatch(part[0]):
            return -1
        depth += (part[0] in CLOSER_OF or part[0] == "(") - (part[0] in ("]", "}", ")"))
        at = part.end()
        if depth == 0:
            return at
    return -1


def _opened_at(part: str) -> int:
    """Where a plain quote opens a string that goes on to the part's end; the part's length if none does."""
    at = max(part.rfind("'"), part.rfind('"'))
    return at if at >= 0 and part[:at].rstrip().endswith(_BEFORE_VALUES) else len(part)


def _closers_of(outside: str) -> str:
    """The brackets that close what is open behind this text, innermost first."""
    stack: list[str] = []
    for char in outside:
        if char in CLOSER_OF:
            stack.append(CLOSER_OF[char])
        elif stack and char == stack[-1]:
            stack.pop()
    return "".join(reversed(stack))


def _without_space(text: str) -> str:
    return "".join(text.split())


def _end_before(text: str, closers: str) -> int:
    """Where the text ends without these brackets, and the space between them."""
    end = len(text)
    for closer in reversed(closers):
        end = len(text[:end].rstrip().removesuffix(closer))
    return end
