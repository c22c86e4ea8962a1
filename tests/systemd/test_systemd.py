"""The user manager over D-Bus: the real one, and one that fails in every way a peer can."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jeepney import Message

from support.bus import Between, Fault, Listener, Scripted, Silent, job_begun, job_ended, messages, refusal
from support.stack import ROOT, Stack, in_background, run_all, wait_for
from systemd_llm_switch.setup.user_manager import UserManager
from systemd_llm_switch.systemd.bus import Interrupted, Limit
from systemd_llm_switch.systemd.manager import JobUnfinished, Systemd, SystemdError
from systemd_llm_switch.systemd.unit import UnitStatus

SLEEP = "/bin/sleep infinity"
STUBBORN = """/bin/sh -c 'trap "" TERM; while :; do sleep 0.05; done'"""


@pytest.fixture
def systemd(stack: Stack) -> Systemd:
    return Systemd(timeout_s=20, environ=stack.env)


def show(systemd: Systemd, unit: str) -> UnitStatus:
    return systemd.show([unit])[unit]


# --- the real manager ---------------------------------------------------------------------------------


def test_a_unit_is_started_shown_and_stopped(stack: Stack, systemd: Systemd) -> None:
    """Each call returns when systemd is through with it: nothing is waited for here."""
    unit = stack.unit("plain", "/bin/sh -c 'exec sleep infinity' 'a b'")
    assert show(systemd, unit).is_stopped
    systemd.start(unit)
    status = show(systemd, unit)
    assert status.is_running
    assert status.main_pid == stack.main_pid(unit)
    assert status.command == "/bin/sh -c exec sleep infinity a b"
    assert [Path(file).name for file in status.files] == [unit]
    assert status.control_group in Path(f"/proc/{status.main_pid}/cgroup").read_text()
    assert status.invocation_id == stack.systemctl("show", "-p", "InvocationID", "--value", unit).strip()
    assert systemd.running([unit]) == {unit: "active/running"}
    assert systemd.main_process(unit) == status.main_process
    systemd.stop([unit])
    assert systemd.running([unit]) == {}
    assert systemd.main_process(unit).pid == 0
    assert not Path(f"/proc/{status.main_pid}").exists()


def test_units_stop_side_by_side(stack: Stack, systemd: Systemd, tmp_path: Path) -> None:
    """Each unit ends only after all four were asked to stop."""
    asked = tmp_path / "asked"
    asked.mkdir()
    script = tmp_path / "wait.sh"
    script.write_text(
        f"trap 'touch {asked}/$1; until [ \"$(ls {asked} | wc -l)\" = 4 ]; do sleep 0.05; done; exit 0' TERM\n"
        f"touch {tmp_path}/ready-$1; while :; do sleep 0.05; done\n"
    )
    numbers = range(4)
    units = [
        stack.unit(f"slow{number}", f"/bin/sh {script} {number}", service="TimeoutStopSec=60") for number in numbers
    ]
    for unit in units:
        systemd.start(unit)
    wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 4)
    systemd.stop(units)
    assert systemd.running(units) == {}
    for unit in units:
        assert stack.systemctl("show", "-p", "Result", "--value", unit).strip() == "success"


def test_what_does_not_exist_needs_no_stop(stack: Stack, systemd: Systemd) -> None:
    """And what stands beside it is stopped all the same."""
    unit = stack.unit("there", SLEEP)
    systemd.start(unit)
    systemd.stop(["no-such-unit.service", unit])
    assert systemd.running([unit, "no-such-unit.service"]) == {}
    assert show(systemd, "no-such-unit.service").describe() == "not-found (no such unit)"


def test_a_start_that_fails_is_told(stack: Stack, systemd: Systemd) -> None:
    unit = stack.unit("broken", "/nonexistent")
    with pytest.raises(SystemdError, match="its job failed"):
        systemd.start(unit)
    assert "exit status 203, cannot execute the binary" in show(systemd, unit).describe()
    systemd.reset_failed(unit)
    assert show(systemd, unit).active_state == "inactive"


def test_a_start_that_is_refused_has_systemds_words(stack: Stack, systemd: Systemd) -> None:
    with pytest.raises(SystemdError, match=r"Unit no-such-unit\.service not found"):
        systemd.start("no-such-unit.service")
    unit = stack.unit("nonsense", SLEEP, service="Typ=exec\nRestart=now-and-then\nExecStart=relative/path")
    with pytest.raises(SystemdError, match="bad unit file setting"):
        systemd.start(unit)
    assert "bad unit file setting" in show(systemd, unit).describe()


def test_a_missing_dependency_is_told(stack: Stack, systemd: Systemd) -> None:
    broken = stack.unit("broken", "/nonexistent")
    unit = stack.unit("needy", SLEEP, service=f"[Unit]\nRequires={broken}\nAfter={broken}")
    with pytest.raises(SystemdError, match="a unit that it depends on failed"):
        systemd.start(unit)


def test_a_stop_overtakes_a_start(stack: Stack, systemd: Systemd) -> None:
    """Who waits for the start is told; it is not taken for one that succeeded."""
    unit = stack.unit("never", SLEEP, service="Type=notify\nTimeoutStartSec=60")
    with in_background(lambda: systemd.start(unit)) as results:
        wait_for(lambda: systemd.running([unit]) == {unit: "activating/start"})
        systemd.stop([unit])
    assert "canceled" in str(results[0])


def test_a_stop_that_takes_too_long_ends_the_wait(stack: Stack) -> None:
    systemd = Systemd(timeout_s=0.5, environ=stack.env)
    unit = stack.unit("stubborn", STUBBORN)
    systemd.start(unit)
    began = time.monotonic()
    with pytest.raises(SystemdError, match=f"stopping {unit} failed: it took too long"):
        systemd.stop([unit])
    assert time.monotonic() - began >= 0.5
    assert systemd.running([unit]) == {unit: "deactivating/stop-sigterm"}


def test_many_may_ask_at_once(stack: Stack, systemd: Systemd) -> None:
    """Each call has a connection of its own, and none of them stays open."""
    units = [stack.unit(f"many{number}", SLEEP, reload=number == 7) for number in range(8)]
    before = _count_descriptors()

    def there_and_back(unit: str) -> list[bool]:
        seen = []
        for _ in range(10):
            systemd.start(unit)
            seen.append(show(systemd, unit).is_running)
            systemd.stop([unit])
            seen.append(systemd.running([unit]) == {})
        return seen

    assert run_all(*[lambda unit=unit: there_and_back(unit) for unit in units]) == [[True] * 20] * 8
    assert _count_descriptors() <= before


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """On a manager that no other test uses."""
    manager = UserManager.start(tmp_path / "home")
    stack = Stack(manager.env, tmp_path, "own")
    yield stack
    stack.close()
    manager.stop()


def test_a_manager_that_was_executed_anew_answers(own_stack: Stack) -> None:
    """daemon-reexec drops every connection: a stop that waited on one is asked for again."""
    stack, systemd = own_stack, Systemd(timeout_s=20, environ=own_stack.env)
    unit = stack.unit("stubborn", STUBBORN)
    systemd.start(unit)
    pid = show(systemd, unit).main_pid
    wait_for(lambda: _ignores(pid, signal.SIGTERM))
    with in_background(lambda: systemd.stop([unit])) as results:
        wait_for(lambda: systemd.running([unit]) == {unit: "deactivating/stop-sigterm"})
        stack.systemctl("daemon-reexec")
        assert show(systemd, unit).main_pid in (0, pid)
    assert results == [None]
    assert systemd.running([unit]) == {}


def test_no_question_fails_while_the_manager_is_executed_anew(own_stack: Stack) -> None:
    """It lets nobody connect for a moment: whoever asks then, asks again."""
    systemd = Systemd(timeout_s=20, environ=own_stack.env)
    unit = own_stack.unit("plain", SLEEP)
    systemd.start(unit)
    is_over = threading.Event()

    def ask() -> int:
        count = 0
        while not is_over.is_set():
            assert show(systemd, unit).is_running
            count += 1
        return count

    with in_background(ask, ask) as counts:
        for _ in range(4):
            own_stack.systemctl("daemon-reexec")
        is_over.set()
    assert all(isinstance(count, int) and count > 0 for count in counts), counts


BAD_NAMES = ("x@.service", "n" * 256 + ".service", "no suffix")


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_a_name_that_systemd_refuses_harms_no_other_unit(stack: Stack, systemd: Systemd, bad: str) -> None:
    unit = stack.unit("plain", SLEEP)
    systemd.start(unit)
    statuses = systemd.show([bad, unit])
    assert (statuses[bad].is_missing, statuses[bad].is_stopped) == (True, True)
    assert "Unit name" in statuses[bad].describe()
    assert statuses[unit].is_running
    assert systemd.running([bad, unit]) == {unit: "active/running"}
    systemd.stop([bad, unit])
    assert systemd.running([bad, unit]) == {}
    with pytest.raises(SystemdError, match=r"starting .* failed: Unit name"):
        systemd.start(bad)


def test_the_session_bus_is_used_where_the_managers_own_socket_is_not(stack: Stack, tmp_path: Path) -> None:
    bus = Path(stack.env["XDG_RUNTIME_DIR"]) / "bus"
    if not bus.exists():
        pytest.skip("no dbus-daemon is installed")
    unit = stack.unit("plain", SLEEP)
    (tmp_path / "bus").symlink_to(bus)
    for environ in (
        {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}"},
        {"XDG_RUNTIME_DIR": str(tmp_path)},
    ):
        systemd = Systemd(timeout_s=10, environ=environ)
        with systemd.connected() as connected:
            connected.start(unit)
            assert show(connected, unit).is_running
            connected.stop([unit])
        assert systemd.running([unit]) == {}
        with pytest.raises(SystemdError, match="not found"):
            systemd.start("no-such-unit.service")


# --- a manager that fails -----------------------------------------------------------------------------


def hang_up(_peer: socket.socket) -> None:
    pass


def read_and_hang_up(peer: socket.socket) -> None:
    next(messages(peer))


def hang_up_in_the_middle(peer: socket.socket) -> None:
    peer.sendall(job_begun(Message.from_buffer(next(messages(peer))))[:-5])


def talk_nonsense(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    peer.recv(1)


def break_off_a_string(peer: socket.socket) -> None:
    answer = job_begun(Message.from_buffer(next(messages(peer))))
    peer.sendall(answer.replace(b"systemd1/job", b"systemd1\xff\xff\xff\xff"))
    peer.recv(1)


def announce_too_much(peer: socket.socket) -> None:
    peer.sendall(b"l\2\1\1" + (1 << 31).to_bytes(4, "little") + b"\1\0\0\0" + b"\0\0\0\0")
    peer.recv(1)


def say_nothing(peer: socket.socket) -> None:
    while peer.recv(4096):
        pass


def talk_of_others(peer: socket.socket) -> None:
    """One signal after the other, for ever, and no answer."""
    while True:
        peer.sendall(job_ended("/org/freedesktop/systemd1/job/7"))


ACTIONS: list[Callable[[Systemd], object]] = [
    lambda systemd: systemd.show(["a.service"]),
    lambda systemd: systemd.running(["a.service"]),
    lambda systemd: systemd.start("a.service"),
    lambda systemd: systemd.stop(["a.service", "b.service"]),
    lambda systemd: systemd.reset_failed("a.service"),
]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (hang_up, "(closed the connection|Broken pipe|reset by peer)"),
        (read_and_hang_up, "(closed the connection|reset by peer)"),
        (hang_up_in_the_middle, "(closed the connection|reset by peer)"),
        (talk_nonsense, "not a D-Bus message"),
        (break_off_a_string, "not a D-Bus message"),
        (announce_too_much, "a message of 21474836[0-9]+ bytes"),
        (say_nothing, "did not answer in time"),
        (talk_of_others, "did not answer in time"),
        (None, "did not answer in time"),
    ],
)
def test_a_peer_that_fails_is_a_clear_error_in_time(
    script: Callable[[socket.socket], None] | None, words: str, action: Callable[[Systemd], object]
) -> None:
    """It names the socket and the next step, ends the wait, and leaves no descriptor."""
    listener: Listener = Silent() if script is None else Scripted(script)
    with listener:
        before = _count_descriptors()
        began = time.monotonic()
        with pytest.raises(SystemdError, match=words) as error:
            action(Systemd(timeout_s=0.3, environ=listener.env))
        assert time.monotonic() - began < 20
        assert "/systemd/private" in str(error.value)
        assert "systemctl --user" in str(error.value)
        wait_for(lambda: _count_descriptors() <= before, what="no descriptor is left")


class Chatty(Listener):
    """Its first line does not end."""

    def serve(self, peer: socket.socket) -> None:
        peer.sendall(b"x" * 5000)
        peer.recv(4096)
        peer.recv(1)


def test_a_peer_with_an_endless_first_line_is_not_waited_for() -> None:
    with Chatty() as listener, pytest.raises(SystemdError, match="is not a D-Bus socket"):
        Systemd(timeout_s=60, environ=listener.env).show(["a.service"])


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "XDG_RUNTIME_DIR is not set"),
        ({"XDG_RUNTIME_DIR": "/nonexistent"}, "there is no /nonexistent/systemd/private"),
        ({"DBUS_SESSION_BUS_ADDRESS": "nonsense"}, "DBUS_SESSION_BUS_ADDRESS=nonsense cannot be used"),
        ({"DBUS_SESSION_BUS_ADDRESS": "tcp:host=a,port=1"}, "cannot be used"),
        ({"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nonexistent"}, "No such file"),
    ],
)
def test_a_manager_that_is_not_there_is_told(environ: dict[str, str], words: str) -> None:
    if not environ and Path(f"/run/user/{os.getuid()}").exists():
        words = "there is no /run/user|Connection refused"
    with pytest.raises(SystemdError, match=words) as error:
        Systemd(environ=environ).show(["a.service"])
    assert "systemctl --user" in str(error.value)


def test_a_socket_that_nobody_listens_on_is_told(tmp_path: Path) -> None:
    (tmp_path / "systemd").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "systemd/private"))
    with pytest.raises(SystemdError, match="Connection refused"):
        Systemd(environ={"XDG_RUNTIME_DIR": str(tmp_path)}).show(["a.service"])


def test_the_manager_is_found_where_su_set_no_variable() -> None:
    """Its socket is where logind puts it. That nobody listens on this one shows that it was found."""
    user = 61_183  # nobody's
    runtime_dir = Path(f"/run/user/{user}")
    (runtime_dir / "systemd").mkdir(parents=True)
    try:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(runtime_dir / "systemd/private"))
        (runtime_dir / "systemd/private").chmod(0o666)
        ask = "from systemd_llm_switch.systemd.manager import Systemd; Systemd(environ={}).show(['a.service'])"
        code = f"import os, systemd_llm_switch.systemd.manager; os.setuid({user}); {ask}"
        env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert "Connection refused" in ran.stderr
    finally:
        shutil.rmtree(runtime_dir)


def test_no_room_for_a_socket_is_told(systemd: Systemd) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        with pytest.raises(SystemdError, match="Too many open files"):
            systemd.show(["a.service"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_end_of_another_job_is_not_the_one_that_is_waited_for() -> None:
    """Others start and stop units, too, and every client is told."""

    def script(peer: socket.socket) -> None:
        call = Message.from_buffer(next(messages(peer)))
        peer.sendall(job_ended("/org/freedesktop/systemd1/job/7"))
        peer.sendall(job_begun(call, "/org/freedesktop/systemd1/job/8"))
        peer.sendall(job_ended("/org/freedesktop/systemd1/job/9"))
        peer.recv(1)

    with Scripted(script) as bus, pytest.raises(SystemdError, match="it took too long"):
        Systemd(timeout_s=0.3, environ=bus.env).start("a.service")


def test_a_job_may_end_before_its_name_is_known() -> None:
    def script(peer: socket.socket) -> None:
        call = Message.from_buffer(next(messages(peer)))
        job = "/org/freedesktop/systemd1/job/8"
        peer.sendall(job_ended(job) + job_begun(call, job))
        peer.recv(1)

    with Scripted(script) as bus:
        Systemd(timeout_s=5, environ=bus.env).start("a.service")


def test_a_signal_may_come_with_the_welcome() -> None:
    """The manager tells all its clients of every unit and job from their first moment on."""
    job = "/org/freedesktop/systemd1/job/8"

    def script(peer: socket.socket) -> None:
        peer.sendall(job_begun(Message.from_buffer(next(messages(peer))), job))
        peer.recv(1)

    with Scripted(script, more=job_ended(job)) as bus:
        Systemd(timeout_s=5, environ=bus.env).start("a.service")


def test_an_answer_may_come_in_pieces() -> None:
    """A byte at a time, the job's end among them."""

    def script(peer: socket.socket) -> None:
        call = Message.from_buffer(next(messages(peer)))
        for byte in job_begun(call) + job_ended():
            peer.sendall(bytes([byte]))
        peer.recv(1)

    with Scripted(script) as bus:
        Systemd(timeout_s=5, environ=bus.env).start("a.service")


def test_an_error_keeps_its_words() -> None:
    def script(peer: socket.socket) -> None:
        for data in messages(peer):
            peer.sendall(refusal(Message.from_buffer(data), "Unit a.service is on holiday."))

    with Scripted(script) as bus:
        systemd = Systemd(timeout_s=5, environ=bus.env)
        for action in ACTIONS[:4]:
            with pytest.raises(SystemdError, match=r"Unit a\.service is on holiday"):
                action(systemd)


def test_a_stop_that_is_refused_for_one_is_waited_for_of_the_others(stack: Stack) -> None:
    refused, stopped = stack.unit("refused", SLEEP), stack.unit("stopped", SLEEP)
    rule = lambda words: Fault.REFUSE if "StopUnit" in words and refused in words else None  # noqa: E731
    with Between(stack.env, rule) as bus:
        systemd = Systemd(environ=bus.env)
        for unit in (refused, stopped):
            systemd.start(unit)
        with pytest.raises(SystemdError, match=f"stopping {refused} failed: the bus is gone"):
            systemd.stop([refused, stopped])
        assert systemd.running([refused, stopped]) == {refused: "active/running"}


def test_questions_in_a_row_share_a_connection(stack: Stack) -> None:
    """While it is entered, also by a second round; before and after, each question has its own."""
    unit = stack.unit("plain", SLEEP)
    before = _count_descriptors()
    with Between(stack.env, lambda _words: None) as bus:
        systemd = Systemd(timeout_s=20, environ=bus.env).connected()
        for made in (1, 4):
            with systemd:
                systemd.start(unit)
                assert show(systemd, unit).is_running
                systemd.stop([unit])
                with pytest.raises(SystemdError, match="not found"):
                    systemd.start("no-such-unit.service")
                assert systemd.running([unit]) == {}
            assert bus.connections == made
            assert systemd.running([unit]) == {}
            assert show(systemd, unit).is_stopped
            assert bus.connections == made + 2
    wait_for(lambda: _count_descriptors() <= before, what="no descriptor is left")


def test_a_kept_connection_that_was_closed_is_made_anew(own_stack: Stack) -> None:
    """As the manager does when it is executed anew."""
    unit = own_stack.unit("plain", SLEEP)
    with Systemd(timeout_s=20, environ=own_stack.env).connected() as systemd:
        systemd.start(unit)
        for _ in range(2):
            own_stack.systemctl("daemon-reexec")
            assert show(systemd, unit).is_running
        systemd.stop([unit])
        assert systemd.running([unit]) == {}


def test_a_stop_outlives_a_manager_that_is_executed_anew(own_stack: Stack) -> None:
    """Within questions in a row, what was asked is asked again: a switch goes on."""
    unit = own_stack.unit("stubborn", STUBBORN)
    with Systemd(timeout_s=20, environ=own_stack.env).connected() as systemd:
        systemd.start(unit)
        pid = show(systemd, unit).main_pid
        wait_for(lambda: _ignores(pid, signal.SIGTERM))
        with in_background(lambda: systemd.stop([unit])) as results:
            wait_for(lambda: "deactivating" in own_stack.systemctl("show", "-p", "ActiveState", unit))
            own_stack.systemctl("daemon-reexec")
        assert results == [None]
        assert systemd.running([unit]) == {}


def test_a_manager_that_hangs_up_on_each_connection_is_an_error(stack: Stack) -> None:
    """A question is asked again for a second, not for ever."""
    rule = lambda words: Fault.HANG_UP if "ListUnits" in words else None  # noqa: E731
    with Between(stack.env, rule) as bus, Systemd(timeout_s=5, environ=bus.env).connected() as systemd:
        show(systemd, "a.service")
        with pytest.raises(SystemdError, match=r"closed the connection|reset by peer"):
            systemd.running(["a.service"])
        assert bus.connections > 2
        assert show(systemd, "a.service").is_missing


def test_a_wait_for_a_job_can_be_interrupted(stack: Stack, systemd: Systemd) -> None:
    """The job goes on; a stop takes its place."""
    unit = stack.unit("never", SLEEP, service="Type=notify\nTimeoutStartSec=60")
    with os.fdopen(os.eventfd(0), "wb") as wakeup:
        limit = Limit(time.monotonic() + 60, wakeup.fileno())
        with in_background(lambda: systemd.start(unit, limit)) as results:
            wait_for(lambda: systemd.running([unit]) == {unit: "activating/start"})
            os.eventfd_write(wakeup.fileno(), 1)
    assert isinstance(results[0], Interrupted)
    assert systemd.running([unit]) == {unit: "activating/start"}
    systemd.stop([unit])
    assert systemd.running([unit]) == {}


def test_an_interrupted_wait_leaves_its_connection_for_the_next_question(stack: Stack, systemd: Systemd) -> None:
    unit = stack.unit("never", SLEEP, service="Type=notify\nTimeoutStartSec=60")
    with os.fdopen(os.eventfd(1), "wb") as wakeup, systemd.connected() as connected:
        with pytest.raises(Interrupted):
            connected.start(unit, Limit(time.monotonic() + 60, wakeup.fileno()))
        wait_for(lambda: connected.running([unit]) == {unit: "activating/start"})
        connected.stop([unit])


def test_a_wait_for_a_job_ends_at_its_deadline(stack: Stack, systemd: Systemd) -> None:
    unit = stack.unit("never", SLEEP, service="Type=notify\nTimeoutStartSec=60")
    with pytest.raises(JobUnfinished, match="it took too long"):
        systemd.start(unit, Limit(time.monotonic() + 0.5))
    assert systemd.running([unit]) == {unit: "activating/start"}
    systemd.stop([unit])


def test_a_question_that_was_not_answered_in_time_is_not_asked_anew() -> None:
    def script(peer: socket.socket) -> None:
        calls = messages(peer)
        peer.sendall(job_begun(Message.from_buffer(next(calls))) + job_ended())
        for _ in calls:
            pass

    with Scripted(script) as bus, Systemd(timeout_s=0.3, environ=bus.env).connected() as systemd:
        systemd.start("a.service")
        with pytest.raises(SystemdError, match="did not answer in time"):
            show(systemd, "a.service")
        assert bus.connections == 1
        systemd.start("a.service")
        assert bus.connections == 2


def _ignores(pid: int, number: signal.Signals) -> bool:
    ignored = re.search(r"SigIgn:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return ignored is not None and bool(int(ignored[1], 16) >> (number - 1) & 1)


def _count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208
