"""A module imports only what stands after it in docs/design.md's table of layers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stack import ROOT

PACKAGE = ROOT / "src" / "systemd_llm_switch"
NOT_IN_A_LAYER = {"__init__", "__main__"}
OWNERS = {
    "web": {"application", "handlers"},
    "cheroot": {"server", "connections", "serving", "threads"},
    "requests": {"backend"},
    "subprocess": {"systemd"},
    "jeepney": {"manager_bus"},
    "yaml": {"config_file"},
}


def order() -> list[str]:
    """The modules in the table's order."""
    text = (ROOT / "docs" / "design.md").read_text()
    table = text.partition("## Layers")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ") and "`" in line]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def imported(path: Path) -> Iterator[str]:
    """The top-level names that a module imports, our own ones as `.name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            head, _, rest = (node.module or "").partition(".")
            if head != PACKAGE.name:
                yield head
            elif rest:
                yield f".{rest.partition('.')[0]}"
            else:
                yield from (f".{alias.name}" for alias in node.names)


def files(name: str) -> list[Path]:
    return sorted((PACKAGE / name).glob("*.py")) or [PACKAGE / f"{name}.py"]


def test_every_module_has_its_place() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(order()) == sorted(there - NOT_IN_A_LAYER)


@pytest.mark.parametrize("name", order())
def test_a_module_imports_downwards(name: str) -> None:
    allowed = set(order()[order().index(name) + 1 :])
    ours = {it[1:] for path in files(name) for it in imported(path) if it.startswith(".")}
    assert ours - {"__version__", name} <= allowed


@pytest.mark.parametrize(("library", "owners"), OWNERS.items())
def test_a_library_has_its_owners(library: str, owners: set[str]) -> None:
    """What speaks to the outside is in one place."""
    users = {name for name in order() for path in files(name) if library in imported(path)}
    assert users == owners
