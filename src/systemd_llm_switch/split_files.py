"""The names of a model's files when it is split: `NAME-00001-of-00003.gguf` and so on, as llama.cpp names them."""

from __future__ import annotations

import re

_PART = re.compile(r"-(\d{5})-of-(\d{5})(\.gguf)$", re.IGNORECASE)


def part_names(name: str) -> list[str]:
    """All parts of the model that a file belongs to, by name or path: the file alone, if it is not named as a part."""
    split = _PART.search(name)
    if split is None:
        return [name]
    stem, count = name[: split.start()], int(split[2])
    return [f"{stem}-{number:05}-of-{count:05}{split[3]}" for number in range(1, count + 1)] or [name]


def part_number(name: str) -> int | None:
    """Which part of a model a file is; None if it is not named as a part."""
    split = _PART.search(name)
    return int(split[1]) if split is not None else None


def whole_name(name: str) -> str:
    """The name that a part's model would have in one file."""
    return _PART.sub(".gguf", name)
