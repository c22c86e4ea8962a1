"""What the proxy logs: foreign text on one bounded line, and refusals of one kind at a bounded rate."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.no_threads import no_more_threads
from support.stack import ROOT
from systemd_llm_switch.log_writer import LogWriter, Patience
from systemd_llm_switch.logs import MAX_LINE_BYTES, LineFormatter
from systemd_llm_switch.quoting import LIMIT, field, printable, quoted
from systemd_llm_switch.throttle import Throttle

# --- foreign text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "'plain'"), ("Größe", "'Größe'"), ("", "''"), ("it's", r"'it\'s'"), ("a\\n", r"'a\\n'"),
        ("a\nb\r", r"'a\nb\r'"), ("\x1b[31m", r"'\x1b[31m'"), ("\x7f\x00", r"'\x7f\x00'"), ("\ud800", r"'\ud800'"),
        ("a\u2028b", r"'a\u2028b'"), ("a\u202eb", r"'a\u202eb'"), (b"a\nb", r"'a\nb'"), (b"\xff", r"'\xff'"),
        (b"\xc3" * 2, r"'\xc3\xc3'"),
        ("Größe".encode(), "'Größe'"),
    ],
)  # fmt: skip
def test_text_is_shown_as_python_writes_it(text: str | bytes, shown: str) -> None:
    assert quoted(text) == shown


def test_long_text_is_cut_and_its_length_named() -> None:
    assert quoted("x" * 201) == f"'{'x' * 200}'… (201 characters in all)"
    assert quoted(b"x" * 60_000, 10) == "'xxxxxxxxxx'… (60000 bytes in all)"
    assert quoted("x" * 200) == f"'{'x' * 200}'"


@pytest.mark.parametrize("show", [quoted, printable, field])
@given(text=st.one_of(st.text(), st.binary()), times=st.integers(1, 50))
def test_no_text_is_shown_longer_than_the_limit_or_on_two_lines(
    show: Callable[[str | bytes], str], text: str | bytes, times: int
) -> None:
    shown = show(text * times)
    assert shown.isprintable()
    assert len(shown) <= LIMIT + len("''… (10000 characters in all)")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("read_file", "read_file"), ("", "-"), ("x status=200", "'x status=200'"), ("a=b", "'a=b'"),
        ("x\nrequest model=FORGED", r"'x\nrequest model=FORGED'"),
    ],
)  # fmt: skip
def test_a_field_holds_one_word_or_a_quoted_text(text: str, shown: str) -> None:
    assert field(text) == shown


# --- a record is a line -----------------------------------------------------------------------------


def formatted(message: str, *arguments: object, error: BaseException | None = None) -> str:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, message, arguments, info)
    return LineFormatter("%(message)s", has_priority=True).format(record)


def test_a_newline_in_an_argument_begins_no_entry() -> None:
    assert formatted("repair tool=%s", "x\nrequest model=FORGED") == r"<4>repair tool=x\nrequest model=FORGED"


@pytest.mark.parametrize("letter", ["x", "ö", "\U0001f600", "\x00", "\ud800", "\n"])
@pytest.mark.parametrize("count", [400, 1_997, 1_998, 2_500, 1_000_000])
def test_no_line_is_longer_than_its_limit(letter: str, count: int) -> None:
    line = formatted("%s", letter * count)
    assert len(line.encode()) + 1 <= MAX_LINE_BYTES
    assert "\n" not in line
    if len(letter.encode("utf-8", "replace")) * count > MAX_LINE_BYTES:
        assert line.endswith(f"({count} characters in all)")


def raised(message: str) -> Exception:
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


def test_a_traceback_keeps_its_lines_and_none_of_them_looks_like_an_entry() -> None:
    lines = formatted("crashed", error=raised("bad\nrequest model=FORGED\x1b[2J")).split("\n")
    assert lines[0] == "<4>crashed"
    assert len(lines) > 3
    assert all(line.startswith("<4>  | ") for line in lines[1:])
    assert lines[-1] == r"<4>  | request model=FORGED\x1b[2J"


def test_a_traceback_of_any_length_is_bounded() -> None:
    text = formatted("crashed", error=raised("x" * 100_000 + "\n" * 100_000))
    assert len(text.split("\n")) < 70
    assert all(len(line.encode()) < MAX_LINE_BYTES for line in text.split("\n"))


def test_a_long_traceback_keeps_its_beginning_and_its_end() -> None:
    """The cause is in its last lines."""
    lines = formatted("crashed", error=raised("\n".join(map(str, range(1000))))).split("\n")
    assert lines[1] == "<4>  | Traceback (most recent call last):"
    assert lines[-30:] == [f"<4>  | {number}" for number in range(970, 1000)]


@pytest.mark.parametrize("count", range(1_970, 2_000))
def test_a_line_of_a_traceback_is_as_long_as_any_other_at_most(count: int) -> None:
    lines = formatted("crashed", error=raised("x" * count)).split("\n")
    assert all(len(line) + 1 <= MAX_LINE_BYTES for line in lines)


@pytest.mark.parametrize(("journal", "start"), [("1:2", "<6>"), ("", "20")])
def test_the_set_up_writes_for_the_journal_or_for_a_person(journal: str, start: str) -> None:
    code = "import logging; from systemd_llm_switch import logs; logs.set_up(); logging.info('a\\nb')"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"JOURNAL_STREAM": journal, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ran.stderr.startswith(start)
    assert ran.stderr.endswith("a\\nb\n")


# --- refusals ---------------------------------------------------------------------------------------


def test_an_error_that_ends_a_thread_is_logged_like_any_other() -> None:
    code = """\
import threading
from systemd_llm_switch import logs
def fail():
    raise ValueError("a\\n<3>forged \\x1b[31m")
logs.set_up()
threading.Thread(target=fail, name="x").start()"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "src"), "JOURNAL_STREAM": "1:1"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    lines = ran.stderr.splitlines()
    assert lines[0] == "<3>thread_crashed name=x"
    assert all(line.startswith("<3>  | ") for line in lines[1:])
    assert r"<3>  | <3>forged \x1b[31m" in lines


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "", 0, text, None, None)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_hangs_holds_nobody_up(kind: str) -> None:
    """journald, for example. Lines are lost, and the next one that can be written says how many."""
    reader, writer = ends_of(kind)
    handler = LogWriter(writer, patience_s=0.01)
    for number in range(5000):
        handler.handle(record(f"line {number} {'x' * 1000}"))
    os.set_blocking(reader, False)
    lines = read_all(reader)
    handler.handle(record("the last"))
    assert 10 < len(lines) < 5000
    assert read_all(reader)[-2:] == [f"lines_lost count={5000 - len(lines)}", "the last"]
    os.close(reader)
    handler.handle(record("to nobody"))
    os.close(writer)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_is_slower_than_a_burst_gets_every_line(kind: str) -> None:
    reader, writer = ends_of(kind)
    handler = LogWriter(writer, patience_s=60)

    def burst() -> None:
        for number in range(3000):  # ten times as much as there is room for
            handler.handle(record(f"line {number} {'x' * 1000}"))

    threading.Thread(target=burst).start()
    with open(reader, "rb") as file:  # noqa: PTH123  (a descriptor has no path)
        assert [int(line.split()[1]) for line in itertools.islice(file, 3000)] == list(range(3000))
    os.close(writer)


def test_in_the_long_run_a_tenth_of_all_time_is_waited_for_a_reader_that_hangs() -> None:
    now = waited_s = 0.0
    patience = Patience(1, now)
    while now < 200:
        now += 0.01  # until the next line
        wait_s = patience.begin_wait(now)
        now += wait_s
        waited_s += wait_s
        patience.end_wait(now)
    assert 0.08 * now < waited_s < 1 + 0.1 * now


def test_however_long_nobody_had_to_wait_a_wait_has_its_limit() -> None:
    patience = Patience(1, 0)
    assert patience.begin_wait(100_000) == 1


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_lines_for_a_reader_that_hangs_seldom_wait(kind: str) -> None:
    """A thread that waits gives its processor up, which the kernel counts."""
    reader, writer = ends_of(kind)
    handler = LogWriter(writer, patience_s=0.01)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    for _ in range(1000):
        handler.handle(record("x" * 1000))
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < 500
    os.close(reader)
    os.close(writer)


def ends_of(kind: str) -> tuple[int, int]:
    """To read from and to write to."""
    if kind == "pipe":
        return os.pipe()
    reader, writer = (end.detach() for end in socket.socketpair())
    return reader, writer


def read_all(descriptor: int) -> list[str]:
    """The lines that can be read now."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(descriptor, 1 << 20):
            data += piece
    return data.decode().split("\n")[:-1]


def test_a_long_traceback_goes_whole_through_a_pipe() -> None:
    reader, writer = os.pipe()
    LogWriter(writer).handle(record("a\n" * 20_000))
    os.set_blocking(reader, False)
    assert read_all(reader) == [*["a"] * 20_000, ""]
    os.close(reader)
    os.close(writer)


def test_a_line_after_a_torn_one_is_a_line_of_its_own() -> None:
    reader, writer = os.pipe()
    handler = LogWriter(writer, patience_s=0.01)
    handler.handle(record("ab\n" * 100_000))  # more than the pipe takes
    os.set_blocking(reader, False)
    assert len(read_all(reader)) < 100_000
    handler.handle(record("next"))
    assert read_all(reader) == ["", "next"]
    os.close(reader)
    os.close(writer)


def test_a_line_after_lost_ones_begins_where_the_last_one_ended() -> None:
    """Nothing of the lost ones was written, so no line is torn."""
    reader, writer = os.pipe()
    handler = LogWriter(writer, patience_s=0)
    for _ in range(200):
        handler.handle(record("x" * 1000))
    os.set_blocking(reader, False)
    written = len(read_all(reader))
    handler.handle(record("next"))
    assert read_all(reader) == [f"lines_lost count={200 - written}", "next"]
    os.close(reader)
    os.close(writer)


def test_a_full_disk_is_no_error_and_its_lines_are_counted(capfd: pytest.CaptureFixture[str]) -> None:
    with Path("/dev/full").open("wb") as file:
        handler = LogWriter(file.fileno())
        for _ in range(3):
            handler.handle(record("a"))
    assert capfd.readouterr().err == ""


def test_ten_of_a_kind_are_admitted_in_a_second_and_the_others_counted() -> None:
    now = 100.0
    throttle = Throttle(clock=lambda: now)
    assert [throttle.admit("a") for _ in range(15)] == [0] * 10 + [None] * 5
    assert throttle.admit("b") == 0
    now += 1
    assert [throttle.admit("a"), throttle.admit("a")] == [5, 0]
    assert throttle.counts() == {"a": 17, "b": 1}


def test_the_rest_of_a_burst_is_reported_once() -> None:
    """Where nothing follows it."""
    reported: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    throttle = Throttle(lambda kind, unlogged: reported.put((kind, unlogged)))
    admitted = [throttle.admit("a") for _ in range(50)].count(0)
    assert reported.get(timeout=60) == ("a", 50 - admitted)
    throttle.admit("a")
    assert throttle.admit("a") == 0


def test_the_rest_of_each_burst_is_reported() -> None:
    reported: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    throttle = Throttle(lambda kind, unlogged: reported.put((kind, unlogged)), per_s=0)
    for _ in range(2):
        throttle.admit("a")
        assert reported.get(timeout=60) == ("a", 1)


def test_a_burst_is_reported_later_if_there_was_no_thread_for_it() -> None:
    reported: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    throttle = Throttle(lambda kind, unlogged: reported.put((kind, unlogged)), per_s=0)
    with no_more_threads():
        throttle.admit("a")
    throttle.admit("a")
    assert reported.get(timeout=60) == ("a", 2)


def test_what_was_reported_is_not_reported_again() -> None:
    reported: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    throttle = Throttle(lambda kind, unlogged: reported.put((kind, unlogged)), per_s=0)
    throttle.admit("a")
    assert reported.get(timeout=60) == ("a", 1)
    throttle.admit("b")
    assert reported.get(timeout=60) == ("b", 1)


def test_what_the_next_event_says_is_not_reported_again() -> None:
    now = 100.0
    reported: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    throttle = Throttle(lambda kind, unlogged: reported.put((kind, unlogged)), clock=lambda: now)
    for kind in ("a", "b"):
        for _ in range(15):
            throttle.admit(kind)
    now += 1
    assert throttle.admit("a") == 5
    assert reported.get(timeout=60) == ("b", 5)
    assert reported.empty()


def test_the_kinds_that_are_remembered_are_bounded() -> None:
    throttle = Throttle()
    for number in range(1_000):
        throttle.admit(str(number))
    assert len(throttle.counts()) < 300
    assert sum(throttle.counts().values()) == 1_000
