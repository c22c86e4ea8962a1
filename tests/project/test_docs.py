"""What the README promises is what the code has."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from support.stack import ROOT
from systemd_llm_switch import errors
from systemd_llm_switch.config import parse
from systemd_llm_switch.openai.endpoints import FORWARDED

README = (ROOT / "README.md").read_text()


def table(head: str) -> list[list[str]]:
    """The cells of the table whose head starts with these words."""
    rows = README.partition(f"\n| {head} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def all_errors(root: type[errors.ProxyError]) -> Iterator[type[errors.ProxyError]]:
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


@pytest.mark.parametrize(
    ("head", "keys"),
    [
        ("key in `server:`", parse.SERVER),
        ("key of a model", parse.MODEL),
        ("key in `repair:`", parse.REPAIR),
    ],
)
def test_every_config_key_is_in_the_readme(head: str, keys: dict[str, object]) -> None:
    assert sorted(cells[0].strip("`") for cells in table(head)) == sorted(keys)


PAGES = ["README.md", "AGENTS.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """Of those within the repository."""
    prose = re.sub(r"`[^`\n]*`", "", (ROOT / page).read_text())
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", prose)
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_every_error_is_in_the_readme_with_its_status() -> None:
    told = {(int(cells[0].split()[0]), code) for cells in table("status, code") for code in _codes(cells[0])}
    # 405 shares a line with 404.
    told = {(405, code) if code == "method_not_allowed" else (status, code) for status, code in told}
    assert told == {(error.status, error.code) for error in all_errors(errors.ProxyError)}


def _codes(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_every_forwarded_route_is_in_the_readme() -> None:
    assert set(FORWARDED) <= set(re.findall(r"`(?:POST )?(/[\w/-]+)`", README))


@pytest.mark.parametrize("cells", table("VRAM"), ids=lambda cells: cells[0])
def test_the_regexes_keep_as_many_layers_on_the_gpu_as_they_say(cells: list[str]) -> None:
    """48 layers in each of the four models."""
    for pattern, on_the_gpu in ((cells[1], cells[2]), (cells[3], cells[4])):
        regex = pattern.strip("`").removesuffix("=CPU")
        in_ram = [layer for layer in range(48) if re.search(regex, f"blk.{layer}.ffn_up_exps.weight")]
        assert in_ram == list(range(int(on_the_gpu), 48))
