"""A kernel that refuses further threads, within a block."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LARGEST_STACK = 1 << 47  # more than the address space has


@contextmanager
def no_more_threads() -> Iterator[None]:
    """Python threads cannot be started by anybody within the block: their stacks would be too large."""
    before = threading.stack_size(_LARGEST_STACK)
    try:
        yield
    finally:
        threading.stack_size(before)
