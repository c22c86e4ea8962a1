"""The entry of the command: `llm-switch`, and `python -m systemd_llm_switch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from systemd_llm_switch.command import verbs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb that the arguments name, or serves. Returns the exit code."""
    return verbs.run(sys.argv[1:] if argv is None else argv)
