"""Foreign text, made safe to show: cut, and printable on one line. Pure.

Whatever a client, a backend or a file sent goes through here before it is logged or put into a message. A newline would
begin a log entry of its own, an escape sequence would act on the reader's terminal, and ten megabytes would stay ten.
"""

from __future__ import annotations

LIMIT = 200  # characters of foreign text in a log line or a message

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+:/@%")
_MOST_UTF8_BYTES = 4  # of one character


def quoted(text: str | bytes, limit: int = LIMIT) -> str:
    """The text in quotation marks, as Python writes it: `'a\\nb'`. At most `limit` characters of it are shown, and how
    many more there were."""
    return _shown(text, limit, "'")


def printable(text: str | bytes, limit: int = LIMIT) -> str:
    """The text without quotation marks, for the end of a sentence: `failed: no such file`."""
    return _shown(text, limit, "")


def field(text: str | bytes, limit: int = LIMIT) -> str:
    """The text as the value of a field in a log line: a plain word as it is, `-` for none, and all else quoted, so that
    no text can add a field (`tool=x status=200`)."""
    if not text:
        return "-"
    shown = text if isinstance(text, str) and len(text) <= limit else ""
    return shown if shown and _PLAIN.issuperset(shown) else quoted(text, limit)


def _shown(text: str | bytes, limit: int, mark: str) -> str:
    """At most `limit` characters between two marks, and what was cut."""
    size, unit, is_whole = len(text), "characters", True
    if isinstance(text, bytes):
        unit, is_whole = "bytes", size <= limit * _MOST_UTF8_BYTES
        text = text[: limit * _MOST_UTF8_BYTES].decode("utf-8", "surrogateescape")
    if size <= limit and text.isprintable() and not (mark and ("'" in text or "\\" in text)):
        return f"{mark}{text}{mark}"
    kept, length = [], 0
    for character in text[:limit]:
        escaped = _escaped(character, mark)
        length += len(escaped)
        if length > limit:
            break
        kept.append(escaped)
    shown = f"{mark}{''.join(kept)}{mark}"
    return shown if is_whole and len(kept) == len(text) else f"{shown}… ({size} {unit} in all)"


def _escaped(character: str, mark: str) -> str:
    if mark and character in ("'", "\\"):
        return f"\\{character}"
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
