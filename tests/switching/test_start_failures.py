"""A start that fails says why, always: on the real llama-server, the real journal, and without a journal."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.stack import ROOT, Stack, in_background, wait_for
from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.switching.diagnosis import Diagnosis, quote_journal
from systemd_llm_switch.systemd import journal
from systemd_llm_switch.systemd.manager import Systemd, SystemdError
from systemd_llm_switch.systemd.unit import MainProcess

STARTS = 12  # of each kind; by hand 200
NO_JOURNAL = {"PATH": "/nonexistent"}


def start(systemd: Systemd, unit: str) -> None:
    """Starts a unit whose process may end before its start job does."""
    with contextlib.suppress(SystemdError):
        systemd.start(unit)


def failures(stack: Stack, unit: str, count: int) -> list[str]:
    """What a client would read of so many failed starts."""
    systemd = Systemd(environ=stack.env)
    url = f"http://127.0.0.1:{stack.port}"
    diagnosis = Diagnosis(systemd, Model("m", unit, url), Backend(url))
    messages = []
    for _ in range(count):
        start(systemd, unit)
        pid = systemd.show([unit])[unit].exec_pid
        wait_for(lambda: not systemd.running([unit]))
        messages.append(diagnosis.failure(systemd.show_after_exit(unit, pid)).message)
        systemd.reset_failed(unit)
    return messages


@pytest.mark.real
def test_a_bad_flag_is_named_each_time(stack: Stack, real_unit: Callable[..., str]) -> None:
    """Its process is gone so soon that journald often cannot say which unit its words are of."""
    unit = real_unit("bad-flag", "--no-such-flag")
    for message in failures(stack, unit, STARTS):
        assert "invalid argument: --no-such-flag" in message


@pytest.mark.real
def test_a_missing_file_is_named_each_time(stack: Stack, real_unit: Callable[..., str]) -> None:
    """llama-server ends now and then before it has written its last words, so the file is looked for as well."""
    unit = real_unit("no-file", model="/nonexistent/m.gguf")
    for message in failures(stack, unit, STARTS):
        assert "The model file '/nonexistent/m.gguf' is missing" in message


def test_words_without_a_unit_are_found_by_their_pid(stack: Stack) -> None:
    """Here the journal is asked with an id that no line has."""
    unit = stack.unit("m", "/bin/sh -c 'echo the reason; exit 3'")
    systemd = Systemd(environ=stack.env)
    start(systemd, unit)
    wait_for(lambda: not systemd.running([unit]))
    process = systemd.show([unit])[unit].last_process._replace(invocation_id="0" * 32)
    wait_for(lambda: "the reason" in journal.read(process).lines)


def test_an_earlier_process_with_the_same_pid_is_not_quoted(stack: Stack) -> None:
    unit = stack.unit("m", "/bin/sh -c 'echo the reason; exit 3'")
    systemd = Systemd(environ=stack.env)
    start(systemd, unit)
    wait_for(lambda: not systemd.running([unit]))
    process = systemd.show([unit])[unit].last_process._replace(invocation_id="0" * 32)
    wait_for(lambda: "the reason" in journal.read(process).lines)
    assert journal.read(process._replace(started_at=time.time() + 60)).lines == ()


def test_a_separator_within_a_line_does_not_break_its_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """journalctl may print U+2028 as it is, and Python would end a line there."""
    script = tmp_path / "journalctl"
    script.write_text("""#!/bin/sh
printf '{"_PID": "7", "MESSAGE": "first\\342\\200\\250second"}\\n'
""")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert journal.read(MainProcess(7, "", "an id", 0)).lines == ("first", "second")


def test_the_last_lines_are_quoted_and_the_first_left_out(stack: Stack) -> None:
    """In their order, whatever their number."""
    unit = stack.unit("m", "/bin/sh -c 'for i in $$(seq 100); do echo line $$i; done; exit 3'")
    systemd = Systemd(environ=stack.env)
    start(systemd, unit)
    wait_for(lambda: not systemd.running([unit]))
    process = systemd.show([unit])[unit].last_process
    wait_for(lambda: "line 100" in journal.read(process).lines)
    own = [line for line in journal.read(process).lines if line.startswith("line ")]
    assert own == [f"line {number}" for number in range(101 - len(own), 101)]
    assert 4 <= len(own) <= 12


def test_a_silent_failure_is_quoted_the_managers_words(stack: Stack) -> None:
    unit = stack.unit("m", "/bin/false")
    (message,) = failures(stack, unit, 1)
    assert "Result: exit-code, exit status 1" in message
    assert "The journal has no lines of it." in message


@pytest.mark.real
def test_without_a_journal_a_bad_flag_is_found_by_hand(
    stack: Stack, real_unit: Callable[..., str], llama_server: Path
) -> None:
    stack.write_config({"m": real_unit("m", "--no-such-flag", "--nor-this=1")})
    answer = stack.start_proxy(env=NO_JOURNAL).chat("m")
    assert f"'{llama_server}' does not know --no-such-flag, --nor-this" in answer.error["message"]
    assert "--jinja" not in answer.error["message"]


@pytest.mark.real
def test_without_a_journal_a_missing_file_is_found_by_hand(stack: Stack, real_unit: Callable[..., str]) -> None:
    stack.write_config({"m": real_unit("m", model="/nonexistent/m.gguf")})
    answer = stack.start_proxy(env=NO_JOURNAL).chat("m")
    assert "The model file '/nonexistent/m.gguf' is missing" in answer.error["message"]
    assert "does not know" not in answer.error["message"]


def test_without_a_journal_a_taken_port_is_found_by_hand(stack: Stack) -> None:
    """The one that took it while ours was starting is named."""
    late, other = stack.standin("late", "--bind-s", "1.5"), stack.standin("other")
    stack.write_config({"late": late, "other": other})
    proxy = stack.start_proxy(env=NO_JOURNAL)
    systemd = Systemd(environ=stack.env)
    with in_background(lambda: proxy.chat("late")) as answers:
        wait_for(lambda: systemd.running([late]) == {late: "active/running"})
        stack.systemctl("start", other)
    assert f"127.0.0.1:{stack.port} is taken by unit {other}" in answers[0].error["message"]


def test_a_program_that_is_not_a_llama_server_is_not_run_for_its_help(stack: Stack, tmp_path: Path) -> None:
    """It might start a second model."""
    mark = tmp_path / "ran"
    program = tmp_path / "wrapper"
    program.write_text(f"#!/bin/sh\necho >> {mark}\nexit 3\n")
    program.chmod(0o755)
    stack.write_config({"m": stack.unit("m", f"{program} --no-such-flag")})
    assert stack.start_proxy(env=NO_JOURNAL).chat("m").error["code"] == "model_start_failed"
    assert len(mark.read_text().splitlines()) == 1


def test_foreign_lines_are_made_safe_and_short() -> None:
    """Control characters are escaped, long lines cut, and the oldest lines left out."""
    lines = [f"{number} " + "x" * 5000 for number in range(12)] + ["\x1b[2Jend"]
    quote = quote_journal(lines)
    assert len(quote) < 2000
    assert quote.isprintable()
    assert quote.endswith("\\x1b[2Jend")
    assert "0 xxx" not in quote.replace("10 xxx", "")


def test_where_the_journals_lines_are_missing_the_log_is_named(stack: Stack) -> None:
    """Of a backend that died, and of one whose connection broke."""
    unit = stack.standin("m", service="StandardOutput=null\nStandardError=null")
    proxy = stack.run({"my model": unit})
    ended = proxy.chat("my model", standin={"crash": 0}).error
    broken = proxy.chat("my model", standin={"cut": True}).error
    assert (ended["code"], broken["code"]) == ("backend_crashed", "backend_error")
    for error in (ended, broken):
        assert "Last journal lines" not in error["message"]
        assert "`llm-switch logs 'my model'`" in error["message"]


def test_an_installed_package_names_its_own_commands(stack: Stack, tmp_path: Path) -> None:
    """There is no ./setup.sh beside it."""
    shutil.copytree(ROOT / "src/systemd_llm_switch", tmp_path / "site/systemd_llm_switch")
    stack.write_config({"m": "no-such.service"})
    proxy = stack.start_proxy(env={"PYTHONPATH": str(tmp_path / "site")})
    assert "Install it (`llm-switch setup`)" in proxy.chat("m").error["message"]
