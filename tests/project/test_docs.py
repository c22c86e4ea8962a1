"""What the README and docs/ say is what the code has."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from support.stack import ROOT
from systemd_llm_switch import errors
from systemd_llm_switch.config import keys as config_keys
from systemd_llm_switch.openai.endpoints import FORWARDED

DOCS = ROOT / "docs"


def table(page: str, head: str) -> list[list[str]]:
    """The cells of the table whose head starts with these words."""
    rows = (DOCS / page).read_text().partition(f"\n| {head} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def all_errors(root: type[errors.ProxyError]) -> Iterator[type[errors.ProxyError]]:
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


@pytest.mark.parametrize(
    ("head", "keys"),
    [
        ("key in `server:`", config_keys.SERVER),
        ("key of a model", config_keys.MODEL),
        ("key in `repair:`", config_keys.REPAIR),
        ("key in `server.contexts:`", config_keys.CONTEXTS),
    ],
)
def test_every_config_key_is_documented(head: str, keys: dict[str, object]) -> None:
    assert sorted(cells[0].strip("`") for cells in table("configuration.md", head)) == sorted(keys)


PAGES = ["README.md", "AGENTS.md", *(str(page.relative_to(ROOT)) for page in sorted(DOCS.rglob("*.md")))]


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """Of those within the repository."""
    prose = re.sub(r"`[^`\n]*`", "", (ROOT / page).read_text())
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", prose)
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_every_error_is_documented_with_its_status() -> None:
    rows = table("troubleshooting.md", "status, code")
    listed = {(int(cells[0].split()[0]), code) for cells in rows for code in _codes(cells[0])}
    # 405 shares a line with 404.
    listed = {(405, code) if code == "method_not_allowed" else (status, code) for status, code in listed}
    assert listed == {(error.status, error.code) for error in all_errors(errors.ProxyError)}


def _codes(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_every_forwarded_route_is_documented() -> None:
    assert set(FORWARDED) <= set(re.findall(r"`(?:POST )?(/[\w/-]+)`", (DOCS / "http.md").read_text()))


@pytest.mark.parametrize("cells", table("tuning.md", "VRAM"), ids=lambda cells: cells[0])
def test_the_regexes_keep_as_many_layers_on_the_gpu_as_they_say(cells: list[str]) -> None:
    """48 layers in each of the four models."""
    for pattern, on_the_gpu in ((cells[1], cells[2]), (cells[3], cells[4])):
        regex = pattern.strip("`").removesuffix("=CPU")
        in_ram = [layer for layer in range(48) if re.search(regex, f"blk.{layer}.ffn_up_exps.weight")]
        assert in_ram == list(range(int(on_the_gpu), 48))
