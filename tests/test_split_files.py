"""The parts of a split model have the name of the part at hand, to the letter."""

from __future__ import annotations

import pytest

from systemd_llm_switch.split_files import part_names, part_number, whole_name


@pytest.mark.parametrize("ending", ["gguf", "GGUF"])
def test_the_parts_of_a_split_model(ending: str) -> None:
    second = f"/m/X-00002-of-00002.{ending}"
    assert part_names(second) == [f"/m/X-00001-of-00002.{ending}", second]
    assert part_number(second) == 2


def test_a_file_that_is_not_split_is_the_only_one() -> None:
    assert part_names("a.gguf") == ["a.gguf"]
    assert part_number("a.gguf") is None
    assert whole_name("X-00002-of-00002.gguf") == "X.gguf"
