"""Finds the end of a string whose quotes cannot be trusted, and reads its value.

Models forget to escape the quotes and the newlines of the code they put into an argument. What follows a quote tells
whether it could be the string's end; quotes inside come in pairs, so an even number before it makes it likely.
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring as _scan  # type: ignore[attr-defined]

from .budget import Budget
from .text import fold

CLOSER_OF = {"{": "}", "[": "]"}
SPACE = re.compile(r"\s*+")
COMMENT = re.compile(r"//[^\n]*+|#[^\n]*+|/\*.*?(?:\*/|\Z)", re.DOTALL)
_QUOTE_WORK = 60
_CHECK_EVERY = 10_000
_NEXT_KEY = re.compile(
    r"(?:\"((?>(?:[^\"\\\n]|\\.){1,80}))\"|'((?>(?:[^'\\\n]|\\.){1,80}))'|([A-Za-z_$][\w$-]{0,80}+)"
    r"|“([^“”\n]{1,80}+)”)\s*+[:：]"
)
_NEXT_PAIR = re.compile(_NEXT_KEY.pattern.removesuffix("[:：]") + "(?:[:：]|=>?+)")
"""The same in an object that has written a member with an equals sign."""
_NEXT_ITEM = re.compile(r"([\"'])[^\"'\\\n]*+\1\s*+(?:[,，;\]\"']|\Z)|\{\s*+[\"']?[\w$.-]{1,80}+[\"']?\s*+[:：]")
"""What starts here is surely another item of a list, although no comma came before it."""
_NEXT_ITEM_AT_ONCE = re.compile(r"([\"'])[^\"'\\\n]++\1\s*+[,，\]]")
_COMMAS = (",", "，", ";")
_LONE_STRING = re.compile(r"([\"'])[^\"'\n]{1,80}+\1\s*+(?:[,}]|\Z)")
_NAME = re.compile(r"[\w$.-]+")
_ANOTHER = re.compile(r",?\s*+\{\s*+[\"']?([\w$.-]{1,80}+)[\"']?\s*+:")
_QUOTED_MEMBER = re.compile(r",\s*+[\"']([\w$.-]{1,80}+)[\"']\s*+:")
_VALUE = re.compile(r"[\"'\[{]|-?\d|(?:true|false|null|True|False|None)\b")
_ESCAPED_LAST_QUOTE = re.compile(r"\\[\"']\s*+[}\]][}\]\s]*+\Z")
_LAST_CLOSERS = re.compile(r"[}\]][}\]\s]*+\Z")
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.|\Z)|\"", re.DOTALL)
_QUOTE_BEHIND_COMMA = re.compile(r",\s*+[\"']")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:(?>(?:\\(?!u[0-9a-fA-F]{4})[\w .()&~$%+-]++)+)\\?\Z")
"""A path whose backslashes were not doubled: none of them is an escape."""
_STRUCTURAL = frozenset(',}]"')
_ENDINGS = 200
"""So many characters at the text's end may be brackets that belong to what is around its last string."""


class Unreadable(ValueError):
    """Not even leniently JSON, or so ambiguous that reading it would be guessing."""


class Exhausted(Unreadable):
    """More work than a text of this length deserves; another attempt at it would not end better."""


class Ambiguous(Unreadable):
    """What is there may mean two things, and nothing says which: another reader would only guess."""


class StringReader:
    """A text, how far it was read, and the brackets around that place.

    `names` are the folded names that members are expected to have; `tail` must match behind the outermost bracket for
    a quote before it to end its string. With `trusts_names`, a string with quotes inside ends only before a member
    that is expected.
    """

    def __init__(
        self, text: str, start: int, names: frozenset[str], tail: re.Pattern[str], trusts_names: bool, budget: Budget
    ) -> None:
        self.text = text
        self.at = start
        self.names = names
        self.tail = tail
        self.trusts_names = trusts_names
        self.stack: list[str] = []
        self.seen: list[set[str]] = []
        self.is_cut = False
        self.doubts = 0
        self.has_inner_quotes = False
        self.has_raw_newlines = False
        self.has_equals = False
        self.work_left = 4 * (len(text) - start) + 1_000_000
        self.budget = budget
        self.work_unchecked = 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def read_string(self, closer: str) -> str:
        """The string whose opening quote is next."""
        if (end := self.triple_quoted_end()) is not None:
            start, self.at = self.at + 3, end + 3
            return unescape(self.text[start:end], closer)
        start = self.at + 1
        end, self.at = self.string_end(closer, start)
        self.has_raw_newlines = self.has_raw_newlines or self.text.find("\n", start, end) >= 0
        return unescape(self.text[start:end], closer)

    def triple_quoted_end(self) -> int | None:
        """Where a string in Python's triple quotes ends; None if it is not one."""
        quotes = self.text[self.at : self.at + 3]
        if quotes not in ('"""', "'''", "```") or self.text.startswith(quotes[0], self.at + 3):
            return None
        end = self.text.find(quotes, self.at + 3)
        return end if end >= 0 and self.ends_string(end + 2, inside=1) else None

    def string_end(self, quote: str, start: int) -> tuple[int, int]:
        """Where the string's text ends, and where reading goes on."""
        first = -1
        inside = 0
        at = self.next_quote(quote, start)
        while at >= 0:
            if (inside % 2 == 0 or first < 0) and self.ends_string(at, inside):
                if inside % 2 == 0:
                    return at, at + 1
                first = at
            inside += 1
            self.has_inner_quotes = True
            self.spend(_QUOTE_WORK)
            at = self.next_quote(quote, at + 1)
        self.doubts += 1
        if lost := self.lost_quote(start, first):
            return lost
        if first >= 0:
            if self.stack and self.stack[-1] == "[" and _QUOTE_BEHIND_COMMA.search(self.text, start, first):
                raise Ambiguous("a list whose quotes do not pair")
            return first, first + 1
        if inside:
            raise Unreadable("unescaped quotes in a string without an end")
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
        self.spend((at if at >= 0 else len(self.text)) - start)
        return at

    def spend(self, work: int) -> None:
        """Keeps the time linear: strings that run into each other would be looked through again and again."""
        self.work_left -= work
        if self.work_left < 0:
            raise Exhausted("too many unescaped quotes")
        self.work_unchecked += work
        if self.work_unchecked >= _CHECK_EVERY:
            self.work_unchecked = 0
            self.budget.check()

    # -- what follows a quote ------------------------------------------------------------------------------

    def ends_string(self, quote_at: int, inside: int = 0) -> bool:
        """Whether the text goes on behind this quote as it would behind a string's end.

        `inside` is the number of quotes in the string so far: comments and lost commas are believed only with none.
        """
        at = self.after_space(quote_at + 1, inside)
        char = self.text[at : at + 1]
        if char == "":
            return True
        if char == "," or (char in _COMMAS and inside == 0):
            return self.continues(at + 1, len(self.stack), inside)
        if char in "}]":
            return self.closes(at, len(self.stack), inside)
        if inside or (at == quote_at + 1 and not self.is_item_at_once(quote_at, at)):
            return False
        return self.follows_without_comma(quote_at, at)

    def after_space(self, at: int, inside: int) -> int:
        """Over white space and, where these are believed, comments that end before the text does."""
        if self.text[at : at + 1] in _STRUCTURAL:
            return at
        at = SPACE.match(self.text, at).end()  # type: ignore[union-attr]
        while inside == 0 and self.text[at : at + 1] in ("/", "#") and (comment := COMMENT.match(self.text, at)):
            self.spend(comment.end() - at)
            if comment.end() == len(self.text):
                return at
            at = SPACE.match(self.text, comment.end()).end()  # type: ignore[union-attr]
        return at

    def continues(self, at: int, depth: int, inside: int) -> bool:
        """Whether a next member or item of the bracket at this depth starts here, or that bracket ends."""
        at = self.after_space(at, inside)
        while inside == 0 and self.text.startswith(",", at):
            at = self.after_space(at + 1, inside)
        char = self.text[at : at + 1]
        if char in ("", "}", "]"):
            return not char or self.closes(at, depth, inside)
        if depth == 0:
            return False
        if self.stack[depth - 1] == "[":
            return _VALUE.match(self.text, at) is not None
        key = (_NEXT_PAIR if self.has_equals else _NEXT_KEY).match(self.text, at)
        if key is None and inside == 0 and self.names:
            key = _NEXT_PAIR.match(self.text, at)
            if key is not None:
                return self.is_expected(_name(key))
        if key is None:
            # A name without a value, or a value without a name: then the object is unreadable, not this string longer.
            return inside == 0 and _LONE_STRING.match(self.text, at) is not None
        name = _name(key)
        if inside == 0 or (inside % 2 == 0 and not self.trusts_names and not key[3] and _NAME.fullmatch(name)):
            return True
        return self.is_expected(name)

    def is_item_at_once(self, quote_at: int, at: int) -> bool:
        """Whether another item of a list follows without any space, as in `["a""b"]`."""
        is_empty = self.text[quote_at - 1] == self.text[quote_at]
        in_list = bool(self.stack) and self.stack[-1] == "["
        return in_list and not is_empty and _NEXT_ITEM_AT_ONCE.match(self.text, at) is not None

    def follows_without_comma(self, quote_at: int, at: int) -> bool:
        is_next_line = "\n" in self.text[quote_at:at]
        if self.stack and self.stack[-1] == "[":
            if is_next_line:
                return self.text[at] in "\"'[{"
            return _NEXT_ITEM.match(self.text, at) is not None
        key = _NEXT_KEY.match(self.text, at)
        if key is None or not self.stack:
            return False
        return not key[3] or self.is_expected(_name(key))

    def is_expected(self, name: str) -> bool:
        """Whether a member of this name is still to come; without any names, each may be."""
        return not self.names or (fold(name) in self.names and not (self.seen and fold(name) in self.seen[-1]))

    def closes(self, at: int, depth: int, inside: int) -> bool:
        """Whether the brackets from here on close what is open at this depth, and the text goes on as it would behind
        them. Another object that starts with a name that is expected is not part of a string either."""
        if self._closes_as_written(at, depth, inside):
            return True
        is_wrong = inside == 0 and depth > 1 and CLOSER_OF[self.stack[depth - 1]] != self.text[at]
        return is_wrong and self._goes_on(at + 1, depth - 1)

    def _closes_as_written(self, at: int, depth: int, inside: int) -> bool:
        while (char := self.text[at : at + 1]) in ("}", "]"):
            while depth and CLOSER_OF[self.stack[depth - 1]] != char:
                depth -= 1
            depth = max(depth - 1, 0)
            end = at + 1
            at = self.after_space(end, inside)
        if depth == 0:
            another = _ANOTHER.match(self.text, at)
            is_another = another is not None and (not self.names or fold(another[1]) in self.names)
            return is_another or self.tail.match(self.text, end) is not None
        if inside == 0 and self.stack[depth - 1] == "[" and _NEXT_ITEM.match(self.text, at):
            return True
        return char == "" or (char == "," and self.continues(at + 1, depth, inside))

    def is_wrong_closer(self, at: int) -> bool:
        """Whether a bracket here ends the innermost value, although it has the other kind: `["a"}, "b": 1}`.

        It does if what follows fits only then.
        """
        char = self.text[at : at + 1]
        if char not in ("}", "]") or len(self.stack) < 2:
            return False
        outer = len(self.stack)
        while outer and CLOSER_OF[self.stack[outer - 1]] != char:
            outer -= 1
        depth = outer - 1 if outer else len(self.stack)
        return not self._goes_on(at + 1, depth) and self._goes_on(at + 1, len(self.stack) - 1)

    def _goes_on(self, at: int, depth: int) -> bool:
        """Whether the text from here on is what follows a value in the bracket at this depth (0: in none)."""
        end = at
        at = self.after_space(at, 0)
        self.spend(at - end)
        while (char := self.text[at : at + 1]) in ("}", "]"):
            if not depth or CLOSER_OF[self.stack[depth - 1]] != char:
                return False
            depth -= 1
            end = at + 1
            at = self.after_space(end, 0)
            self.spend(at - end + 1)
        if depth == 0:
            return self.tail.match(self.text, end) is not None
        if char not in _COMMAS:
            return False
        at = self.after_space(at + 1, 0)
        is_key = _NEXT_KEY.match(self.text, at) is not None
        if self.stack[depth - 1] == "{":
            return is_key
        return not is_key and _VALUE.match(self.text, at) is not None

    # -- strings without their closing quote ---------------------------------------------------------------

    def lost_quote(self, start: int, first: int) -> tuple[int, int] | None:
        """The string's end if its closing quote is missing, or escaped, and a member that is expected follows."""
        end = first if first >= 0 else len(self.text)
        self.spend(end - start)
        for match in _QUOTED_MEMBER.finditer(self.text, start, end):
            if self.names and self.is_expected(match[1]):
                at = match.start()
                is_escaped = self.text.startswith('\\"', at - 2) and self.text.count('\\"', start, at) % 2 == 1
                return (at - 1, at) if is_escaped else (at, at)
        return None

    def open_string_end(self, start: int) -> tuple[int, int]:
        """The string that the text ends in: its last quote was escaped by mistake, or forgotten, or it was cut."""
        self.is_cut = True
        end = len(self.text)
        if escaped := _ESCAPED_LAST_QUOTE.search(self.text, max(start, end - _ENDINGS)):
            return escaped.start() + 1, escaped.start() + 2
        if self.stack and (closers := _LAST_CLOSERS.search(self.text, max(start, end - _ENDINGS))):
            inside = self.text[start : closers.start()]
            if all(inside.count(opener) == inside.count(closer) for opener, closer in CLOSER_OF.items()):
                return closers.start(), closers.start()
        return end, end


def _name(key: re.Match[str]) -> str:
    return key[3] or key[4] or unescape(key[1] or key[2])


def unescape(raw: str, quote: str = '"') -> str:
    """The string that was meant: JSON's escapes are resolved, a backslash that starts none of them stays.

    Where newlines *and* quotes stand in it unescaped, and not just by a slip here and there, the model wrote the text
    as it is: then a backslash is one too (`print("a\\n")` keeps its two characters).
    """
    if "\\" not in raw or _is_verbatim(raw, quote):
        return raw

    def repaired_escape(match: re.Match[str]) -> str:
        found = match[0]
        if found == '"':
            return '\\"'
        if len(found) == 1:
            return "\\\\"
        if found[1] in '"\\/bfnrt' or (found[1] == "u" and len(found) == 6):
            return found
        if found[1] == "x" and len(found) == 4 and quote == "'":
            return f"\\u00{found[2:]}"
        return found[1] if found[1] in (quote, "'", "`") else "\\" + found

    try:
        value, end = _scan(f'{raw}"', 0, False)
    except ValueError:
        end = -1
    return value if end == len(raw) + 1 else str(json.loads(f'"{_ESCAPE.sub(repaired_escape, raw)}"', strict=False))


def _is_verbatim(raw: str, quote: str) -> bool:
    if _WINDOWS_PATH.match(raw):
        return True
    escaped = raw.count(f"\\{quote}")
    return "\n" in raw and 4 * (raw.count(quote) - escaped) > escaped
