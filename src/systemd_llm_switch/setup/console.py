"""Owns what a person sees and is asked. It decides nothing."""

from __future__ import annotations

import sys


def heading(text: str) -> None:
    print(f"\n{text}", flush=True)


def done(text: str) -> None:
    print(f"  ✓ {text}", flush=True)


def note(text: str) -> None:
    print(f"  · {text}", flush=True)


def warn(text: str, mend: str = "") -> None:
    """Something to look at, and the command that mends it."""
    print(f"  ! {text}", flush=True)
    if mend:
        print(f"      {mend}", flush=True)


def plain(text: str = "") -> None:
    print(text, flush=True)


def error(text: str) -> None:
    print(f"✗ {text}", file=sys.stderr, flush=True)


def ask(question: str, default: str) -> str:
    """The answer, or the default for an empty one; also at the end of the input."""
    try:
        return input(f"{question} [default: {default}]: ").strip() or default
    except EOFError:
        plain()
        return default
