"""How much of a text that is still being written is surely no part of a leaked tool call. See `rescue`."""

from __future__ import annotations

import re

from .leaks import MARKER, THOUGHTS_END

_LONE_STARTS = ("{", "[", "```", "~~~")
_PARTIAL_MARK = re.compile(r"(?:<[^<>\n]{0,24}|\[[A-Z_]{0,11}|`{1,2})\Z")
_CALL_IN_FENCE = re.compile(r"[^\n]*(?:\n\s*(?:[{\[<]|\Z)|\Z)")
_LIST_OF_CALLS = re.compile(r"\[\s*(?:[{/#]|\Z)")
_FENCE_IS_OVER = re.compile(r"\n(?:```|~~~)[^\n]*\n\s*\S")


def call_may_start_at(text: str, *, is_start: bool) -> int:
    """The index from which `text` must be held back; its length where all of it may go on.

    `is_start` says that nothing of the answer was passed on before, but thoughts at most: only then can the whole
    answer be one call. Space at the end is held too, since a call takes the space before it along.
    """
    body = text.lstrip()
    if is_start and (not body or _may_be_lone(body)):
        return 0
    marker = MARKER.search(text) or _PARTIAL_MARK.search(text)
    end = len(text[: marker.start()].rstrip() if marker else text.rstrip())
    thoughts, found, answer = text[:end].partition(THOUGHTS_END)
    if found and _may_be_lone(answer.lstrip()):
        return len(thoughts) + len(found)
    return end


def _may_be_lone(body: str) -> bool:
    """Whether the answer may still turn out to be nothing but one call, in a fence or not."""
    if any(start.startswith(body) for start in _LONE_STARTS):
        return True
    if body.startswith(("```", "~~~")):
        return _CALL_IN_FENCE.match(body) is not None and not _FENCE_IS_OVER.search(body)
    return body.startswith("{") or _LIST_OF_CALLS.match(body) is not None
