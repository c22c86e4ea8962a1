"""Regular expressions mean the same on each Python that the proxy runs on."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from support.stack import ROOT

POSSESSIVE_GROUP = re.compile(r"(?<!\\)\)(?:[*+?]|\{\d*,?\d*\})\+")
MODULES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_no_group_is_possessive(module: Path) -> None:
    """Up to Python 3.11.4 (Debian 12 has 3.11.2), `(?:ab?)*+` matches wrongly; `(?>(?:ab?)*)` is the same and right.
    See gh-100061 and gh-106052 of CPython."""
    strings = [node.value for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Constant)]
    assert [text for text in strings if isinstance(text, str) and POSSESSIVE_GROUP.search(text)] == []
