"""Which conversations of a process are kept, and which of the saved ones is restored."""

from __future__ import annotations

import pytest

from contexts.test_fingerprint import LONG, chat
from systemd_llm_switch.contexts.conversations import MOST, Conversations, Timings
from systemd_llm_switch.contexts.entry import Entry, FileMark, parse_entry
from systemd_llm_switch.contexts.fingerprint import Fingerprint, fingerprint
from systemd_llm_switch.contexts.restoring import plan

OTHER = LONG[::-1]


def note(into: Conversations, known: Fingerprint, tokens: int) -> None:
    into.note(known, Timings(0, tokens, 1.0, 10), b"{}", is_chat=True)


def entry(key: str, text: str, used_at: float, tokens: int = 1000) -> Entry:
    mark = FileMark(1, 2, 3)
    return Entry(key, "u.service", "b", "boot", tokens, 9.5, fingerprint(chat(text)), mark, used_at)


def test_a_conversation_that_goes_on_counts_once() -> None:
    seen = Conversations()
    note(seen, fingerprint(chat(LONG)), 1000)
    note(seen, fingerprint(chat(LONG, "a", "b")), 1020)
    assert [(it.prompt, it.turns) for it in seen.most_wanted()] == [(1020, 2)]


def test_a_title_request_does_not_replace_it() -> None:
    seen = Conversations()
    note(seen, fingerprint(chat(LONG)), 1000)
    note(seen, fingerprint(chat("Make a title for: " + OTHER[:2000])), 300)
    assert [it.prompt for it in seen.most_wanted()] == [1000, 300]


def test_a_continued_conversation_comes_before_a_longer_one() -> None:
    seen = Conversations()
    note(seen, fingerprint(chat(LONG)), 1000)
    note(seen, fingerprint(chat(LONG, "a", "b")), 1020)
    note(seen, fingerprint(chat(OTHER)), 5000)
    assert [it.prompt for it in seen.most_wanted()] == [1020, 5000]


def test_only_so_many_are_kept_and_the_newest_always() -> None:
    seen = Conversations()
    for number in range(MOST + 3):
        note(seen, fingerprint(chat(f"{number} {LONG}")), 9000 - number)
    kept = [it.prompt for it in seen.most_wanted()]
    assert len(kept) == MOST
    assert 9000 - MOST - 2 in kept


def test_what_was_only_restored_is_not_saved_again() -> None:
    seen = Conversations()
    seen.note_restored(fingerprint(chat(LONG)), 1000)
    assert seen.most_wanted() == []


def test_a_large_body_is_not_kept() -> None:
    seen = Conversations()
    seen.note(fingerprint(chat(LONG)), Timings(0, 9, 1.0, 1), b"x" * 9_000_000, is_chat=True)
    assert [it.message for it in seen.most_wanted()] == [None]


def test_a_slot_holds_all_but_the_last_token_of_the_reply() -> None:
    seen = Conversations()
    seen.note(fingerprint(chat(LONG)), Timings(24, 1012, 1.0, 16), b"{}", is_chat=True)
    assert seen.most_wanted()[0].tokens == 1051


@pytest.mark.parametrize("told", [None, [], {}, {"cache_n": "1", "prompt_n": 1, "prompt_ms": 1, "predicted_n": 1}])
def test_timings_of_another_form_are_ignored(told: object) -> None:
    assert Timings.of(told) is None


def test_the_conversation_that_is_waited_for_comes_first() -> None:
    entries = [entry("a", LONG, used_at=1), entry("b", OTHER, used_at=2)]
    chosen = plan(entries, [fingerprint(chat(LONG, "x", "y"))])
    assert chosen.first is entries[0]
    assert chosen.others == (entries[1],)


def test_the_oldest_waiting_request_decides() -> None:
    entries = [entry("a", LONG, used_at=1), entry("b", OTHER, used_at=2)]
    wanted = [fingerprint(chat(LONG, "x", "y")), fingerprint(chat(OTHER, "x", "y"))]
    assert plan(entries, wanted).first is entries[0]


def test_where_nobody_goes_on_with_any_the_most_recent_comes_first() -> None:
    entries = [entry("a", LONG, used_at=1), entry("b", OTHER, used_at=2)]
    chosen = plan(entries, [fingerprint(chat("hello"))])
    assert chosen.first is None
    assert chosen.others == (entries[1], entries[0])


def test_an_entry_survives_its_file() -> None:
    one = entry("a", LONG, used_at=5)
    assert parse_entry("a", one.as_text(), 5) == one


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"version": 1}', '{"version": 2}', "[" * 100_000])
def test_another_file_is_not_an_entry(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_entry("a", text, 5)
