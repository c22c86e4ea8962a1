"""`python -m systemd_llm_switch.setup`, as `./setup.sh` calls it: its flags."""

from __future__ import annotations

import argparse

from systemd_llm_switch.setup import steps


def main() -> int:
    """Returns the exit code: 0 done, 1 failed (or `--check` found a problem), 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="./setup.sh",
        description="Sets systemd-llm-switch up for you: one proxy, and one systemd user unit per model.",
        epilog=steps.ANSWERS,
    )
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--demo", action="store_true", help="show it at work: no GPU, llama.cpp or model needed")
    step.add_argument("--check", action="store_true", help="only check what is set up")
    step.add_argument("--uninstall", action="store_true", help="undo the set-up or the demo, and stop everything")
    parser.add_argument("-y", "--yes", action="store_true", help="ask nothing, take the defaults")
    asked = parser.parse_args()
    named = next((name for name in ("demo", "check", "uninstall") if getattr(asked, name)), "setup")
    return steps.run(named, asks_nothing=asked.yes)


raise SystemExit(main())
