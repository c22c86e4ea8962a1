"""A module imports only what stands below it in docs/design.md's table of modules."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from support.stack import ROOT

PACKAGE = ROOT / "src" / "systemd_llm_switch"
OWNERS = {
    "web": {"api/application", "api/handlers"},
    "cheroot": {
        "http_server/server", "http_server/connections", "http_server/request", "http_server/gateway",
        "http_server/threadpool",
    },
    "httptools": {"http_server/head", "http_server/body", "backend/incoming"},
    "requests": {"backend/lean_requests"},
    "subprocess": {
        "systemd/programs",
        *(
            f"setup/{name}"
            for name in (
                "card", "llama_server", "python_env", "running_proxy", "systemctl", "user_manager",
            )
        ),
    },
    "jeepney": {"systemd/bus"},
    "yaml": {"config/document", "models/config_entry"},
}  # fmt: skip


@functools.cache
def order() -> tuple[str, ...]:
    """The modules in the table's order, `package/module`."""
    table = (ROOT / "docs" / "design.md").read_text().partition("\n## Modules\n")[2].partition("\n## ")[0]
    return tuple(re.findall(r"^\| `([\w/]+)` \|", table, re.MULTILINE))


def there() -> list[str]:
    """The modules that exist."""
    names = (path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
    return sorted(name for name in names if not name.endswith(("__init__", "__main__")))


def absolute_name(path: Path, node: ast.ImportFrom) -> str:
    """What is imported from, without leading dots."""
    if not node.level:
        return node.module or ""
    parts = (PACKAGE.name, *path.relative_to(PACKAGE).parts)[: -node.level]
    return ".".join((*parts, node.module) if node.module else parts)


@functools.cache
def imported(name: str) -> frozenset[str]:
    """What a module imports: our own modules by their place in the table, others by their top-level name."""
    return frozenset(_imports(name))


def _imports(name: str) -> Iterator[str]:
    path = PACKAGE / f"{name}.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            head, _, rest = absolute_name(path, node).partition(".")
            if head != PACKAGE.name:
                yield head
            elif rest.replace(".", "/") in order():
                yield rest.replace(".", "/")
            else:
                yield from modules_of_package(rest, [alias.name for alias in node.names])


def modules_of_package(package: str, names: list[str]) -> Iterator[str]:
    """What is imported with names of a package: the modules of these names, else all that the package re-exports."""
    for name in names:
        module = f"{package}/{name}" if package else name
        if module in order():
            yield module
        elif package:
            yield from (it for it in order() if it.startswith(f"{package}/"))


def test_every_module_has_its_row() -> None:
    assert sorted(order()) == there()


def test_the_modules_of_a_package_stand_together() -> None:
    packages = [package for package, _ in groupby(name.rpartition("/")[0] or name for name in order())]
    assert len(packages) == len(set(packages))


@pytest.mark.parametrize("name", order())
def test_a_module_imports_downwards(name: str) -> None:
    above = order()[: order().index(name) + 1]
    assert set(imported(name)) & set(above) == set()


@pytest.mark.parametrize("package", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_a_package_says_what_it_owns(package: str) -> None:
    """And what it must not know, and where to start reading."""
    text = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text())) or ""
    assert 3 <= len(text.splitlines()) <= 10
    assert "Must not know" in text or "Must not do" in text
    assert "Start reading at `" in text


@pytest.mark.parametrize(("library", "owners"), OWNERS.items())
def test_a_library_has_its_owners(library: str, owners: set[str]) -> None:
    """What speaks to the outside is in one place."""
    assert {name for name in order() if library in imported(name)} == owners


def test_no_two_test_modules_have_one_name() -> None:
    """pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py") if "node_modules" not in path.parts]
    assert sorted(names) == sorted(set(names))
