"""Finds where code, quotations and thoughts in a text end: what stands in them is shown, not meant.

Owns the marks around them: Markdown's fences and ticks, HTML's elements and comments, `<think>`, triple quotes.
"""

from __future__ import annotations

import re

from .thoughts import THOUGHTS_END, THOUGHTS_START

STARTS = (
    r"(?:(?<=\n)|\A) {0,3}(?P<fence>`{3,}+|~{3,}+)|(?P<ticks>`++)|(?:(?<=\n)|\A)(?P<quotes>\"\"\"|''')(?=\n)"
    r"|<(?P<element>pre|code|samp|kbd|q|blockquote|textarea|xmp|details)\b[^<>\n]{0,200}+>|(?P<comment><!--)|<think>"
)
"""A pattern of all that starts one; `end_of` takes its match."""
_MAX_TICKS = 99
_MAX_COMMENT = 20_000


def is_start(place: re.Match[str]) -> bool:
    return place.lastgroup is not None or place[0] == THOUGHTS_START


def end_of(text: str, place: re.Match[str]) -> int:
    """Where what starts here ends."""
    if place[0] == THOUGHTS_START:
        end = text.find(THOUGHTS_END, place.end())
        return end + len(THOUGHTS_END) if end >= 0 else len(text)
    if place["element"]:
        return _element_end(text, place)
    if place["comment"]:
        end = text.find("-->", place.end(), place.end() + _MAX_COMMENT)
        return end + 3 if end >= 0 else place.end()
    if place["quotes"]:
        end = text.find(f"\n{place['quotes']}", place.end())
        return end + 4 if end >= 0 else place.end()
    return _code_end(text, place)


def _element_end(text: str, place: re.Match[str]) -> int:
    """Behind the end tag of an element. Without one, or with another start tag before it, the tag is only a word."""
    tag = re.compile(rf"<(/?){place['element']}\b[^<>\n]{{0,200}}+>").search(text, place.end())
    return tag.end() if tag and tag[1] else place.end()


def _code_end(text: str, place: re.Match[str]) -> int:
    """Where the code that starts here ends: a fence at one of its kind that is as long, one or two ticks on their line,
    and three within a line, as models write them, at the next three."""
    mark = place["fence"] or place["ticks"]
    if len(mark) > _MAX_TICKS:
        return len(text)
    if len(mark) < 3:
        end = text.find(mark, place.end())
        is_on_line = end >= 0 and text.find("\n", place.end(), end) < 0
        return end + len(mark) if is_on_line else place.end()
    if place["fence"]:
        closing = re.compile(rf"\n {{0,3}}{mark}{mark[0]}*[ \t]*(?=\n|\Z)").search(text, place.end())
    else:
        closing = re.compile(mark).search(text, place.end())
    return closing.end() if closing else len(text)
