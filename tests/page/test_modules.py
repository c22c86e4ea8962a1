"""The page's modules fit together. No build step would notice a name that is missing."""

from __future__ import annotations

import re

import pytest

from systemd_llm_switch.page import files

IMPORT = re.compile(r'^import \{ ([^}]+) \} from "\./([a-z]+\.js)";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?:async )?(?:const|function\*?|class) (\w+)", re.MULTILINE)
MODULES = sorted(name for name in files._names() if name.endswith(".js"))


def text(name: str) -> str:
    file = files.find(name)
    assert file is not None, name
    return file.body.decode()


def imports(name: str) -> list[tuple[str, list[str]]]:
    """What a module takes from the others."""
    return [(source, re.split(r",\s*", names.strip())) for names, source in IMPORT.findall(text(name))]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_what_another_exports(name: str) -> None:
    for source, names in imports(name):
        assert set(names) <= set(EXPORT.findall(text(source))), source


@pytest.mark.parametrize("name", MODULES)
def test_a_module_uses_what_it_imports(name: str) -> None:
    body = IMPORT.sub("", text(name))
    unused = [it for _, names in imports(name) for it in names if not re.search(rf"\b{it}\b", body)]
    assert unused == []


def test_every_module_is_reached_from_the_page() -> None:
    reached, left = set[str](), ["app.js"]
    while left:
        name = left.pop()
        reached.add(name)
        left += [source for source, _ in imports(name) if source not in reached]
    assert reached == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_makes_html_of_text(name: str) -> None:
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text(name)) == []
