"""The commands that messages advise, as they are typed with this installation: a clone, or a package of pip."""

from __future__ import annotations

import shlex
from pathlib import Path

_PACKAGE = Path(__file__).absolute().parent


def find_checkout() -> Path | None:
    """The folder of a clone, when this package runs from one; None when it was installed (`pip install`)."""
    top = _PACKAGE.parents[1]
    return top if (top / "setup.sh").is_file() and (top / "deploy/systemd").is_dir() else None


def how_to(step: str, checkout: Path | None) -> str:
    """The command for a step of the set-up."""
    if checkout is None:
        return f"llm-switch {step}"
    return "./setup.sh" if step == "setup" else f"./setup.sh --{step}"


def who_listens(port: int | str) -> str:
    """The command that shows which program has a port."""
    return f"ss -ltnp 'sport = :{port}'"


def logs_of(model: str) -> str:
    """The command that shows a model's log."""
    return f"llm-switch logs {shlex.quote(model)}"
