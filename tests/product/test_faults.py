"""Whatever a backend or a unit does wrong, the client learns why, in time, and the next request is served."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.stack import Stack, descriptors_of, in_background, run_all, wait_for
from systemd_llm_switch.backend.backend import Backend
from systemd_llm_switch.backend.exchange import BackendDeadline, BackendLost, Bounds, Message
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.contexts.records import Loaded
from systemd_llm_switch.contexts.unit import Command
from systemd_llm_switch.switching.resident import Resident
from systemd_llm_switch.systemd.unit import MainProcess, ProcessWatch
from systemd_llm_switch.waiting import Client


def test_a_unit_that_exits_is_reported_at_once_with_its_own_words(stack: Stack) -> None:
    """503 with systemd's result and the last journal lines of this start, and not 504 after the load's timeout."""
    proxy = stack.run({"broken": stack.standin("broken", "--exit", "3", "--say", "error: no such model file")})
    answer = proxy.chat("broken")
    assert answer.status == 503
    assert answer.error["code"] == "model_start_failed"
    assert "exit status 3" in answer.error["message"]
    assert "error: no such model file" in answer.error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert proxy.status()["models"]["broken"]["last_error"] == answer.error["message"]


def test_the_reason_and_the_next_step_come_before_the_journals_lines(stack: Stack) -> None:
    """A client may show the beginning only. Also under a request whose model crashes, and while no start is tried."""
    unit = stack.standin("m", "--exit", "3", "--say", "many long words")
    proxy = stack.run({"m": unit, "sound": stack.standin("sound")})
    for message in (proxy.chat("m").error["message"], proxy.chat("sound", standin={"crash": 7}).error["message"]):
        places = [message.index(words) for words in ("exit status", "See `journalctl", "Last journal lines: ")]
        assert places == sorted(places)
    for _ in range(3):
        message = proxy.chat("m").error["message"]
    assert message.index("3 times in a row") < message.index("exit status") < message.index("Last journal lines: ")


def test_only_the_lines_of_this_start_are_shown(stack: Stack) -> None:
    """A journal full of older starts does not leak into the reason."""
    unit = stack.standin("m", "--exit", "3", "--say", "the first reason")
    proxy = stack.run({"m": unit})
    assert "the first reason" in proxy.chat("m").error["message"]
    stack.standin("m", "--exit", "4", "--say", "the second reason")
    message = proxy.chat("m").error["message"]
    assert "the second reason" in message
    assert "the first reason" not in message


def test_a_unit_in_a_crash_loop_is_stopped_not_left_to_restart(stack: Stack) -> None:
    """Restart=always does not go on behind our back after the failure was told."""
    unit = stack.standin("loop", "--exit", "1", service="Restart=always\nRestartSec=0.2")
    proxy = stack.run({"loop": unit})
    assert proxy.chat("loop").error["code"] == "model_start_failed"
    assert stack.active_state(unit) in ("inactive", "failed")


def test_a_unit_in_auto_restart_does_not_make_its_start_wait(stack: Stack) -> None:
    """`systemctl start` would wait out RestartSec."""
    unit = stack.standin("m", service="Restart=always\nRestartSec=600")
    proxy = stack.run({"m": unit})
    assert proxy.chat("m").status == 200
    os.kill(stack.main_pid(unit), signal.SIGKILL)
    wait_for(lambda: stack.active_state(unit) == "activating")
    assert proxy.chat("m").status == 200


def test_a_model_that_never_gets_ready_is_a_504_and_is_stopped(stack: Stack) -> None:
    unit = stack.standin("slow", "--never-ready", "--say", "still fetching")
    proxy = stack.run({"slow": unit}, health_timeout=1)
    answer = proxy.chat("slow")
    assert answer.status == 504
    assert answer.error["code"] == "model_start_timeout"
    assert "1 s" in answer.error["message"]
    assert "still fetching" in answer.error["message"]
    assert stack.active_state(unit) in ("inactive", "failed")
    assert answer.timing("switch") >= 1000 > answer.timing("queue")


def test_a_missing_unit_is_named(stack: Stack) -> None:
    answer = stack.run({"m": "no-such-unit.service"}).chat("m")
    assert answer.status == 503
    assert "no-such-unit.service" in answer.error["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_the_port_must_be_silent_before_a_start(stack: Stack) -> None:
    """Whoever answers on the port is the unit that was started: a stranger on it is an error, not an answer."""
    proxy = stack.run({"m": stack.standin("m")})
    with socket.create_server(("127.0.0.1", stack.port)):
        answer = proxy.chat("m")
    assert answer.status == 503
    assert str(stack.port) in answer.error["message"]
    assert proxy.chat("m").status == 200


def test_a_taken_port_does_not_count_as_a_failure_of_the_unit(stack: Stack) -> None:
    """It does not count towards a crash loop: two of its own, and a third time the port was taken."""
    proxy = stack.run({"m": stack.standin("m", "--exit", "1")})
    for _ in range(2):
        assert "exit status 1" in proxy.chat("m").error["message"]
    with socket.create_server(("127.0.0.1", stack.port)):
        assert "taken" in proxy.chat("m").error["message"]
    message = proxy.chat("m").error["message"]
    assert "exit status 1" in message
    assert "in a row" not in message


def test_a_unit_that_will_not_stop_keeps_its_place(stack: Stack) -> None:
    """A stop that systemd does not confirm fails the switch; nothing is started on top of what still runs."""
    stubborn = stack.standin(
        "stubborn", "--ignore-term", service="TimeoutStopSec=infinity\nSendSIGKILL=no\nTimeoutStopFailureMode=abort"
    )
    proxy = stack.run({"stubborn": stubborn, "other": stack.standin("other")}, health_timeout=5)
    assert proxy.chat("stubborn").status == 200
    with in_background(lambda: proxy.chat("other")) as results:
        wait_for(lambda: stack.active_state(stubborn) == "deactivating")
        assert proxy.state("stubborn") == "stopping"
        assert stack.active_state(f"{stack.prefix}-other.service") == "inactive"
        os.kill(stack.main_pid(stubborn), signal.SIGKILL)  # what a person would do
    assert results[0].status == 200
    assert results[0].text == "hello from other"


def test_a_failed_switch_leaves_nothing_half_dead(stack: Stack) -> None:
    """After B failed to start, A is what systemd says it is: stopped; and it is served again when asked for."""
    proxy = stack.run({"a": stack.standin("a"), "b": stack.standin("b", "--exit", "1")})
    assert proxy.chat("a").text == "hello from a"
    assert proxy.chat("b").status == 503
    assert proxy.state("a") == "stopped"
    assert proxy.state("b") == "failed"
    assert proxy.chat("a").text == "hello from a"


def test_a_unit_that_does_not_exist_costs_nobody_the_loaded_model(stack: Stack) -> None:
    """What cannot be started is found out before anything is stopped for it."""
    unit = stack.standin("a")
    proxy = stack.run({"a": unit, "lost": "no-such-unit.service"})
    assert proxy.chat("a").status == 200
    pid = stack.main_pid(unit)
    assert proxy.chat("lost").status == 503
    assert proxy.state("a") == "ready"
    assert proxy.state("lost") == "failed"
    assert proxy.chat("a").text == "hello from a"
    assert stack.main_pid(unit) == pid


def test_a_crash_loop_ends_in_a_clear_error_and_clears_when_the_unit_is_mended(stack: Stack) -> None:
    """After three failures in a row nobody else's model is stopped for a fourth; `reset-failed`, or an edit of the
    unit, ends that at once."""
    good, bad = stack.standin("good"), stack.standin("bad", "--exit", "1")
    proxy = stack.run({"good": good, "bad": bad})
    for _ in range(3):
        assert "in a row" not in proxy.chat("bad").error["message"]
    proxy.chat("good")
    pid = stack.main_pid(good)
    refused = proxy.chat("bad")
    assert refused.status == 503
    assert refused.error["code"] == "model_start_failed"
    assert "3 times in a row" in refused.error["message"]
    assert "exit status 1" in refused.error["message"]
    assert stack.main_pid(good) == pid
    stack.systemctl("reset-failed", bad)
    assert "in a row" not in proxy.chat("bad").error["message"]  # it was tried
    for _ in range(2):
        proxy.chat("bad")
    assert "in a row" in proxy.chat("bad").error["message"]
    stack.standin("bad")
    assert proxy.chat("bad").text == "hello from bad"


def test_every_waiting_request_gets_the_error_of_a_failed_start(stack: Stack) -> None:
    proxy = stack.run({"m": stack.standin("m", "--exit", "1", "--load-s", "0.5")})
    answers = run_all(*[lambda: proxy.chat("m") for _ in range(5)])
    assert [answer.status for answer in answers] == [503] * 5
    assert len(proxy.status()["switches"]) == 1


def test_a_backend_that_dies_under_a_request_is_a_502_with_the_reason(stack: Stack) -> None:
    """systemd's result and the journal's last lines; the next request starts it again."""
    proxy = stack.run({"m": stack.standin("m")})
    answer = proxy.chat("m", standin={"crash": 7})
    assert answer.status == 502
    assert answer.error["code"] == "backend_crashed"
    assert "exit status 7" in answer.error["message"]
    assert "about to crash, as told" in answer.error["message"]
    assert proxy.chat("m").status == 200


def test_a_backend_that_breaks_off_is_a_502(stack: Stack) -> None:
    """Its process lives, so it is no crash; the reply is not passed on in half."""
    proxy = stack.run({"m": stack.standin("m")})
    answer = proxy.chat("m", standin={"cut": True})
    assert answer.status == 502
    assert answer.error["code"] == "backend_error"
    assert proxy.chat("m").status == 200


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_a_backends_own_error_keeps_status_and_message(stack: Stack, status: int) -> None:
    proxy = stack.run({"m": stack.standin("m")})
    answer = proxy.chat("m", standin={"status": status})
    assert answer.status == status
    assert answer.error == {
        "message": f"the stand-in says {status}", "type": "standin_error", "param": None, "code": 77,
    }  # fmt: skip


def test_a_backends_error_that_is_not_json_gets_the_shape(stack: Stack) -> None:
    """Plain text loses its message in the clients."""
    proxy = stack.run({"m": stack.standin("m")})
    answer = proxy.chat("m", standin={"status": 500, "raw": "out of cheese"})
    assert answer.status == 500
    assert answer.error["message"] == "out of cheese"


def test_an_overflow_is_reported_in_words_that_clients_know(stack: Stack) -> None:
    """Roo and Cline condense the conversation when they read "context length exceeded"."""
    raw = '{"error": {"code": 400, "type": "exceed_context_size_error", "message": "request (99 tokens) exceeds the available context size (9 tokens)"}}'  # noqa: E501
    answer = stack.run({"m": stack.standin("m")}).chat("m", standin={"status": 400, "raw": raw})
    assert answer.status == 400
    assert "exceeds the available context size" in answer.error["message"]
    assert "context length exceeded" in answer.error["message"]


def test_a_wedged_backend_is_a_504_and_is_restarted_before_it_is_used_again(stack: Stack) -> None:
    unit = stack.standin("m")
    proxy = stack.run({"m": unit}, request_timeout=1)
    assert proxy.chat("m").status == 200
    pid = stack.main_pid(unit)
    answer = proxy.chat("m", standin={"hang": True})
    assert answer.status == 504
    assert answer.error["code"] == "backend_timeout"
    assert proxy.chat("m").status == 200
    assert stack.main_pid(unit) != pid


def test_a_backend_that_hangs_in_its_reply_is_a_504_and_is_restarted(stack: Stack) -> None:
    """The headers and half of the body came in time, the rest never."""
    unit = stack.standin("m")
    proxy = stack.run({"m": unit}, request_timeout=1)
    assert proxy.chat("m").status == 200
    pid = stack.main_pid(unit)
    answer = proxy.chat("m", standin={"half_s": 600})
    assert answer.status == 504
    assert answer.error["code"] == "backend_timeout"
    assert proxy.chat("m").status == 200
    assert stack.main_pid(unit) != pid


LARGE = "x" * 20_000_000  # more than the kernel takes for a process that does not read


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_stopped_process_that_reads_no_large_request_is_a_504_and_is_restarted(
    stack: Stack, is_streamed: bool
) -> None:
    """The time holds while the request is still being sent, and a streaming client is kept alive meanwhile."""
    unit = stack.standin("m")
    proxy = stack.run({"m": unit}, request_timeout=3)
    assert proxy.chat("m").status == 200
    stack.freeze_main(unit)
    answer = proxy.chat("m", LARGE, stream=is_streamed)
    if is_streamed:
        assert answer.body.startswith(b": keep-alive\n\n")
        assert answer.events[0]["error"]["code"] == "backend_timeout"
    else:
        assert answer.status == 504
        assert answer.error["code"] == "backend_timeout"
    assert proxy.chat("m", LARGE).text == "hello from m"


def test_a_large_request_that_is_dropped_while_it_is_sent_is_noticed(stack: Stack) -> None:
    unit = stack.standin("m")
    proxy = stack.run({"m": unit})
    assert proxy.chat("m").status == 200
    stack.freeze_main(unit)
    sock = _send_chat(proxy.port, "m", LARGE)
    wait_for(lambda: proxy.status()["models"]["m"]["in_flight"] == 1)
    time.sleep(1)  # until the kernel takes no more
    sock.close()
    wait_for(lambda: "status=499" in proxy.log)
    wait_for(lambda: proxy.status()["models"]["m"]["in_flight"] == 0)


def test_a_large_request_under_which_the_process_ends_is_served_by_the_next(stack: Stack) -> None:
    """It was never read to its end, so no work is lost."""
    unit = stack.standin("m")
    proxy = stack.run({"m": unit})
    assert proxy.chat("m").status == 200
    pid = stack.freeze_main(unit)
    with in_background(lambda: proxy.chat("m", LARGE)) as results:
        wait_for(lambda: proxy.status()["models"]["m"]["in_flight"] == 1)
        time.sleep(1)  # until the kernel takes no more
        os.kill(pid, signal.SIGKILL)
    assert results[0].text == "hello from m"


@pytest.mark.parametrize(("request_timeout", "told"), [(1, "within 1 s"), (60, "within 5 s")])
def test_a_process_that_accepts_no_more_connections_is_a_504_and_is_restarted(
    stack: Stack, request_timeout: int, told: str
) -> None:
    """Stopped, with its queue full of those who gave up."""
    unit = stack.standin("m")
    proxy = stack.run({"m": unit}, request_timeout=request_timeout)
    assert proxy.post("/api/load", {"model": "m"}).status == 200
    stack.freeze_main(unit)
    with contextlib.ExitStack() as queued:
        with contextlib.suppress(TimeoutError):
            while True:
                queued.enter_context(socket.create_connection(("127.0.0.1", stack.port), timeout=0.5))
        answer = proxy.chat("m")
        assert answer.status == 504
        assert answer.error["code"] == "backend_timeout"
        assert told in answer.error["message"]
        assert proxy.chat("m").text == "hello from m"


def test_a_stopped_process_under_a_request_is_a_504_too(stack: Stack) -> None:
    """SIGSTOP: the kernel still accepts connections, nobody answers."""
    unit = stack.standin("m")
    proxy = stack.run({"m": unit}, request_timeout=1)
    assert proxy.chat("m").status == 200
    stack.freeze_main(unit)
    assert proxy.chat("m").status == 504
    assert proxy.chat("m").status == 200


def test_a_process_that_ends_as_soon_as_it_has_a_request_costs_no_request(stack: Stack, tmp_path: Path) -> None:
    """It may have been killed before the request came: a killed process may still read. A busy machine may need longer
    than what is allowed for that, so one answer in ten tries is enough."""
    proxy = stack.run({"m": stack.standin("m")})

    def crash_once(number: int) -> int:
        assert proxy.chat("m").status == 200  # a connection is kept: its process is not looked at once more
        return proxy.chat("m", standin={"crash": 7, "unless": str(tmp_path / str(number))}).status

    assert any(crash_once(number) == 200 for number in range(10))


def test_a_request_killed_by_hand_gets_an_error_and_the_next_is_served(stack: Stack) -> None:
    """Somebody stops the unit under a running request."""
    unit = stack.standin("m")
    proxy = stack.run({"m": unit})
    assert proxy.chat("m").status == 200
    with in_background(lambda: proxy.chat("m", standin={"delay_s": 20})) as results:
        wait_for(lambda: stack.seen()["running"] == 1)
        time.sleep(0.2)  # the request is well under way: younger ones are served by the next process
        stack.systemctl("stop", unit)
    assert results[0].status == 502
    assert unit in results[0].error["message"]
    assert proxy.chat("m").status == 200


def test_a_request_beside_a_stop_by_hand_is_served_by_the_next_process(stack: Stack) -> None:
    """The unit no longer listens and has not ended yet: its end is waited for."""
    unit = stack.standin("m", "--stop-s", "1.5")
    proxy = stack.run({"m": unit})
    assert proxy.post("/api/load", {"model": "m"}).status == 200
    pid = stack.main_pid(unit)
    with in_background(lambda: stack.systemctl("stop", unit)):
        wait_for(lambda: stack.active_state(unit) == "deactivating")
        wait_for(lambda: not _listens(stack.port))
        assert proxy.chat("m").text == "hello from m"
    assert stack.main_pid(unit) not in (0, pid)


def test_a_connection_made_after_the_process_ended_is_not_used(stack: Stack) -> None:
    """Whoever listens on the port by then is somebody else."""
    process = subprocess.Popen(["sleep", "60"])
    with socket.create_server(("127.0.0.1", stack.port)):
        url = f"http://127.0.0.1:{stack.port}"
        backend, model = Backend(url), Model("m", "m.service", url)
        loaded = Loaded(model, backend, Command(), "", process.pid)
        resident = Resident(loaded, ProcessWatch(process.pid), MainProcess(process.pid, "", "", 0.0), 0.0)

        def ask(seconds: float) -> None:
            bounds = Bounds(time.monotonic() + seconds, 1000)
            backend.ask(Message("GET", "/", b"", ""), Client(None), bounds, resident.check)

        with pytest.raises(BackendDeadline):  # it is sent, and this listener answers nobody
            ask(0.1)
        process.kill()
        process.wait()
        with pytest.raises(BackendLost) as lost:
            ask(5)
        assert lost.value.was_unread


def test_a_load_that_is_stopped_by_hand_ends_its_wait_at_once(stack: Stack) -> None:
    unit = stack.standin("m", "--load-s", "600")
    proxy = stack.run({"m": unit})
    with in_background(lambda: proxy.chat("m")) as results:
        wait_for(lambda: stack.active_state(unit) == "active")
        stack.systemctl("stop", unit)
    assert results[0].status == 503
    assert "stopped" in results[0].error["message"]


def test_an_idle_connection_that_the_backend_closed_is_not_a_lost_request(stack: Stack) -> None:
    """A restart by hand keeps the port and kills our idle connections."""
    unit = stack.standin("m")
    proxy = stack.run({"m": unit})
    assert proxy.chat("m").status == 200
    stack.systemctl("restart", unit)
    answers = [proxy.chat("m") for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3


def test_a_dropped_request_drops_the_backends(stack: Stack) -> None:
    """Logged as 499; the backend's connection is closed so that it stops generating."""
    proxy = stack.run({"m": stack.standin("m")})
    assert proxy.chat("m").status == 200

    def has_dropped(count: int) -> bool:
        seen = stack.seen()
        return bool(seen["dropped"] == count and seen["running"] == 0)

    for count, stream in enumerate((False, True), start=1):
        sock = _send_chat(proxy.port, "m", standin={"hang": True}, stream=stream)
        wait_for(lambda: stack.seen()["running"] == 1)
        sock.close()
        wait_for(partial(has_dropped, count))
    wait_for(lambda: proxy.log.count("status=499") == 2)
    assert proxy.status()["models"]["m"]["in_flight"] == 0


def test_a_dropped_stream_is_noticed_after_its_headers_too(stack: Stack) -> None:
    """After the grace the body is a generator in the server's hands; it is closed all the same."""
    proxy = stack.run({"m": stack.standin("m")})
    assert proxy.chat("m").status == 200
    sock = _send_chat(proxy.port, "m", standin={"hang": True}, stream=True)
    assert b"200 OK" in sock.recv(1000)  # after the grace
    sock.close()
    wait_for(lambda: stack.seen()["dropped"] == 1)
    wait_for(lambda: "status=499" in proxy.log)


def test_a_request_that_waits_and_is_dropped_leaves_the_queue(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a"), "b": stack.standin("b")})
    with in_background(lambda: proxy.chat("a", standin={"until_released": True})) as results:
        wait_for(lambda: proxy.state("a") == "ready" and stack.seen()["running"] == 1)
        sock = _send_chat(proxy.port, "b")
        wait_for(lambda: proxy.status()["waiting"] == 1)
        sock.close()
        wait_for(lambda: proxy.status()["waiting"] == 0)
        stack.release()
    assert results[0].status == 200
    assert proxy.state("a") == "ready"  # nobody asked for b any more


def test_a_load_for_nobody_is_stopped(stack: Stack) -> None:
    unit = stack.standin("slow", "--load-s", "600")
    proxy = stack.run({"slow": unit})
    sock = _send_chat(proxy.port, "slow")
    wait_for(lambda: stack.active_state(unit) == "active")
    sock.close()
    wait_for(lambda: stack.active_state(unit) in ("inactive", "failed"))
    wait_for(lambda: proxy.state("slow") == "stopped")


def test_clients_that_reset_their_connection_end_nothing_but_it(stack: Stack) -> None:
    """A reset in the moment between an answer and the wait for the next request concerns nobody else."""
    proxy = stack.run({"m": "m.service"})
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends a reset
            sock.sendall(request)
            assert sock.recv(1) == b"H"
    assert proxy.get("/health").status == 200
    assert "Traceback" not in proxy.log


def test_whether_a_port_is_free_is_not_guessed_without_open_files(stack: Stack) -> None:
    """The last thing that a cold start looks at before it starts the unit: it must not pass for another's port."""
    unit = stack.standin("m")
    proxy = stack.run({"m": unit})
    pid = proxy.process.pid
    wait_for(lambda: descriptors_of(pid)["socket:[]"] == 1)
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = _steady_descriptors(pid)
    # Room for the client's connection, what it waits on, what aborts the switch, and the one to systemd.
    limit = [number for number in range(len(taken) + 5) if number not in taken][4]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, usual[1]))
    assert "Too many open files" in proxy.chat("m").error["message"]
    assert stack.active_state(unit) == "inactive"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
    assert proxy.chat("m").status == 200


def test_a_backend_that_sends_elsewhere_is_a_502(stack: Stack) -> None:
    answer = stack.run({"m": stack.standin("m")}).chat("m", standin={"status": 302, "raw": "{}"})
    assert (answer.status, answer.error["code"]) == (502, "backend_error")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('{"error": {"message": "m", "type": null, "param": 5, "code": {}}}', "m"),
        ('{"error": null}', "the backend replied with status 400 and no message"),
    ],
)
def test_a_backends_error_gets_openais_shape(stack: Stack, raw: str, message: str) -> None:
    answer = stack.run({"m": stack.standin("m")}).chat("m", standin={"status": 400, "raw": raw})
    shape = {"message": message, "type": "invalid_request_error", "param": None, "code": "backend_error"}
    assert (answer.status, answer.error) == (400, shape)


@pytest.mark.parametrize(("room", "failures"), [(1, 2), (2, 2), (3, 2), (4, 1)])
def test_a_proxy_without_open_files_to_spare_switches_again_later(stack: Stack, room: int, failures: int) -> None:
    """Wherever in a switch it lacks one: who asks then gets an error that says so, and nobody after that. (With room
    for four, the loaded model is stopped for the first request, and its connection is there for the second.)"""
    proxy = stack.run({"a": stack.standin("a"), "b": stack.standin("b")})
    assert proxy.chat("a").status == 200
    pid = proxy.process.pid
    wait_for(lambda: descriptors_of(pid)["socket:[]"] == 2)  # it listens, and keeps one connection to the backend
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = _steady_descriptors(pid)
    limit = [number for number in range(len(taken) + room + 1) if number not in taken][room]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, usual[1]))
    for _ in range(failures):
        answer = proxy.chat("b")
        assert answer.status in (500, 503)
        assert answer.status == 500 or "too many open files" in answer.error["message"].lower()
        assert "active/running" not in answer.error["message"], "the unit is not to blame"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
    # A request may get its answer before the switch that it caused has failed; the next would join that switch.
    wait_for(lambda: {proxy.state(model) for model in "ab"} <= {"ready", "stopped", "failed"})
    assert "too many open files" in proxy.log.lower().replace("_", " ")  # as a reason or as a code
    for model in "bab":
        assert proxy.chat(model).text == f"hello from {model}"
    assert proxy.post("/api/unload", {}).status == 200


def test_without_a_user_manager_the_reason_is_reported(stack: Stack) -> None:
    """No bus: the proxy runs, says so in the journal, and each request gets the reason."""
    stack.write_config({"m": "m.service"})
    proxy = stack.start_proxy(env={"XDG_RUNTIME_DIR": str(stack.folder)})
    answer = proxy.chat("m")
    assert answer.status == 503
    assert "systemctl --user" in answer.error["message"]
    wait_for(lambda: "take_up_failed" in proxy.log)
    for path in ("/api/unload", "/api/hold"):
        answer = proxy.post(path, {})
        assert answer.status == 503
        assert "systemctl --user" in answer.error["message"]
    assert proxy.chat("m").error["code"] == "on_hold"  # as was asked, though nothing could be stopped


def _steady_descriptors(pid: int) -> set[int]:
    """The numbers of a process's open files, once they have been the same for a moment."""
    seen: list[str] = []

    def is_steady() -> bool:
        before, seen[:] = seen.copy(), os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
        return seen == before

    wait_for(is_steady)
    return {int(name) for name in seen}


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _send_chat(port: int, model: str, content: str = "Say hi.", **fields: Any) -> socket.socket:
    """Sends a chat request and leaves the answer to come."""
    import json

    from support.stack import chat

    body = json.dumps(chat(model, content, **fields)).encode()
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return sock


def test_a_unit_that_no_config_names_does_not_answer_in_a_models_place(stack: Stack) -> None:
    """Somebody starts it while the model's own unit starts, and it has the port first."""
    unit, stranger = stack.standin("m", service="ExecStartPre=/bin/sleep 2"), stack.standin("stranger")
    proxy = stack.run({"m": unit})
    with in_background(lambda: proxy.chat("m")) as results:
        wait_for(lambda: stack.active_state(unit) == "activating")
        stack.systemctl("start", stranger)
    assert results[0].error["code"] == "model_start_failed"
    stack.systemctl("stop", stranger)
    assert proxy.chat("m").text == "hello from m"
