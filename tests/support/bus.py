"""A user manager's socket that fails: a relay to the real one, or a script alone."""

from __future__ import annotations

import abc
import contextlib
import enum
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from jeepney import DBusAddress, HeaderFields, Message, new_error, new_method_return, new_signal
from jeepney.low_level import calc_msg_size

_MANAGER = DBusAddress("/org/freedesktop/systemd1", interface="org.freedesktop.systemd1.Manager")
_JOB = "/org/freedesktop/systemd1/job/4000000000"


class Fault(enum.Enum):
    """What becomes of a call."""

    REFUSE = "it gets an error: 'the bus is gone'"
    PRETEND = "its job is said to be done, and nothing was"
    FAIL_LATER = "it is done, and its job is said to have failed"
    HANG_UP = "the connection is closed"


# Decides on a call by its words: method, object path, arguments. It may block, and so hold the call up.
Rule = Callable[[str], Fault | None]


class Listener(abc.ABC):
    """A socket where a user manager's would be; `env` leads there, `connections` is how many came so far, and
    `connected` how many are there. A context manager."""

    def __init__(self) -> None:
        self.connections = 0
        self.connected = 0
        self._lock = threading.Lock()
        self._folder = tempfile.mkdtemp(prefix="bus-")  # not pytest's: a socket's path must be short
        self.env = {"XDG_RUNTIME_DIR": self._folder, "DBUS_SESSION_BUS_ADDRESS": ""}
        (Path(self._folder) / "systemd").mkdir()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(f"{self._folder}/systemd/private")
        self._socket.listen()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept_all, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        shutil.rmtree(self._folder)

    def _accept_all(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._socket.accept()
                self._count(1)
                threading.Thread(target=self._serve_one, args=(peer,), daemon=True).start()

    def _serve_one(self, peer: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError), peer:
                self.serve(peer)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self.connections += max(0, change)
            self.connected += change

    @abc.abstractmethod
    def serve(self, peer: socket.socket) -> None:
        """One connection, from its first byte; closed afterwards."""


class Scripted(Listener):
    """Welcomes a client, with more in the same write if it is so told, and then does as the script says."""

    def __init__(self, script: Callable[[socket.socket], None], more: bytes = b"") -> None:
        super().__init__()
        self._script = script
        self._more = more

    def serve(self, peer: socket.socket) -> None:
        greeting = b""
        while b"BEGIN\r\n" not in greeting:
            greeting += peer.recv(4096)
        peer.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n" + self._more)
        self._script(peer)


class Silent(Listener):
    """Accepts, and says nothing."""

    def serve(self, peer: socket.socket) -> None:
        while peer.recv(4096):
            pass


class Between(Listener):
    """Passes everything on to the real manager and back, but for what the rule says."""

    def __init__(self, manager_env: dict[str, str], rule: Rule) -> None:
        super().__init__()
        self._target = f"{manager_env['XDG_RUNTIME_DIR']}/systemd/private"
        self._rule = rule

    def serve(self, peer: socket.socket) -> None:
        failing_later: set[str] = set()  # units
        with socket.socket(socket.AF_UNIX) as manager:
            manager.connect(self._target)
            manager.sendall(peer.recv(4096))  # as it comes: the greeting is one write
            back = threading.Thread(target=_pass_back, args=(manager, peer, failing_later), daemon=True)
            back.start()
            for data in messages(peer):
                call = Message.from_buffer(data)
                fault = self._rule(words(call))
                if fault is Fault.HANG_UP:
                    break
                if fault is Fault.REFUSE:
                    peer.sendall(refusal(call))
                elif fault is Fault.PRETEND:
                    peer.sendall(job_begun(call) + job_ended())
                else:
                    if fault is Fault.FAIL_LATER:
                        failing_later.add(call.body[0])
                    manager.sendall(data)
            manager.shutdown(socket.SHUT_RDWR)
            back.join()


def _pass_back(manager: socket.socket, peer: socket.socket, failing_later: set[str]) -> None:
    with contextlib.suppress(OSError):
        data = manager.recv(1 << 16)
        line, _, rest = data.partition(b"\r\n")
        peer.sendall(line + b"\r\n")
        for message in messages(manager, rest):
            if b"JobRemoved" in message:
                _, job, unit, _ = Message.from_buffer(message).body
                if unit in failing_later:
                    failing_later.remove(unit)
                    message = job_ended(job, "failed")
            peer.sendall(message)


def messages(source: socket.socket, begun: bytes = b"") -> Iterator[bytes]:
    """The D-Bus messages that come, until the other side hangs up."""
    received = bytearray(begun)
    while True:
        while len(received) >= 16 and len(received) >= (size := calc_msg_size(bytes(received[:16]))):
            yield bytes(received[:size])
            del received[:size]
        data = source.recv(1 << 16)
        if not data:
            return
        received += data


def words(call: Message) -> str:
    """A call in words, to decide on."""
    fields = call.header.fields
    return f"{fields[HeaderFields.member]} {fields[HeaderFields.path]} {call.body}"


def refusal(call: Message, text: str = "the bus is gone.") -> bytes:
    """An error for an answer."""
    return _wire(new_error(call, "org.freedesktop.DBus.Error.Failed", "s", (text,)), 1)


def job_begun(call: Message, job: str = _JOB) -> bytes:
    """The answer that names a job."""
    return _wire(new_method_return(call, "o", (job,)), 1)


def job_ended(job: str = _JOB, result: str = "done") -> bytes:
    """The signal that a job is over."""
    body = (int(job.rpartition("/")[2]), job, "some.service", result)
    return _wire(new_signal(_MANAGER, "JobRemoved", "uoss", body), 2)


def _wire(message: Message, serial: int) -> bytes:
    wire: bytes = message.serialise(serial)  # jeepney has no types
    return wire
