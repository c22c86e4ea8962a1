"""How much of a text that is still being written is certainly not part of a leaked tool call. See `rescue`.

It uses the rows of `forms`: what may start a call there is held back here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from .form_reader import BEFORE_CALLS, LIST_OF_CALLS, NAMESPACES, element_marker, name_start
from .forms import BEHIND_NAMES, MARK, OPENS, TURN_START, TURN_STARTS
from .thoughts import THOUGHTS_END, is_end_unsettled, is_thoughts_start, may_be_thoughts, split_thoughts

_LONE_STARTS = ("{", "[", "```", "~~~")
_CALL_IN_FENCE = re.compile(r"[^\n]*+(?:\n\s*+(?:[{\[<]|\Z)|\Z)")
_FENCE_IS_OVER = re.compile(r"\n(?:```|~~~)[^\n]*+\n\s*+\S")
_BARE_STARTS = (
    *(
        f"{role}{channel}{space}to=functions."
        for role in ("assistant", "")
        for channel in ("commentary", "analysis")
        for space in (" ", "", "  ", "   ")
    ),
    "to=functions.",
    "assistant to=functions.",
    "functools[",
    "```tool_code",
    "call:",
    "Action:",
    "**Action:**",
    "<|open|>call tool=",
)
_PARTIAL_TAG = re.compile(
    r"(?>(?:\]<\]minimax\[>\[)?)<(?:/?+ ?+(?:[|｜‖][^\s<>]{0,60}+(?> [a-z_]{0,20}+)?|[\w:|-]{0,40}+)\s{0,9}+"
    r"(?>(?:n(?:a(?:m(?:e)?)?)?)?)|`{1,2})\Z"
)
_PARTIAL_WORD = re.compile(
    r"functools\s{1,9}\Z|(?:(?:assistant )?to=)?functions\.\Z|call:[\w.:-]{0,99}+\s{0,3}+\Z"
    r"|\*{0,2}Action:[^\n]{0,110}+(?>(?:\n[^\n]{0,30}+)?)\Z|(?:(?<=\n)|\A)>{1,3}[\w.-]{0,99}+\s{0,9}+\Z"
    r"|\[[\w.-]{1,99}+\]\s{0,3}+\Z|<name>[\w.:-]{0,99}+\s{0,3}+(?>(?:</?[a-z]{0,9}+)?)\Z"
)
_PARTIAL_OBJECT = re.compile(
    r'\{\s{0,9}(?>(?:"(?>(?:n(?:a(?:m(?:e(?:"(?:\s{0,9}(?::(?:\s{0,9}(?:"[\w.:/-]{0,99})?)?)?)?)?)?)?)?)?))?)\Z'
)
_LAST_WORD = re.compile(
    r"(?<![\w./:-])(?>(?:functions\.)?)(?P<name>[\w./-]{1,99}+)(?>(?::\d{0,4}+)?)\s{0,3}+(?:[<\[][^\s<>\]]{0,40}+)?\Z"
)
_FIRST_WORD = re.compile(
    r"(?>(?:functions\.)?)(?P<name>[\w.-]{1,99}+)(?>(?::\d{0,4}+)?)(?:\Z|\s*+(?:\{|\Z)|\([^\n]*+(?:\s*+\Z|(?<=\|>)))"
)
_LONGEST = 120


@lru_cache(maxsize=32)
def _marks(tools: frozenset[str]) -> re.Pattern[str]:
    elements = element_marker(tools)
    parts = [MARK, *map(re.escape, sorted(BEFORE_CALLS)), *([elements.pattern] if elements else [])]
    return re.compile("|".join(parts))


@lru_cache(maxsize=32)
def _beginnings(tools: frozenset[str]) -> frozenset[str]:
    """Everything that a text may end with and that may go on as a mark."""
    tags = (
        "<function=",
        "<invoke=",
        "<invoke name=",
        "]<]minimax[>[<invoke name=",
        "<function name=",
        "<tool_call=",
        "<tool_call name=",
        "<｜DSML｜invoke name=",
        "<|DSML|invoke name=",
        "<invoke name=",
    )
    marks = (
        THOUGHTS_END,
        *OPENS,
        *BEFORE_CALLS,
        *_BARE_STARTS,
        *tags,
        *(f"{opening}{tool}{closing}" for tool in tools if len(tool) < 100 for opening, closing in ("<>", "[]")),
    )
    return frozenset(mark[:length] for mark in marks for length in range(1, len(mark)))


@lru_cache(maxsize=32)
def _name_beginnings(tools: frozenset[str]) -> frozenset[str]:
    """All that the name of a tool, or of its namespace, begins with: a token behind it may make it a call."""
    names = (*NAMESPACES, "function", *(tool for tool in tools if len(tool) < 100))
    return frozenset(name[:length] for name in names for length in range(1, len(name) + 1))


class Holding:
    """Decides for one choice of a live reply; `holds_rest` becomes true where all that follows is held."""

    __slots__ = ("_checked", "_tools", "holds_rest")

    def __init__(self, tools: Collection[str]) -> None:
        self._tools = frozenset(tools)
        self._checked = 0
        self.holds_rest = False

    def free_end(self, text: str, *, is_start: bool) -> int:
        """The index from which `text` must be held back; its length where all of it may go on.

        `text` is all that was not passed on yet. `is_start` says that nothing of the answer was passed on before, but
        thoughts at most: only then can the whole answer be one call. Space at the end is held too, since a call takes
        the space before it along.
        """
        if self.holds_rest:
            return 0
        body = text[TURN_START.match(text).end() :].lstrip() if is_start else text  # type: ignore[union-attr]
        if is_start and (not body or self._may_be_lone(body) or any(it.startswith(body) for it in TURN_STARTS)):
            return 0
        mark = _marks(self._tools).search(text)
        if mark is not None:
            start = mark.start()
            if mark[0] in BEHIND_NAMES and (name := name_start(text, start, self._tools)) is not None:
                start = name
            end = len(text[:start].rstrip())
            self.holds_rest = end == 0
        else:
            end = len(text[: self._partial_start(text)].rstrip())
        if is_start and TURN_START.fullmatch(text, 0, end):
            end = 0
            self.holds_rest = mark is not None
        thoughts, found, answer = text[:end].partition(THOUGHTS_END)
        if found and self._may_be_lone(answer.lstrip()):
            self.holds_rest = False
            return len(thoughts) + len(found)
        return end

    def _partial_start(self, text: str) -> int:
        """Where a mark begins that the text may be cut within."""
        beginnings = _beginnings(self._tools)
        first = max(0, len(text) - _LONGEST)
        start = next((at for at in range(first, len(text)) if text[at:] in beginnings), len(text))
        for pattern in (_PARTIAL_TAG, _PARTIAL_WORD, _PARTIAL_OBJECT):
            if found := pattern.search(text, first):
                start = min(start, found.start())
        word = _LAST_WORD.search(text, first)
        if word is None:
            return start
        name = word["name"].rpartition("/")[2].rpartition(".")[2]  # without its namespace
        beginnings = _name_beginnings(self._tools)
        return min(start, word.start()) if not name or name in beginnings or word["name"] in beginnings else start

    def _may_be_lone(self, body: str) -> bool:
        """Whether the answer may still turn out to be nothing but one call, in a fence or not."""
        if any(start.startswith(body) for start in _LONE_STARTS):
            return True
        if body.startswith(("```", "~~~")):
            is_over = _FENCE_IS_OVER.search(body, max(0, self._checked - _LONGEST)) is not None
            self._checked = len(body)
            return _CALL_IN_FENCE.match(body) is not None and not is_over
        if (word := _FIRST_WORD.match(body)) and word["name"] in _name_beginnings(self._tools):
            is_tool = word["name"] in self._tools
            is_call = word[0].endswith(("{", "|>"))  # an object behind the name, or a token that ends a call in Python
            self.holds_rest = is_call and is_tool
            return self.holds_rest or (word.end() == len(body) and ("(" not in word[0] or is_tool))
        is_lone = body.startswith("{") or LIST_OF_CALLS.match(body) is not None
        self.holds_rest = is_lone and (body.startswith("{") or body[1:].lstrip()[:1] in ("{", "/", "#"))
        return is_lone


def take_thoughts(text: str) -> tuple[str, str] | None:
    """The thoughts that a live answer begins with, and what was written behind them.

    None while they go on. Without any, the thoughts are empty and the text is the identical string.
    """
    if not may_be_thoughts(text):
        return "", text
    if is_end_unsettled(text):
        return None
    thoughts, answer = split_thoughts(text)
    if answer is text:
        return None if is_thoughts_start(text) else ("", text)
    return None if is_thoughts_start(answer) else (thoughts, answer)
