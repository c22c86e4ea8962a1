"""Reads a call in one of the `forms` at a place in the text. Does not decide whether the call is believed there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from . import tagged, written
from .form import Form
from .forms import BEHIND_NAMES, ENDS, FORMS, MARK, ODD_TOKENS, OPENS, TURN_ENDS
from .written import MAX_CALLS, Found, LeakedCall, Source

MARKER = re.compile(MARK)
BEFORE_CALLS = frozenset(token for token in ENDS if token.startswith("<") and token != "</s>")
"""End tokens that a call right behind them takes along."""
_MAX_TOKENS = 64
_MAX_ELEMENTS = 500
_HEADS = {form.name: re.compile(form.head) for form in FORMS}
LIST_OF_CALLS = re.compile(r"\[\s*+(?:[{/#]|\Z|[A-Za-z_][\w.]{0,99}+(?:\(|\Z))")
"""A list that may hold calls, as far as it was written."""
_REST_IS_SPACE = re.compile(r"\s*+\Z")  # a copy of the rest for each call would be quadratic
_FENCE = re.compile(r"\s*+```")
_FENCE_WITHIN = re.compile(r"```[a-z_]{0,20}+\s*+(?=[{\[<\w])")
"""A fence between a wrapper and its call."""
_CUT_END = re.compile(r"\s*+(?:</[\w:]{0,20}|<[|｜][\w|▁｜]{0,30})\Z")
"""An end tag that was cut."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A part of the text that consists of calls only."""

    start: int
    end: int
    calls: tuple[LeakedCall, ...]
    is_closed: bool = False
    """The mark that ends it came, so nothing in it was cut."""


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    escaped = [*sorted(map(re.escape, tokens), key=len, reverse=True), ODD_TOKENS]
    return re.compile(rf"\s*+({'|'.join(escaped)})")


_ENDS = {token for token in ENDS if token.startswith(("<", "[/", "[END_", "[TOOL_REQUEST_END", "]<]"))}
_OPEN_OR_END = _any_of(OPENS | _ENDS)
_ANY_END = _any_of(_ENDS)
_OWN_ENDS = {form.name: _any_of(form.ends) for form in FORMS}
_FOLLOWED_BY = {form.name: re.compile(form.followed_by) for form in FORMS if form.followed_by}
_STOPS = {form.name: re.compile("|".join(map(re.escape, form.ends))) for form in FORMS if form.style == "quoted"}
_OWN_TOKENS = {form.name: _any_of({*form.opens, *form.ends}) for form in FORMS}
_TURN_END = _any_of(TURN_ENDS)
_IN_ANY = tuple(form for form in FORMS if form.in_any)
_BARE = {form.name: re.compile("|".join(form.bare)) for form in FORMS if form.bare}
_NAME_BEFORE = re.compile(r"(?<![\w./:-])(?P<name>[\w./-]{1,99}+)(?>(?::\d{1,4}+)?)\s{0,3}+\Z")
NAMESPACES = ("functions.", "default_api.", "tools.")
_LONGEST_NAME = 120
_NAME_AND_OBJECT = re.compile(r"(?>(?:functions\.)?)(?P<name>[\w.-]{1,99}+)(?>(?::\d{1,4}+)?)\s*+(?=\{)")
_NAME_AND_PARENTHESIS = re.compile(r"(?P<name>[\w.-]{1,99}+)(?=\([^\n]*+\Z)")
_PYTHON_END = re.compile(r"(\s*+\]?+)\s*+<\|(?:tool_call_end|python_end|eom|eot)\|>")
"""What says that a call in Python whose start was lost is one."""
_WithTags = Callable[[Source, str, int], Found]
_TAG_READERS: dict[str, _WithTags] = {
    "parameters": tagged.parameters,
    "pairs": tagged.pairs,
    "typed": tagged.typed,
}


@lru_cache(maxsize=32)
def element_marker(tools: frozenset[str]) -> re.Pattern[str] | None:
    """A pattern of the start of a call as an element, `<read_file>`, as JSON, `{"name": "read_file"`, or as JSON behind
    `[read_file]`."""
    longest_first = sorted((name for name in tools if len(name) < 100), key=len, reverse=True)[:_MAX_ELEMENTS]
    names = "|".join(map(re.escape, longest_first))
    if not names:
        return None
    return re.compile(
        rf'<({names})>|\{{\s{{0,9}}"name"\s{{0,9}}:\s{{0,9}}"(?:{names})"|\[(?:{names})\]\s{{0,3}}(?=\{{)'
    )


def name_start(text: str, end: int, tools: frozenset[str]) -> int | None:
    """Where the name starts that ends here, before one of `BEHIND_NAMES`; None if there is none.

    What is glued to it by a dot is the end of a sentence, if it is neither a namespace nor part of a tool's name.
    """
    first = max(0, end - _LONGEST_NAME)
    found = _NAME_BEFORE.search(text[first:end])
    if found is None:
        return None
    word, start = found["name"], first + found.start()
    if word in tools:
        return start
    spaces = [at for space in NAMESPACES if (at := word.rfind(space)) >= 0]
    return start + (min(spaces) if spaces else max(word.rfind("."), word.rfind("/")) + 1)


def starts_with_call(text: str) -> bool:
    """Whether a text begins with a mark that may start a call."""
    return MARKER.match(text.lstrip()) is not None


def read_marked(source: Source, marker: re.Match[str]) -> Leak | None:
    """The leak that this marker starts; None if what follows is not a call."""
    start = marker.start()
    if marker[0] in BEHIND_NAMES:
        return _read_behind_name(source, start)
    opened, at = _opened(source.text, start)
    form, calls, end = _one(source, opened, at)
    if form is None:
        return None
    return _with_more(source, opened, form, calls, start, end)


def _read_behind_name(source: Source, token_start: int) -> Leak | None:
    """The leak whose wrapper is missing, so that it starts with the name before this token."""
    start = name_start(source.text, token_start, source.tools)
    if start is None:
        return None
    for form in FORMS:
        if form.behind_name and source.text.startswith(form.behind_name, token_start):
            calls, end = _read(source, form, start)
            if calls:
                end = _behind_own_end(source, form, calls, end)
                return _with_more(source, set(form.opens), form, calls, start, end)
    return None


def _with_more(
    source: Source, opened: set[str], form: Form, calls: list[LeakedCall], start: int, end: int
) -> Leak | None:
    """The leak with the calls of the same wrapper that follow."""
    while len(calls) <= MAX_CALLS:
        more_opened, at = _opened(source.text, end, _OWN_TOKENS[form.name])
        at = source.skip(at)
        more_form, more, after = _one(source, opened | more_opened, at)
        if more_form is None:
            break
        form, end = more_form, after
        calls += more
    return _closed(source, form, start, end, calls)


def read_name_and_arguments(source: Source) -> LeakedCall | None:
    """The one call that a text without its wrapper is."""
    marker = MARKER.search(source.text)
    leak = read_marked(source, marker) if marker else None
    return leak.calls[0] if leak and leak.start == 0 and len(leak.calls) == 1 else None


def read_element(source: Source, marker: re.Match[str]) -> Leak | None:
    """The call that is written as an element, or as JSON before an end tag whose opener was lost."""
    if marker[0].startswith("["):
        return _read_in_brackets(source, marker)
    if marker[1] is None:
        return _read_json_before_end(source, marker.start())
    calls, end = tagged.elements(source, marker[1], marker.end())
    return Leak(marker.start(), end, tuple(calls), is_closed=not calls[-1].is_open) if calls else None


def _read_in_brackets(source: Source, marker: re.Match[str]) -> Leak | None:
    """JSON between the tool's name in brackets and its end: `[read_file]`, `[/read_file]`."""
    name = marker[0].partition("]")[0][1:]
    calls, end = written.json_behind_name(source, name, marker.end())
    closing = re.compile(rf"\s*+\[/{re.escape(name)}\]").match(source.text, end) if calls else None
    return Leak(marker.start(), closing.end(), tuple(calls), is_closed=True) if closing else None


def _read_json_before_end(source: Source, start: int) -> Leak | None:
    calls, end = written.json_calls(source, start, is_marked=False)
    is_ended = bool(calls) and _OWN_ENDS[FORMS[-1].name].match(source.text, end) is not None
    return _closed(source, FORMS[-1], start, end, calls) if is_ended else None


def read_bare(source: Source, start: int) -> Leak | None:
    """Calls as JSON or Python, or a name and an object, without any mark.

    JSON ones must carry their arguments, or they might be anything.
    """
    if source.text.startswith("[", start) and not LIST_OF_CALLS.match(source.text, start):
        return None
    if (head := _NAME_AND_OBJECT.match(source.text, start)) and head["name"] in source.tools:
        calls, end = written.json_behind_name(source, head["name"], head.end())
    elif (head := _NAME_AND_PARENTHESIS.match(source.text, start)) and head["name"] in source.tools:
        calls, end = written.python_calls(source, start)
        ended = _PYTHON_END.match(source.text, end)
        calls, end = (calls, ended.end(1)) if ended else ([], start)
    else:
        calls, end = written.json_calls(source, start, is_marked=False)
    if not calls and source.text.startswith("[", start):
        calls, end = written.python_calls(source, start)
    if not calls or any(call.arguments is None for call in calls):
        return None
    return _closed(source, FORMS[-1], start, end, calls)


def _opened(text: str, at: int, tokens: re.Pattern[str] = _OPEN_OR_END) -> tuple[set[str], int]:
    """The openers from here on, with empty wrappers among them, and where the last one ends."""
    found: set[str] = set()
    for _ in range(_MAX_TOKENS):
        token = tokens.match(text, at)
        if token is None:
            break
        found.add(token[1])
        at = token.end()
    return found, at


def _one(source: Source, opened: set[str], at: int) -> tuple[Form | None, list[LeakedCall], int]:
    """The call that starts here in one of the forms, or the calls of a list; the form is None if none starts here."""
    at = source.skip(at)
    if opened and (fence := _FENCE_WITHIN.match(source.text, at)):
        form, calls, end = _one(source, opened, fence.end())
        closing = _FENCE.match(source.text, end)
        return form, calls, closing.end() if closing else end
    if opened and source.elements and (element := source.elements.match(source.text, at)) and element[1]:
        calls, end = tagged.elements(source, element[1], element.end())
        if calls:
            return FORMS[-1], calls, _behind_own_end(source, FORMS[-1], calls, end)
    for form in (*_may_start(source, opened, at), *(_IN_ANY if opened else ())):
        calls, end = _read(source, form, at)
        if calls:
            return form, calls, _behind_own_end(source, form, calls, end)
    return None, [], at


def _may_start(source: Source, opened: set[str], at: int) -> Iterator[Form]:
    """The forms whose own wrappers, or a start without one, are here."""
    for form in FORMS:
        if not opened.isdisjoint(form.opens) or (form.bare and _BARE[form.name].match(source.text, at)):
            yield form


def _behind_own_end(source: Source, form: Form, calls: list[LeakedCall], end: int) -> int:
    """Behind the first end token, which makes the last call whole."""
    token = _OWN_ENDS[form.name].match(source.text, end) or _ANY_END.match(source.text, end)
    if token is None:
        return end
    last = calls[-1]
    calls[-1] = LeakedCall(last.name, last.arguments)
    return token.end()


def _read(source: Source, form: Form, at: int) -> Found:
    if form.style == "call":
        return written.json_calls(source, at)
    if form.style == "python":
        return written.python_calls(source, at)
    if form.style == "keyed":
        return written.keyed_calls(source, at)
    head = _HEADS[form.name].match(source.text, at)
    if head is None:
        return [], at
    name, start = head["name"] or head["other"], head.end()
    if form.style in _TAG_READERS:
        found = _TAG_READERS[form.style](source, name, start)
        return found if _is_plausible(source, form, found[1]) else ([], at)
    if form.style == "json":
        calls, end = written.json_behind_name(source, name, start)
        behind = _FOLLOWED_BY.get(form.name)
        return (calls, end) if behind is None or behind.match(source.text, end) else ([], at)
    if form.style == "quoted":
        return written.quoted(source, name, start, _STOPS[form.name], needs_end=not head[0].startswith("call:"))
    return (tagged.named_elements if form.style == "elements" else written.flags)(source, name, start)


def _is_plausible(source: Source, form: Form, end: int) -> bool:
    """Whether tags without their end are followed by the text's end, or by a token of the form."""
    text = source.text
    if _REST_IS_SPACE.match(text, end) or _OPEN_OR_END.match(text, end) or _CUT_END.match(text, end):
        return True
    return _HEADS[form.name].match(text, source.skip(end)) is not None


def _closed(source: Source, form: Form, start: int, end: int, calls: list[LeakedCall]) -> Leak | None:
    """The leak with the form's tokens behind it: those that end something, and openers that end the text."""
    text = source.text
    if not calls:
        return None
    fence = _FENCE if "```" in text[start : start + 20] else None
    is_closed = _ended_before(text, form, end)
    at = end
    for _ in range(_MAX_TOKENS):
        token = (
            _OWN_TOKENS[form.name].match(text, at) or _ANY_END.match(text, at) or (fence or _TURN_END).match(text, at)
        )
        if token is None:
            break
        at = token.end()
        if fence or token[1] not in form.opens or token[1] in form.ends:
            end, is_closed = at, True
    if _REST_IS_SPACE.match(text, at):
        end = at
    elif cut := _CUT_END.match(text, at):
        end = cut.end()
    return Leak(_with_ends_before(text, form, start), end, tuple(calls), is_closed)


def _ended_before(text: str, form: Form, end: int) -> bool:
    return any(text.endswith(token, 0, end) for token in form.ends)


def _with_ends_before(text: str, form: Form, start: int) -> int:
    """Where the leak starts with the end tokens of its form that stand right before it by mistake. Tags are taken only
    on lines of their own: behind words they may be the words' own.
    """
    at = start
    for _ in range(_MAX_TOKENS):
        first = max(0, at - 100)
        before = text[first:at].rstrip()
        token = next((token for token in form.ends if token in BEFORE_CALLS and before.endswith(token)), None)
        if token is None:
            break
        at = first + len(before) - len(token)
        if token.startswith("<|") or not text[first:at].rpartition("\n")[2].strip():
            start = at
    return start
