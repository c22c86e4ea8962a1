"""Reads JSON as language models write it, in time linear in its length, and never makes up a value.

Owns the tolerant grammar; knows nothing of tools, of types or of replies. What it had to assume (a bracket or a
string that the text ends without, a member that has no value) is said in the `Reading`, for the caller to judge.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from .text import fold

MAX_DEPTH = 100
_WORK_PER_CHARACTER = 30
"""How often a character may be looked at while strings with unescaped quotes are told apart."""

_LITERALS: dict[str, object] = {
    "true": True, "false": False, "null": None, "True": True, "False": False, "None": None, "TRUE": True,
    "FALSE": False, "NULL": None, "undefined": None,
}  # fmt: skip
_CLOSERS = {"{": "}", "[": "]"}
_SPACE = re.compile(r"\s*")
_COMMENT = re.compile(r"//[^\n]*|#[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|(?:\d[\d_]*)?\.?\d*(?:[eE][+-]?\d+)?)(?![\w.])")
_WORD = re.compile(r"[^\s\"'`,:{}\[\]()][^\"'`,{}\[\]\n]*")
_KEY = re.compile(
    r'"(?P<double>[^"\\\n]*(?:\\.[^"\\\n]*)*)"\s*:'
    r"|'(?P<single>[^'\\\n]*(?:\\.[^'\\\n]*)*)'\s*:"
    r"|[\"'“”]?(?P<bare>[A-Za-z_$][\w$.-]*)[\"'“”]?\s*:"
)
_NEXT_KEY = re.compile(r"\s*(?:\"([^\"\\\n]{1,80})\"|'([^'\\\n]{1,80})'|([A-Za-z_$][\w$-]{0,80}))\s*:")
_QUOTED_MEMBER = re.compile(r",\s*[\"']([\w$.-]{1,80})[\"']\s*:")
_VALUE_START = re.compile(r"\s*[\"'\[{\dtfnTFN-]")
_END_OF_TEXT = re.compile(r"\s*\Z")
_ESCAPED_LAST_QUOTE = re.compile(r"\\[\"']\s*[}\]][}\]\s]*\Z")
_LAST_CLOSERS = re.compile(r"\s*[}\]][}\]\s]*\Z")
_ESCAPE = re.compile(r"\\(?:[\"\\/bfnrt]|u[0-9a-fA-F]{4}|.|\Z)|\"", re.DOTALL)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”"}


class Unreadable(ValueError):
    """Not even leniently JSON, or so ambiguous that reading it would be guessing."""


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
    valueless: tuple[str, ...]
    """Names of members that had no value; they are not in the value."""
    has_words: bool
    """Some strings had no quotes at all, so that they may be code or prose."""
    text: str = field(repr=False)
    spans: dict[int, tuple[object, int, int]] = field(repr=False)
    """Each bracketed part of the value (by its `id`), and where it stands in the text."""

    def source(self, value: object) -> str | None:
        """How this very part of the value was written; None where that is not known."""
        if isinstance(value, Number):
            return value.text
        _, start, end = self.spans.get(id(value), (None, 0, 0))
        return self.text[start:end] or None


def read(text: str, start: int = 0, *, names: frozenset[str] = frozenset(),
         tail: re.Pattern[str] = _END_OF_TEXT) -> Reading:  # fmt: skip
    """Read the value that starts at `start`.

    `names` are the folded names that members are expected to have: they decide where a string with unescaped quotes
    ends. `tail` must match behind the whole value's last bracket for a quote before that bracket to end its string.
    Raises Unreadable.
    """
    reader = _Reader(text, start, names, tail)
    try:
        value = reader.value()
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error
    return Reading(value, reader.at, tuple(reader.open_depths), reader.is_cut, tuple(reader.valueless),
                   reader.has_words, text, reader.spans)  # fmt: skip


_NOTHING = object()
"""What a member holds that has a name but no value."""


class _Reader:
    """One pass over one text; `at` is the next character to look at."""

    def __init__(self, text: str, start: int, names: frozenset[str], tail: re.Pattern[str]) -> None:
        self.text = text
        self.at = start
        self.names = names
        self.tail = tail
        self.stack: list[str] = []
        self.seen: list[set[str]] = []
        self.open_depths: list[int] = []
        self.is_cut = False
        self.valueless: list[str] = []
        self.has_words = False
        self.spans: dict[int, tuple[object, int, int]] = {}
        self.work_left = _WORK_PER_CHARACTER * (len(text) - start) + 10_000

    def value(self) -> object:
        self.skip()
        start = self.at
        opener = self.peek()
        if opener in _CLOSERS:
            if len(self.stack) >= MAX_DEPTH:
                raise Unreadable("nested too deeply")
            value = self.read_object() if opener == "{" else self.read_array()
            self.spans[id(value)] = (value, start, self.at)
            return value
        if opener in _QUOTES:
            return self.string()
        return self.scalar()

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def skip(self) -> None:
        """Over white space and comments."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.peek() not in ("/", "#") or not (comment := _COMMENT.match(self.text, self.at)):
                return
            self.at = comment.end()

    # -- brackets ------------------------------------------------------------------------------------------

    def read_object(self) -> dict[str, object]:
        members: dict[str, object] = {}
        self.enter("{")
        while not self.leaves():
            name = self.key()
            if name is None:
                break
            value = self.member_value()
            if value is _NOTHING:
                self.valueless.append(name)
            else:
                members[name] = value
            self.seen[-1].add(fold(name))
            self.separator()
        self.stack.pop()
        self.seen.pop()
        return members

    def read_array(self) -> list[object]:
        items: list[object] = []
        self.enter("[")
        while not self.leaves():
            items.append(self.value())
            self.separator()
        self.stack.pop()
        self.seen.pop()
        return items

    def enter(self, opener: str) -> None:
        self.at += 1
        self.stack.append(opener)
        self.seen.append(set())

    def leaves(self) -> bool:
        """Whether the innermost bracket ends here; its own closer is eaten, an outer one's is left to the outer."""
        self.skip()
        while self.peek() == ",":
            self.at += 1
            self.skip()
        char = self.peek()
        if not char:
            self.open_depths.append(len(self.stack))
            return True
        if char == _CLOSERS[self.stack[-1]]:
            self.at += 1
            return True
        if char in "}]":
            if any(_CLOSERS[opener] == char for opener in self.stack):
                return True
            raise Unreadable(f"a {char} that closes nothing")
        return False

    def separator(self) -> None:
        """After a member: a text that ends right behind a comma was cut before the next member."""
        self.skip()
        if self.peek() == ",":
            self.at += 1
            self.skip()
            if not self.peek():
                self.is_cut = True

    def key(self) -> str | None:
        """The next member's name, eaten with its colon; None where the text ends within it."""
        match = _KEY.match(self.text, self.at)
        if match is None:
            if _CUT_KEY.match(self.text, self.at):
                self.at = len(self.text)
                self.is_cut = True
                self.open_depths.append(len(self.stack))
                return None
            raise Unreadable("a member without a name")
        self.at = match.end()
        quoted = match["double"] if match["double"] is not None else match["single"]
        return match["bare"] if quoted is None else _unescape(quoted)

    def member_value(self) -> object:
        self.skip()
        char = self.peek()
        if not char:
            self.is_cut = True
        return _NOTHING if char in ("", ",", "}", "]") else self.value()

    # -- scalars -------------------------------------------------------------------------------------------

    def scalar(self) -> object:
        if (number := _NUMBER.match(self.text, self.at)) and any(map(str.isdigit, number[0])):
            if number.end() == len(self.text):
                self.is_cut = True
            if self.ends_value(number.end()):
                self.at = number.end()
                return _number(number[0])
        word = _WORD.match(self.text, self.at)
        if word is None:
            raise Unreadable("no value")
        return self.word(word[0].rstrip(), word.end())

    def word(self, word: str, end: int) -> object:
        """`true`, `None`, or a string that lost its quotes, or one of them."""
        self.at = end
        if end == len(self.text):
            self.is_cut = True
        bare, _, comment = word.partition(" //")
        if (bare := bare.partition(" #")[0].rstrip()) in _LITERALS:
            return _LITERALS[bare]
        if self.peek() in ('"', "'") and self.ends_string(self.at):
            self.at += 1
        elif comment or not self.ends_value(end):
            raise Unreadable("neither a value nor a string")
        self.has_words = True
        return word

    def ends_value(self, at: int) -> bool:
        at = _SPACE.match(self.text, at).end()  # type: ignore[union-attr]
        return self.text[at : at + 1] in ("", ",", "}", "]", "/", "#") or "\n" in self.text[at - 1 : at]

    # -- strings -------------------------------------------------------------------------------------------

    def string(self) -> str:
        opener = self.peek()
        if opener in "\"'" and self.text.startswith(opener * 3, self.at):
            end = self.text.find(opener * 3, self.at + 3)
            if end >= 0:
                start, self.at = self.at + 3, end + 3
                return _unescape(self.text[start:end], opener)
        start = self.at + 1
        end, self.at = self.string_end(_QUOTES[opener], start)
        return _unescape(self.text[start:end], opener)

    def string_end(self, quote: str, start: int) -> tuple[int, int]:
        """Where the string's text ends, and where reading goes on.

        A quote ends the string if what follows it could follow a string there. Unescaped quotes inside come in
        pairs, so among those the first with an even number of them before it is taken; failing that, the first.
        """
        first = -1
        inside = 0
        at = self.next_quote(quote, start)
        while at >= 0:
            if self.ends_string(at, inside):
                if inside % 2 == 0:
                    return at, at + 1
                if first < 0:
                    first = at
            inside += 1
            at = self.next_quote(quote, at + 1)
        if (lost := self.lost_quote(start, first if first >= 0 else len(self.text))) is not None:
            return lost, lost
        if first >= 0:
            return first, first + 1
        return self.open_string_end(start)

    def next_quote(self, quote: str, start: int) -> int:
        """The next quote that no backslash escapes, or -1."""
        at = self.text.find(quote, start)
        while at >= 0:
            slashes = at
            while slashes > start and self.text[slashes - 1] == "\\":
                slashes -= 1
            if (at - slashes) % 2 == 0:
                break
            at = self.text.find(quote, at + 1)
        self.work_left -= (at if at >= 0 else len(self.text)) - start + 1
        if self.work_left < 0:
            raise Unreadable("too many unescaped quotes")
        return at

    def ends_string(self, quote_at: int, inside: int = 0) -> bool:
        """Whether the text goes on behind this quote as it would behind a string's end.

        `inside` is the number of quotes between: with none, comments and lost commas are believed too; with an odd
        number, only a member's name that is expected.
        """
        at = self.after_space(quote_at + 1, inside)
        char = self.text[at : at + 1]
        if char == "":
            return True
        if char == ",":
            return self.continues(at + 1, len(self.stack), inside)
        if char in "}]":
            return self.closes(at, inside)
        is_next_line = "\n" in self.text[quote_at:at]
        return (is_next_line or inside == 0) and self.continues(at, len(self.stack), inside if is_next_line else 1)

    def after_space(self, at: int, inside: int) -> int:
        at = _SPACE.match(self.text, at).end()  # type: ignore[union-attr]
        while inside == 0 and self.text[at : at + 1] in ("/", "#") and (comment := _COMMENT.match(self.text, at)):
            at = _SPACE.match(self.text, comment.end()).end()  # type: ignore[union-attr]
        return at

    def continues(self, at: int, depth: int, inside: int) -> bool:
        """Whether a next member or item of the bracket at this depth starts here, or that bracket's end."""
        at = self.after_space(at, inside)
        char = self.text[at : at + 1]
        if char in ("", "}", "]"):
            return not char or self.closes(at, inside)
        if depth == 0:
            return False
        if self.stack[depth - 1] == "[":
            return _VALUE_START.match(self.text, at) is not None
        key = _NEXT_KEY.match(self.text, at)
        return key is not None and (inside % 2 == 0 or not self.names or self.is_expected(key[1] or key[2] or key[3]))

    def is_expected(self, name: str) -> bool:
        return fold(name) in self.names and fold(name) not in self.seen[-1]

    def closes(self, at: int, inside: int) -> bool:
        """Whether the brackets from here on close what is open, and the text goes on as it would behind them."""
        depth = len(self.stack)
        while (char := self.text[at : at + 1]) in ("}", "]"):
            while depth and _CLOSERS[self.stack[depth - 1]] != char:
                depth -= 1
            depth = max(depth - 1, 0)
            at = _SPACE.match(self.text, at + 1).end()  # type: ignore[union-attr]
        if depth == 0:
            return self.tail.match(self.text, at) is not None
        return char == "" or (char == "," and self.continues(at + 1, depth, inside))

    def lost_quote(self, start: int, end: int) -> int | None:
        """Where the string ends if its closing quote is missing and the next expected member follows."""
        for match in _QUOTED_MEMBER.finditer(self.text, start, end):
            if self.names and self.is_expected(match[1]):
                return match.start()
        return None

    def open_string_end(self, start: int) -> tuple[int, int]:
        """The string that the text ends in: its last quote was escaped by mistake, or forgotten, or it was cut."""
        self.is_cut = True
        if escaped := _ESCAPED_LAST_QUOTE.search(self.text, max(start, len(self.text) - 200)):
            return escaped.start() + 1, escaped.start() + 2
        end = len(self.text)
        if self.stack and (closers := _LAST_CLOSERS.search(self.text, max(start, end - 200))):
            inside = self.text[start : closers.start()]
            if all(inside.count(opener) == inside.count(closer) for opener, closer in _CLOSERS.items()):
                return closers.start(), closers.start()
        return end, end


_CUT_KEY = re.compile(r"(?:[\"'][^\"'\n]*[\"']?|[A-Za-z_$][\w$.-]*)\s*\Z")


def _number(text: str) -> object:
    digits = text.replace("_", "").removeprefix("+")
    try:
        return int(digits, 0) if "x" in digits.lower() else int(digits)
    except ValueError:
        number = Number(digits)
        number.text = text
        return number


def _unescape(raw: str, quote: str = '"') -> str:
    """The string that was meant: JSON's escapes are resolved, a backslash that starts none of them stays."""

    def mend(match: re.Match[str]) -> str:
        found = match[0]
        if found == '"':
            return '\\"'
        if len(found) == 1:
            return "\\\\"
        if found[1] in '"\\/bfnrt' or (found[1] == "u" and len(found) == 6):
            return found
        return found[1] if found[1] in (quote, "'", "`") else "\\" + found

    try:
        value = json.loads(f'"{_ESCAPE.sub(mend, raw)}"', strict=False)
    except ValueError as error:  # pragma: no cover - the pattern above leaves nothing that could fail
        raise Unreadable("a string that cannot be read") from error
    return str(value)
