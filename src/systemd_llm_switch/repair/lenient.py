"""Reads JSON as language models write it, in linear time, and never invents a value.

Owns the tolerant grammar. Must not know tools, types or replies. The `Reading` lists what was assumed (a missing
bracket or quote at the end, a member without a value), so that the caller can judge it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .budget import Budget
from .strings import CLOSER_OF, COMMENT, SPACE, Ambiguous, Exhausted, StringReader, Unreadable, unescape
from .text import fold

MAX_DEPTH = 100
_MAX_PARTS = 50_000
_VALUE_WORK = 8
_COMMENT_STARTS = frozenset("/#")
_SKIPPED = frozenset(" \n\r\t/#")
_NOT_A_NUMBER = frozenset({"NaN", "nan", "Infinity", "-Infinity", "inf", "-inf"})
_CLOSING_QUOTE = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’"}
_STRING_PREFIXES = frozenset({"r", "R", "b", "B", "f", "F", "rb", "rf", "fr", "br"})
_OMITTED = frozenset({"...", "…"})
_NUMBER = re.compile(
    r"[+-]?(?=\.?\d)(?:0[xX][0-9a-fA-F]++|(?>(?:\d[\d_]*+)?)(?>(?:\.\d*+)?)(?>(?:[eE][+-]?\d++)?))(?![\w.])"
)
_WORD = re.compile(r"[^\s\"'`,:{}\[\]()][^\"'`,{}\[\]\n]*+")
_KEY = re.compile(
    r'(?:"(?P<double>[^"\\\n]*+(?>(?:\\.[^"\\\n]*+)*))"'
    r"|'(?P<single>[^'\\\n]*+(?>(?:\\.[^'\\\n]*+)*))'"
    r"|[\"'“”‘’`]?(?P<bare>[A-Za-z_$][\w$.-]*+)[\"'“”‘’`]?)"
    r"\s*+[:：](?>(?:\s*+[:：])?)"
)
_KEY_WITHOUT_COLON = re.compile(r"[\"'](?P<name>[\w$.-]{1,80}+)[\"']\s*+(?=[\"'{\[]|-?\d|(?:true|false|null)\b)")
_KEY_WITH_EQUALS = re.compile(
    r"(?:[\"'](?P<quoted>[\w$.-]{1,80}+)(?:[\"']\s*+=>|=)|(?P<bare>[A-Za-z_$][\w$-]{0,80}+)\s*+=>?+)"
    r"\s*+(?=[\"'{\[]|-?\d|(?:[Tt]rue|[Ff]alse|null|None)\b)"
)
_CUT_KEY = re.compile(r"(?:[\"'“][^\"'“”\n]*+[\"'”]?|[A-Za-z_$][\w$.-]*+)\s*+\Z")
_LITERAL = re.compile(r"(?:[Tt]rue|TRUE|[Ff]alse|FALSE|None|[Nn]ull|NULL|undefined)\b")
_VALUES = re.compile(r"(?>(?:(?:[+-]?[\d._]++|[Tt]rue|[Ff]alse|null|None)(?:\s++|\Z)){2,})")
_BEHIND_VALUE = re.compile(r"\s*+(?:[,;，}\]#]|//|/\*|\Z|[\"'][\w$.-]{1,80}+[\"']\s*+:)|[^\S\n]*+\n")
_END_OF_TEXT = re.compile(r"\s*+\Z")
_NO_VALUE = object()


class Number(float):
    """A float that remembers how it was written, because `1.10` may turn out to be a version and not a number."""

    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A value, and what had to be assumed to get it."""

    value: object
    end: int
    """Where the value ends in the text."""
    open_depths: tuple[int, ...]
    """Depths (outermost is 1) of the brackets that the text ends without."""
    is_cut: bool
    """The text ends inside a string, a number, a word or a member."""
    doubts: int
    """How many strings end where they do only because no place was better, and names that are duplicates."""
    strange_names: int
    """How many members have a name that is not expected."""
    valueless: tuple[str, ...]
    """Names of members that had no value; they are not in the value."""
    has_words: bool
    """Some strings had no quotes at all, so that they may be code or prose."""
    has_not_a_number: bool
    """Some values were NaN or infinite, which JSON cannot say; they are null."""
    has_inner_quotes: bool
    """Some strings hold quotes that are not escaped, so that any quote may be one of those."""
    has_raw_newlines: bool
    """Some strings hold newlines that are not escaped, so that quotes may not be either."""
    text: str = field(repr=False)
    spans: dict[int, tuple[object, int, int]] = field(repr=False)
    """Each bracketed part of the value (by its `id`), and its place in the text."""

    def source(self, value: object) -> str | None:
        """How this very part of the value was written; None where that is not known."""
        if isinstance(value, Number):
            return value.text
        _, start, end = self.spans.get(id(value), (None, 0, 0))
        return self.text[start:end] or None


def read(
    text: str,
    start: int = 0,
    *,
    budget: Budget,
    names: frozenset[str] = frozenset(),
    tail: re.Pattern[str] = _END_OF_TEXT,
    trusts_names: bool = False,
) -> Reading:
    """Read the value that starts at `start`; see `StringReader` for the rest. Raises Unreadable."""
    reader = _Reader(text, start, names, tail, trusts_names, budget)
    try:
        value = reader.value()
    except RecursionError as error:
        raise Exhausted("nested too deeply") from error
    return Reading(
        value, reader.at, tuple(reader.open_depths), reader.is_cut, reader.doubts,
        reader.strange_names, tuple(reader.valueless), reader.has_words, reader.has_not_a_number,
        reader.has_inner_quotes, reader.has_raw_newlines, text, reader.spans,
    )  # fmt: skip


def best_reading(text: str, start: int, names: frozenset[str], tail: re.Pattern[str], budget: Budget) -> Reading:
    """The reading that explains the text best, up to where `tail` matches.

    Where quotes inside strings are ambiguous, it is tried which strings end before the names that are expected. Two
    readings without a doubt that differ are no reading. Raises Unreadable.
    """
    readings = list(_readings(text, start, names, tail, budget))
    if not readings:
        raise Unreadable("nothing that ends where the text does")
    best = min(readings, key=lambda reading: (reading.doubts, reading.strange_names))
    if any(other.value != best.value and other.doubts == 0 for other in readings):
        raise Unreadable("ambiguous quotes")
    return best


def _readings(text: str, start: int, names: frozenset[str], tail: re.Pattern[str], budget: Budget) -> Iterator[Reading]:
    for trusts_names in (False, True) if names else (False,):
        try:
            reading = read(text, start, names=names, tail=tail, trusts_names=trusts_names, budget=budget)
        except (Exhausted, Ambiguous):
            raise
        except Unreadable:
            continue
        if tail.match(text, reading.end):
            yield reading
            if not reading.doubts and not reading.strange_names:
                return


class _Reader(StringReader):
    """One pass over one text; `at` is the next character to look at."""

    def __init__(
        self, text: str, start: int, names: frozenset[str], tail: re.Pattern[str], trusts_names: bool, budget: Budget
    ) -> None:
        super().__init__(text, start, names, tail, trusts_names, budget)
        self.parts_left = _MAX_PARTS
        self.strange_names = 0
        self.open_depths: list[int] = []
        self.valueless: list[str] = []
        self.has_words = False
        self.has_not_a_number = False
        self.spans: dict[int, tuple[object, int, int]] = {}

    def value(self) -> object:
        self.skip()
        self.parts_left -= 1
        if self.parts_left < 0:
            raise Exhausted("too many values")
        self.spend(_VALUE_WORK)
        start = self.at
        opener = self.peek()
        if opener in CLOSER_OF:
            if len(self.stack) >= MAX_DEPTH:
                raise Exhausted("nested too deeply")
            value = self.read_object() if opener == "{" else self.read_array()
            self.spans[id(value)] = (value, start, self.at)
            return value
        if opener in _CLOSING_QUOTE:
            return self.read_string(_CLOSING_QUOTE[opener])
        return self.scalar()

    def skip(self) -> None:
        """Over white space and comments."""
        while (char := self.text[self.at : self.at + 1]) in _SKIPPED or char.isspace():
            found = (COMMENT if char in _COMMENT_STARTS else SPACE).match(self.text, self.at)
            if found is None:
                return
            self.at = found.end()

    def read_object(self) -> dict[str, object]:
        members: dict[str, object] = {}
        self.enter("{")
        while not self.leaves() and (name := self.key()) is not None:
            value = self.member_value()
            if value is _NO_VALUE:
                self.valueless.append(name)
            else:
                self.doubts += name in members
                members[name] = value
            self.note_name(fold(name))
            self.separator()
        self.leave()
        return members

    def note_name(self, folded: str) -> None:
        self.seen[-1].add(folded)
        self.strange_names += bool(self.names) and folded not in self.names

    def read_array(self) -> list[object]:
        items: list[object] = []
        self.enter("[")
        while not self.leaves():
            items.append(self.value())
            self.separator()
        self.leave()
        return items

    def enter(self, opener: str) -> None:
        self.at += 1
        self.stack.append(opener)
        self.seen.append(set())

    def leave(self) -> None:
        self.stack.pop()
        self.seen.pop()

    def leaves(self) -> bool:
        """Whether the innermost bracket ends here: its closer is eaten, an outer one's is left to the outer bracket,
        and one that closes nothing is passed over."""
        while True:
            self.skip()
            char = self.peek()
            if not char:
                self.open_depths.append(len(self.stack))
                return True
            if char == CLOSER_OF[self.stack[-1]] or self.is_wrong_closer(self.at):
                self.at += 1
                return True
            if char in "}]" and any(CLOSER_OF[opener] == char for opener in self.stack):
                return True
            if char not in ",;，}]":
                return False
            self.at += 1
            if char in "}]" and len(self.stack) > 1:
                self.check_surplus()

    def check_surplus(self) -> None:
        """Behind a bracket that closes nothing, within an inner value: what follows a comma may belong to that value or
        to the outer one, and nothing says to which."""
        self.skip()
        if self.peek() in (",", ";", "，"):
            raise Ambiguous("a bracket of the wrong kind")

    def separator(self) -> None:
        """Behind a member: a text that ends right after a comma was cut before the next member."""
        self.skip()
        if self.peek() in (",", ";", "，"):
            self.at += 1
            self.skip()
            self.is_cut = self.is_cut or not self.peek()

    def key(self) -> str | None:
        """The next member's name, eaten with its colon; None where the text ends within it."""
        match = _KEY.match(self.text, self.at)
        if match is None:
            if (bare := _KEY_WITHOUT_COLON.match(self.text, self.at)) and self.is_expected(bare["name"]):
                self.at = bare.end()
                return bare["name"]
            if pair := _KEY_WITH_EQUALS.match(self.text, self.at):
                name = pair["quoted"] or pair["bare"]
                if self.is_expected(name):
                    self.at = pair.end()
                    self.has_equals = True
                    return name
            if not _CUT_KEY.match(self.text, self.at):
                raise Unreadable("a member without a name")
            self.at = len(self.text)
            self.is_cut = True
            self.open_depths.append(len(self.stack))
            return None
        self.at = match.end()
        quoted = match["double"] if match["double"] is not None else match["single"]
        return match["bare"] if quoted is None else unescape(quoted)

    def member_value(self) -> object:
        self.skip()
        char = self.peek()
        self.is_cut = self.is_cut or not char
        return _NO_VALUE if char in ("", ",", ";", "，", "}", "]") else self.value()

    def scalar(self) -> object:
        """A number, `true`, `None`, or a string that lost its quotes, or one of them."""
        for pattern, value_of in ((_NUMBER, _number), (_LITERAL, _literal)):
            match = pattern.match(self.text, self.at)
            if match and _BEHIND_VALUE.match(self.text, match.end()):
                self.at = match.end()
                self.is_cut = self.is_cut or self.at == len(self.text)
                return value_of(match[0])
        match = _WORD.match(self.text, self.at)
        if match is None:
            raise Unreadable("no value")
        self.at = match.end()
        self.is_cut = self.is_cut or self.at == len(self.text)
        return self.word(match[0].rstrip())

    def word(self, word: str) -> object:
        """A string without quotes, as far as it is one."""
        if word in ("u", "U") and self.peek() in ('"', "'"):
            return self.read_string(self.peek())
        if word in _OMITTED or (word in _STRING_PREFIXES and self.peek() in ('"', "'")):
            raise Ambiguous("code instead of a value")
        if word in _NOT_A_NUMBER:
            self.has_not_a_number = True
            return None
        if self.stack and self.stack[-1] == "[" and _VALUES.fullmatch(word):
            raise Unreadable("values without commas")
        if self.peek() in ('"', "'") and self.ends_string(self.at):
            self.at += 1
        elif not _BEHIND_VALUE.match(self.text, self.at):
            raise Unreadable("neither a value nor a string")
        self.has_words = True
        return word


def _literal(word: str) -> object:
    return {"t": True, "f": False}.get(word[0].lower())


def _number(text: str) -> object:
    digits = text.replace("_", "").removeprefix("+")
    try:
        return int(digits, 0) if "x" in digits.lower() else int(digits)
    except ValueError:
        number = Number(digits)
        number.text = text
        return number
