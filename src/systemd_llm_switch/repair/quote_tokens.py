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
_KEY = r"\s*+[\"']?[\w-]{1,80}+[\"']?\s*+[:=]\s*+"
_STARTED_PLAIN = re.compile(
    rf"(?P<before>.*?[{{,(]{_KEY})(?P<value>(?!(?:-?[\d.]++|[Tt]rue|[Ff]alse|null|None)\s*+,|[\[{{\"'])\S.*)\Z", re.S
)
"""A member whose string has lost the token that opens it."""
_LAST_KEY = re.compile(rf",{_KEY}\Z")
_LONGEST_KEY = 100
_BEHIND_STRING = re.compile(r"\s*+(?:[,}\])]|\Z)")
_EQUALS = re.compile(r"(\"(?>(?:[^\"\\]|\\.)*)\"|'(?>(?:[^'\\]|\\.)*)')|(?<=[{,(])(\s*+[\w-]{1,80}+\s*+)=(?!=)", re.S)


def as_json(text: str, *, is_whole: bool = True) -> tuple[str, bool]:
    """The text with its strings as JSON's, and whether it ends within a string.

    A token may close a string that a plain quote opened. `is_whole` says that nothing was cut: then brackets that the
    last string ends with are the object's, if its closing token is missing.
    """
    *parts, last = QUOTE_TOKEN.split(text)
    written: list[str] = []
    outside: list[str] = []
    is_inside = False
    for part, following in zip(parts, [*parts, last][1:], strict=True):
        if not part.strip() and (outside if not is_inside else not _BEHIND_STRING.match(following)):
            continue  # the token is doubled
        if is_inside:
            key = None if _BEHIND_STRING.match(following) else _LAST_KEY.search(part, max(0, len(part) - _LONGEST_KEY))
            written += [encode(part[: key.start()]), key[0]] if key else [encode(part)]
            outside.append(key[0] if key else "")
            is_inside = key is not None
            continue
        before, value = _opened_in(part)
        outside.append(before)
        written.append(_with_colons(before))
        if value is None:
            is_inside = True
        else:
            written.append(encode(value))
    if not is_inside:
        return "".join([*written, _with_colons(last)]), False
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


def _opened_in(part: str) -> tuple[str, str | None]:
    """What comes before a string that ends at the part's end, and the string; None if it only starts there.

    A plain quote opened the string, or nothing did.
    """
    at = max(part.rfind("'"), part.rfind('"'))
    if at >= 0 and part[:at].rstrip().endswith(_BEFORE_VALUES):
        return part[:at], part[at + 1 :]
    if not part.rstrip().endswith((*_BEFORE_VALUES, "=")) and (plain := _STARTED_PLAIN.match(part)):
        return plain["before"], plain["value"]
    return part, None


def _with_colons(part: str) -> str:
    """The text outside of tokens with `p=` written as `p:`."""
    if "=" not in part:
        return part
    return _EQUALS.sub(lambda found: found[1] or f"{found[2]}:", part)


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
