"""What a person reads on the terminal: tables, durations, sizes. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows))
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float) -> str:
    """`8.2 s`, `3 min`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for at, (size, name) in enumerate(_UNITS):
        if seconds >= size:
            text = f"{seconds // size:.0f} {name}"
            rest = seconds % size
            smaller = _UNITS[at + 1] if at + 1 < len(_UNITS) else None
            return f"{text} {rest // smaller[0]:.0f} {smaller[1]}" if smaller and rest >= smaller[0] else text
    raise AssertionError("unreachable: the smallest unit is a minute")


def since(moment: float | None) -> str:
    """How long ago a moment (seconds since the epoch) was."""
    return "-" if moment is None else duration(max(0.0, time.time() - moment))


def clock(moment: float) -> str:
    """A moment as the local time; with its date, if that is another day."""
    then, now = time.localtime(moment), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)


def size(count: float) -> str:
    """`66 MB`."""
    for name in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {name}"
        count /= 1000
    return f"{count:.1f} GB"


def error_lines(message: str) -> str:
    """An error message with each line of the journal that it quotes on a line of its own."""
    reason, _, quoted = message.partition(" Last journal lines: ")
    return "\n".join((reason, *(f"    {line}" for line in quoted.split(" | ") if line)))


def number(count: object) -> str:
    """`-` for what is not known."""
    return "-" if count is None else f"{count:g}" if isinstance(count, float) else str(count)


def as_json(value: object) -> str:
    """For programs."""
    return json.dumps(value, indent=2, ensure_ascii=False)
