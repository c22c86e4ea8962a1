"""Starts proxies as forks of a process that has imported their code.

The import takes 0.3 s of CPU time, and the tests start more than a thousand proxies. As a script, this file is that
process: it gets arguments, environment, folder and log file of each proxy through a socket, and sends back the proxy's
process id. The proxy becomes a child of the process that asked, so that it can wait for its end.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

SRC = Path(__file__).resolve().parents[2] / "src"
_MOST_BYTES = 1 << 20
_PR_SET_CHILD_SUBREAPER = 36


class Forked:
    """A child process, with what the tests need of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # reaped by another thread
                handle = os.pidfd_open(self.pid)
                try:
                    select.select([handle], [], [], timeout)
                finally:
                    os.close(handle)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Starter:
    """The process that forks, as its parent sees it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # The folder is there to be seen: run_tests.sh ends what has it in its command line.
            command = [sys.executable, "-P", __file__, str(theirs.fileno()), tempfile.gettempdir()]
            env = os.environ | {"PYTHONPATH": str(SRC)}
            self._process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()])
        atexit.register(self._close)

    def start(self, arguments: Sequence[str], env: Mapping[str, str], log: IO[bytes]) -> Forked:
        order = json.dumps({"arguments": arguments, "env": dict(env), "folder": str(Path.cwd())}).encode()
        assert len(order) < _MOST_BYTES
        with self._lock, _adopting():
            socket.send_fds(self._socket, [order], [log.fileno()])
            pid = self._socket.recv(20)
        assert pid, "the process that starts the proxies has ended"
        return Forked(int(pid))

    def _close(self) -> None:
        self._socket.close()
        self._process.wait()


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """A grandchild whose parent ends meanwhile becomes a child of this process."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


@functools.cache
def _starter() -> _Starter:
    return _Starter()


def start(arguments: Sequence[str], env: Mapping[str, str], log: IO[bytes]) -> Forked:
    """Does what `python -m systemd_llm_switch ARGUMENTS` does; stdout and stderr go to the log."""
    return _starter().start(arguments, env, log)


# --- the process that forks ---------------------------------------------------------------------------


def _serve(channel: socket.socket) -> list[str]:
    """Forks a proxy for each order. Returns a proxy's arguments, in that proxy; ends when nobody can order any more."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    while True:
        order, descriptors, _, _ = socket.recv_fds(channel, _MOST_BYTES, 1)
        if not order:
            raise SystemExit
        [log] = descriptors
        ours, theirs = os.pipe()
        between = os.fork()
        if between:
            os.close(theirs)
            os.close(log)
            with open(ours, "rb") as pipe:  # noqa: PTH123
                pid = pipe.read()
            os.waitpid(between, 0)  # from now on the proxy is a child of who asked
            channel.send(pid)
            continue
        if proxy := os.fork():
            os.write(theirs, str(proxy).encode())
            os._exit(0)
        for descriptor in (ours, theirs):
            os.close(descriptor)
        channel.close()
        signal.signal(signal.SIGINT, interrupt)
        return _become(json.loads(order), log)


def _become(order: dict[str, Any], log: int) -> list[str]:
    """Makes this process what a new one would be."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    return list(order["arguments"])


if __name__ == "__main__":
    import systemd_llm_switch.command.running  # noqa: F401
    from systemd_llm_switch.main import main

    sys.argv[1:] = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv[0] = str(SRC / "systemd_llm_switch/__main__.py")
    raise SystemExit(main())
