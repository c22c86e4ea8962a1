"""What the set-up prints and asks. It decides nothing."""

from __future__ import annotations

import io
import sys


def accept_any_text() -> None:
    """Paths that are not valid UTF-8 are printed with escapes from now on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def heading(text: str) -> None:
    print(f"\n{text}", flush=True)


def done(text: str) -> None:
    print(f"  ✓ {text}", flush=True)


def note(text: str) -> None:
    print(f"  · {text}", flush=True)


def warn(text: str, fix: str = "") -> None:
    """Something to look at, and the command that fixes it."""
    print(f"  ! {text}", flush=True)
    if fix:
        print(f"      {fix}", flush=True)


def plain(text: str = "") -> None:
    print(text, flush=True)


def error(text: str) -> None:
    print(f"✗ {text}", file=sys.stderr, flush=True)


def ask(question: str, default: str) -> str:
    """The answer; the default if it is empty.

    Raises:
        EOFError: the input has ended.
    """
    return input(f"{question} [default: {default}]: ").strip() or default
