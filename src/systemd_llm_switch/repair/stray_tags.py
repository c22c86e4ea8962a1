"""Finds tags of a call's own form in a value that was read: then its tags were not where they should be.

A document about the form may hold tags, in pairs or within its lines. A value that starts or ends with one alone, or
has an end tag alone at a line's end, is not what the model meant, so there is no call.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_TAG = re.compile(
    r"<(?P<end>/?+) ?+(?>(?:[｜|‖]{1,2}+DSML[｜|‖]{1,2}+ ?+|[a-z]{2,9}+:)?)(?>(?:(?!arg_)[a-z]{2,9}[_|:])?)"
    r"(?P<kind>param(?>(?:eter)?)|invoke|function|arg_key|arg_value)(?P<more>[=\s][^<>\n]{0,120}+)?(?>(?::opensource)?)>"
)
_OF_CALLS = ("invoke", "function")
_TOKENS = ("]<]minimax[>[", '<|"|>', "<escape>")
"""These stand around tags and strings, and never within one."""


def has_stray_tags(values: Iterable[object], own: str) -> bool:
    """Whether a string among the values starts or ends with a tag of the form that has no partner in it.

    `own` is what a start tag of the form has behind its name (`=`, or a space before `name=`).
    """
    return any(_is_stray(value, own) for value in values if isinstance(value, str) and "<" in value)


def _is_stray(value: str, own: str) -> bool:
    if any(token in value for token in _TOKENS):
        return True
    tags = [tag for tag in _TAG.finditer(value) if not (tag["more"] or "").endswith("/")]
    if not tags:
        return False
    first, last = tags[0], tags[-1]
    edges = [
        tag for tag in (first, last) if _is_edge(value, tag) and (tag["end"] or (tag["more"] or "").startswith(own))
    ]
    return any(_surplus(tags, tag["kind"]) != 0 for tag in edges) or _has_lone_end(value, tags)


def _is_edge(value: str, tag: re.Match[str]) -> bool:
    return not value[: tag.start()].strip() or not value[tag.end() :].strip()


def _has_lone_end(value: str, tags: list[re.Match[str]]) -> bool:
    """Whether an end tag without its start ends a line, as the tags of a call do: the next start tag was lost."""
    started: Counter[str] = Counter()
    for tag in tags:
        if tag["kind"] in _OF_CALLS:
            continue
        if not tag["end"]:
            started[tag["kind"]] += 1
        elif started[tag["kind"]]:
            started[tag["kind"]] -= 1
        elif value[tag.end() : tag.end() + 1] in ("", "\n", "\r"):
            return True
    return False


def _surplus(tags: list[re.Match[str]], kind: str) -> int:
    """How many more start tags than end tags of a kind there are."""
    return sum(-1 if tag["end"] else 1 for tag in tags if tag["kind"] == kind)
