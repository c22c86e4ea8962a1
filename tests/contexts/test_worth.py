"""What is worth a file, from measured rates."""

from __future__ import annotations

import pytest

from systemd_llm_switch.contexts.worth import Rates


def rates(tokens_per_s: float = 100, bps: float = 1e9, bytes_per_token: float = 100_000) -> Rates:
    return Rates(tokens_per_s, bps, bps, bytes_per_token)


def test_a_long_prompt_on_a_slow_card_is_worth_it() -> None:
    worth = rates().judge(20_000)
    assert worth.reason is None
    assert worth.read_s == pytest.approx(200)
    assert worth.save_s == pytest.approx(2)


def test_a_short_prompt_is_left_alone() -> None:
    assert "too few" in str(rates(tokens_per_s=1).judge(100).reason)


def test_a_fast_card_reads_again() -> None:
    assert rates(tokens_per_s=100_000).judge(20_000).reason is not None


def test_a_slow_disk_is_not_written() -> None:
    assert rates(bps=10e6).judge(20_000).reason is not None


def test_a_file_that_takes_nearly_as_long_as_reading_is_not_written() -> None:
    assert rates(bps=500e6).judge(20_000).reason is None
    assert rates(bps=30e6).judge(20_000).reason is not None  # 133 s instead of 200


def test_a_gain_that_nobody_notices_is_not_worth_it() -> None:
    assert rates(tokens_per_s=1000).judge(200).reason is not None


def test_the_bound_grows_with_what_reading_takes_and_ends_at_ten_seconds() -> None:
    assert [rates().judge(tokens).bound_s for tokens in (200, 1000, 20_000)] == [2.0, 5.0, 10.0]


def test_the_rate_of_a_few_tokens_is_not_believed() -> None:
    known = Rates()
    known.note_prompt(3, 1.0)
    assert known.tokens_per_s is None


def test_new_measurements_outweigh_old_ones() -> None:
    known = Rates()
    for speed in (100, 200, 200, 200, 200):
        known.note_prompt(speed, 1.0)
    assert known.tokens_per_s == pytest.approx(200, rel=0.05)


def test_the_size_follows_the_last_file() -> None:
    known = Rates()
    known.note_save(1000, 23_000_000, 0.1)
    assert known.size(100) == 2_300_000


def test_a_context_is_saved_before_anything_was_measured() -> None:
    assert Rates().judge(2000).reason is None
