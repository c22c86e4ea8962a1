"""Finds the tool calls that a model left in its text and meant, and the text without them.

A call is believed only where a model that calls would write it: on a line of its own or at the text's very end,
outside of code, quotes and thoughts, not announced as an example; and only if it names a tool of the request and
fits its schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice

from . import quotations, surroundings
from .arguments import has_all_needed, repair_arguments
from .budget import Budget, BudgetSpent
from .calls import Call, new_call_id
from .form_reader import MARKER, Leak, element_marker, read_bare, read_element, read_marked
from .forms import MARK, TURN_ENDS, TURN_START
from .model import Repair, RequestFacts
from .text import fold
from .thoughts import THOUGHTS_END, is_in_call, split_channels
from .written import ARGUMENT_KEYS, MAX_CALLS, NAME_KEYS, LeakedCall, Source

_MAX_PLACES = 20_000
_MAX_ATTEMPTS = 64
_HINTS = ("<", "[", "{", "```tool_code", "call:")
_PLACE = re.compile(rf"{quotations.STARTS}|{MARK}")
_SPECIAL = re.compile(r"(?:[\w./:-]{1,110}\s{0,3})?<[|｜‖]|\]<\]minimax\[>\[")
"""Tokens that no text about calls holds outside of code: a call behind them needs no line of its own."""
_MAX_END_TOKENS = 8
_MAX_SENTENCE = 400
_SHOWN_LINE = re.compile(r"\s*+(?:[>|]|[-*+] |\d{1,9}+[.)] )")
"""A line of a block quote, a table or a list."""
_LETTER_OR_QUOTE = re.compile(r"[\w`\"'“”‘’«»(\[{<]")
_SENTENCE_ENDS = (".", "!", "?", ":", "…", "。", "！", "？", "：")
_CALL_NAMES = frozenset(map(fold, (*NAME_KEYS, *ARGUMENT_KEYS, "type", "id")))
_Made = tuple[Call, tuple[Repair, ...]]


def rescue_calls(
    content: str, facts: RequestFacts, budget: Budget, *, truncated: bool = False, at_end: bool = False
) -> tuple[str | None, list[Call], tuple[Repair, ...]]:
    """The text that stays (None: nothing), the calls that were in it, and what was repaired.

    Without any call the text is the identical string. `truncated` says that the model was stopped: a call whose last
    value may not be whole is then not believed. With `at_end`, calls are believed only where nothing comes behind
    them. Never raises.
    """
    if not facts.rescue or not facts.tools or not any(hint in content for hint in _HINTS):
        return content, [], ()
    try:
        budget.allow(len(content))
        return _Rescue(content, facts, truncated, budget, at_end).outcome()
    except BudgetSpent:
        return content, [], (Repair("repair_budget"),)
    except (ValueError, RecursionError):
        return content, [], ()


@dataclass(frozen=True)
class _Rescue:
    content: str
    facts: RequestFacts
    truncated: bool
    budget: Budget
    at_end: bool

    @cached_property
    def text(self) -> str:
        """The content without the marks that end a turn."""
        text = self.content.rstrip()
        for _ in range(_MAX_END_TOKENS):
            ending = next((token for token in TURN_ENDS if text.endswith(token)), "")
            if ending == "</s>" and "<s>" in text[-_MAX_SENTENCE:].rpartition("\n")[2]:  # struck out, in HTML
                break
            text = text.removesuffix(ending).rstrip()
        return text.removesuffix("<think>").rstrip()  # begun once more, and stopped

    @cached_property
    def names(self) -> frozenset[str]:
        return _CALL_NAMES | self.facts.argument_names()

    @cached_property
    def start(self) -> int:
        """Where the answer starts, behind thoughts that it begins with, or that the template began for the model."""
        head, found, _ = self.text.partition(THOUGHTS_END)
        is_thought = found and "<think>" not in head.lstrip().removeprefix("<think>") and not is_in_call(head)
        at = len(head) + len(THOUGHTS_END) if is_thought else TURN_START.match(self.text).end()  # type: ignore[union-attr]
        return len(self.text) - len(self.text[at:].lstrip())

    def outcome(self) -> tuple[str | None, list[Call], tuple[Repair, ...]]:
        calls: list[Call] = []
        repairs: list[Repair] = []
        kept: list[str] = []
        at = 0
        for leak in self.lone() or self.believed():
            may_be_cut = self.truncated and not leak.is_closed and leak.end == len(self.text)
            made = [self.made(call, may_be_cut and call is leak.calls[-1]) for call in leak.calls[: MAX_CALLS + 1]]
            if not all(made) or len(calls) + len(made) > MAX_CALLS:
                continue
            for call, found in filter(None, made):
                calls.append(call)
                repairs.extend(found)
            kept.append(self.text[at : leak.start].rstrip())
            at = leak.end
        if not calls or (self.at_end and self.text[at:].strip()):
            return self.content, [], ()
        if TURN_START.fullmatch(kept[0]):
            kept[0] = ""
        rest = "".join([*kept, split_channels(self.text[at:].rstrip())])
        return (rest if kept[0] else rest.lstrip()) or None, calls, tuple(repairs)

    # -- where ---------------------------------------------------------------------------------------------

    def lone(self) -> list[Leak]:
        """The whole answer, if it is one call, or a fenced block that is nothing else."""
        answer = self.text[self.start :]
        is_fenced = answer.startswith(("```", "~~~"))
        inside = _fenced(answer) if is_fenced else answer
        names = () if is_fenced else ("functions.", *self.facts.tools)
        if inside is None or not inside.startswith(("{", "[", "<", *names)):
            return []
        leak = self.read_at(inside, 0) or read_bare(self.source(inside), 0)
        return [replace(leak, start=self.start, end=len(self.text))] if leak and leak.end == len(inside) else []

    def believed(self) -> Iterator[Leak]:
        """Leaks with a mark, where the text around makes the call instead of presenting it."""
        for run in self.runs():
            if not self.is_quoted(run[0].start, run[-1].end):
                yield from run

    def runs(self) -> list[list[Leak]]:
        """Leaks outside of code and thoughts; those with nothing but space between belong together."""
        runs: list[list[Leak]] = []
        for leak in islice(self.leaks(), MAX_CALLS):
            if runs and not self.text[runs[-1][-1].end : leak.start].strip():
                runs[-1].append(leak)
            else:
                runs.append([leak])
        return runs

    def leaks(self) -> Iterator[Leak]:
        at = self.start
        attempts = 0
        places = _places(frozenset(self.facts.tools))
        for _ in range(_MAX_PLACES):
            self.budget.check()
            place = places.search(self.text, at)
            if place is None or attempts == _MAX_ATTEMPTS:
                return
            if quotations.is_start(place):
                if (leak := self.read_at(self.text, place.end() - len(place[0].lstrip()))) is not None:
                    at = leak.end
                    yield leak
                    continue
                at = quotations.end_of(self.text, place)
                continue
            attempts += 1
            leak = self.read_at(self.text, place.start())
            at = leak.end if leak else place.start() + (place[0].find("`") if "`" in place[0] else len(place[0]))
            if leak:
                yield leak

    def source(self, text: str) -> Source:
        tools = frozenset(self.facts.tools)
        return Source(text, self.names, self.facts.members_of, self.budget, element_marker(tools), tools)

    def read_at(self, text: str, start: int) -> Leak | None:
        """The leak that starts here with a mark, if one does."""
        self.budget.check()
        if marker := MARKER.match(text, start):
            leak = read_marked(self.source(text), marker)
            if leak is not None:
                return leak
        elements = element_marker(frozenset(self.facts.tools))
        if elements and (marker := elements.match(text, start)):
            return read_element(self.source(text), marker)
        return None

    def is_quoted(self, start: int, end: int) -> bool:
        """Whether the text around presents the calls instead of making them."""
        before, after = self.text[self.start : start], self.text[end:]
        line_before = before[before.rfind("\n") + 1 :]
        is_special = _SPECIAL.match(self.text, start) is not None
        is_last = not after.strip()
        ends_line = is_last or "\n" in after[: len(after) - len(after.lstrip())]
        if line_before.strip():
            is_glued = line_before[-1].isalnum() or line_before.endswith(_SENTENCE_ENDS)
            words = line_before.rstrip("*_ \t")
            is_symbol = not _LETTER_OR_QUOTE.search(line_before)
            is_spoken = is_last and (words.endswith(_SENTENCE_ENDS) or is_symbol or surroundings.intends(line_before))
            is_shown = _SHOWN_LINE.match(line_before) is not None
            is_alone = is_special and is_last
            if is_shown or not ends_line or not (is_alone or is_glued or is_spoken):
                return True
        elif before and (line_before.startswith("    ") or "\t" in line_before):
            return True
        is_block = "\n" in self.text[start:end] and not line_before.strip() and after.lstrip()[:1].isupper()
        if not ends_line and not is_block and (after[0].isspace() or not is_special):
            return True
        return surroundings.presents(before) or surroundings.explains(after)

    # -- which ---------------------------------------------------------------------------------------------

    def made(self, leaked: LeakedCall, may_be_cut: bool) -> _Made | None:
        """The call in the form of the API, if it names a tool and fits it."""
        name = self.facts.known_name(leaked.name)
        schema = None if name is None else self.facts.schema_of(name)
        if name is None or schema is None or (may_be_cut and leaked.is_cut):
            return None
        repaired = repair_arguments(leaked.arguments, schema, self.budget, truncated=may_be_cut)
        if not repaired.is_sound or (may_be_cut and leaked.is_open and not has_all_needed(repaired.text, schema)):
            return None
        function = {"name": name, "arguments": repaired.text}
        call: Call = {"id": new_call_id(), "type": "function", "function": function}
        return call, (Repair("rescued_call", name), *(Repair(kind, name) for kind in repaired.kinds))


@lru_cache(maxsize=32)
def _places(tools: frozenset[str]) -> re.Pattern[str]:
    """All that may start a call to one of the tools, or code or thoughts, in which none is believed."""
    elements = element_marker(tools)
    return re.compile(f"{_PLACE.pattern}|{elements.pattern}") if elements else _PLACE


_TOKENS_AT_END = re.compile(r"(?<=[`~])(?>(?:\s*+<[｜|][^<>\s｜|]{1,40}+[｜|]>)+)\Z")


def _fenced(answer: str) -> str | None:
    """What is in the one fenced block that the answer is; its end may be missing."""
    answer = _TOKENS_AT_END.sub("", answer)
    first, _, inside = answer.partition("\n")
    mark = first[: len(first) - len(first.lstrip(first[0]))]
    inside = inside.removesuffix(mark).strip()
    return None if f"\n{mark}" in inside else inside
