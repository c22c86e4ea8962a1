"""What would hold up every other request is refused before it is parsed; blanks around JSON are skipped quickly."""

from __future__ import annotations

import json

import pytest

from support.interpreter import longest_hold_s
from systemd_llm_switch.openai.decoder import Decoder, TooLarge
from systemd_llm_switch.openai.json_cost import MAX_BACKSLASHES
from systemd_llm_switch.openai.shapes import load


@pytest.mark.parametrize("blanks", [0, 1, 32_768, 65_535, 65_536, 65_537, 200_000])
def test_blanks_around_it_mean_nothing(blanks: int) -> None:
    for text in (b"[1, 2]", b"{}"):
        assert Decoder().decode(b" " * blanks + text + b"\r\n" * blanks) == json.loads(text)
    with pytest.raises(ValueError, match="Expecting value"):
        Decoder().decode(b" \t" * blanks)


@pytest.mark.parametrize("other", [b"\v", b"\f", b"\x1c", b"\xa0", b"\0"])
def test_only_jsons_own_blanks_are_skipped(other: bytes) -> None:
    for text in (other * 65_536 + b"[]", b"[]" + other * 65_536):
        with pytest.raises(ValueError, match=r"."):
            Decoder().decode(text)


def test_others_run_while_many_blanks_are_skipped() -> None:
    """Python's decoder skips them with a pattern, in one go. On a busy machine, one of several tries is quick."""
    raw = b" " * 10_000_000 + b"[1]" + b" " * 10_000_000
    hold_s = min(longest_hold_s(lambda: Decoder().decode(raw)) for _ in range(5))
    assert hold_s < longest_hold_s(lambda: json.loads(raw)) / 2


def test_more_backslashes_than_python_reads_in_a_moment_are_refused() -> None:
    """Python does not let other threads run before it is done with a string: 0.4 s for 32 million escapes."""
    escapes = rb"\n" * MAX_BACKSLASHES
    assert Decoder().decode(b'"' + escapes + b'"') == "\n" * MAX_BACKSLASHES
    with pytest.raises(TooLarge, match="more than 4000000 backslashes"):
        Decoder().decode(b'"' + escapes + b'\\n"')


@pytest.mark.parametrize(("count", "is_read"), [(10, True), (100_000, False)])
def test_halves_of_surrogate_pairs_are_read_where_they_are_few(count: int, is_read: bool) -> None:
    """15 MB of them take Python two seconds."""
    raw = b'"' + b"\xed\xa0\x80" * count + b'"'
    if is_read:
        assert load(raw) == "\ud800" * count
    else:
        with pytest.raises(ValueError, match="codec can't decode"):
            load(raw)
