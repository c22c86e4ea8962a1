"""Reads a small file and the YAML in it. Checks size, depth and aliases before it builds anything.

Must not know what a config means.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from systemd_llm_switch.config.limits import MOST_DEPTH, MOST_FILE_BYTES, MOST_NODES, MOST_PLAIN_CHARACTERS
from systemd_llm_switch.quoting import printable, quoted

# The errors that PyYAML raises, and those that Python raises for values that PyYAML does not expect: `2024-13-45`,
# `!!int abc`, `!!map 5`.
_MALFORMED = (yaml.YAMLError, AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError)

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's loader, if present, is ten times as fast


class UnreadableFile(Exception):
    """The file cannot be read or is malformed. The message says why. It never shows the file's text, which may contain
    keys."""


def read_text(path: Path) -> str:
    """The text of a regular file in UTF-8, of at most `MOST_FILE_BYTES`. Does not block on a FIFO or a device.

    Raises:
        UnreadableFile
    """
    name = printable(str(path))
    try:
        raw = _read(path)
    except OSError as error:
        raise UnreadableFile(f"cannot read {name}: {error.strerror}") from error
    except ValueError as error:  # a NUL or a lone surrogate in the path
        raise UnreadableFile(f"cannot read {name}: this is not a valid path") from error
    if len(raw) > MOST_FILE_BYTES:
        raise UnreadableFile(f"{name} is larger than {MOST_FILE_BYTES} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UnreadableFile(f"{name} is not valid UTF-8: byte 0x{raw[error.start]:02x} in line {line}") from error


def _read(path: Path) -> bytes:
    """Reads at most one byte more than a file may have."""
    # Without O_NONBLOCK, opening a FIFO without a writer would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnreadableFile(f"{printable(str(path))} is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MOST_FILE_BYTES + 1)
    finally:
        os.close(descriptor)


def read_yaml(path: Path) -> Any:
    """The value of the YAML in a file.

    Raises:
        UnreadableFile
    """
    return parse_yaml(read_text(path), printable(str(path)))


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML document. Error messages call the document `name`.

    Raises:
        UnreadableFile
    """
    try:
        _check_bounds(text)
        return yaml.load(text, Loader=_UniqueKeys)
    except _MALFORMED as error:
        raise UnreadableFile(f"{name} is not valid YAML: {_describe(error, text)}") from error


class _UniqueKeys(_Loader):  # type: ignore[misc]
    """In YAML, a later key silently replaces an earlier one; here a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # merged keys may be overridden
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool):
                if key in seen:
                    message = f"duplicate key {quoted(str(key))}"
                    raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
                seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


@dataclass(slots=True)
class _Open:
    """A mapping or a list that is not complete, and how many nodes it has so far."""

    anchor: str | None
    nodes: int = 1


def _check_bounds(text: str) -> None:
    """Checks the YAML as a stream of events, which needs no recursion and does not expand aliases.

    Raises:
        yaml.YAMLError: malformed, too deep, or too much.
    """
    sizes: dict[str, int] = {}
    levels = [_Open(None)]
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append(_Open(event.anchor))
            if len(levels) > MOST_DEPTH:
                raise _too_much(f"it is nested more than {MOST_DEPTH} levels deep", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = levels.pop()
            levels[-1].nodes += closed.nodes
            if closed.anchor:
                sizes[closed.anchor] = closed.nodes
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise _too_much("an alias refers to nothing that is complete above it", event)
            levels[-1].nodes += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            levels[-1].nodes += 1
            if event.anchor:
                sizes[event.anchor] = 1
            if len(event.value) > MOST_PLAIN_CHARACTERS and (event.implicit[0] or event.tag):
                raise _too_much("a value this long must be put in quotes", event)
        if levels[-1].nodes > MOST_NODES:
            raise _too_much(
                f"it holds more than {MOST_NODES} values; an alias counts as all the values it refers to", event
            )


def _too_much(message: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = event.start_mark
    return yaml.MarkedYAMLError(None, None, message, mark)


def _describe(error: Exception, text: str) -> str:
    """The problem and its place, without the text of the line, which may contain a key."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return printable(" ".join(str(error).split()))
    mark = error.problem_mark or error.context_mark
    words = printable(" ".join(word for word in (error.context, error.problem) if word))
    if mark is None:
        return words
    place = f"in line {mark.line + 1}, column {mark.column + 1}"
    line = text.splitlines()[mark.line : mark.line + 1]
    if line and "\t" in line[0][: len(line[0]) - len(line[0].lstrip())]:
        return f"a tab {place}; use spaces"
    return f"{words}, {place}"
