"""A D-Bus connection to systemd's user manager: calls, and the jobs that calls start.

Knows the protocol (https://dbus.freedesktop.org/doc/dbus-specification.html). `manager` knows the methods and what
their answers mean.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from jeepney import DBusAddress, HeaderFields, Message, MessageType, new_method_call
from jeepney.auth import BEGIN, make_auth_external
from jeepney.bus import get_connectable_addresses
from jeepney.low_level import calc_msg_size

from systemd_llm_switch.quoting import printable
from systemd_llm_switch.systemd import runtime_dir
from systemd_llm_switch.waiting import LONGEST_WAIT_S, remaining_s

_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = DBusAddress(_PATH, _NAME, f"{_NAME}.Manager")
_BUS = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
_PROPERTIES = "org.freedesktop.DBus.Properties"
_JOB_REMOVED = "JobRemoved"
_JOBS_END = f"type='signal',sender='{_NAME}',path='{_PATH}',interface='{_NAME}.Manager',member='{_JOB_REMOVED}'"
UNFINISHED = "unfinished"  # our word for a job that did not end in time
REPLY_TIMEOUT_S = 25.0  # sd-bus's own default, and so systemctl's: a manager that reloads may be busy for seconds
_PREFIX_BYTES = 16  # of a message; they hold its size
_MAX_MESSAGE_BYTES = 16 << 20  # a unit's properties are some 20 KiB
_MAX_GREETING_BYTES = 4096
_CHUNK_BYTES = 1 << 16
# What jeepney raises for bytes that are not a message; it has no exception class for that.
_MALFORMED = (AssertionError, LookupError, RecursionError, TypeError, ValueError, struct.error)


class BusError(Exception):
    """The manager cannot be asked: it does not run, does not answer, hung up, or does not speak D-Bus. The message says
    which."""


class BusTimeout(BusError):
    """An answer or the end of a job did not come in time."""


class BusClosed(BusError):
    """The other side hung up or refuses connections. A manager that re-executes itself does so for a moment."""


class Interrupted(Exception):
    """The caller's `Limit` ended the wait for a job; the job goes on."""


class CallRefused(Exception):
    """The manager answered a call with an error. The message is the manager's; `name` is the D-Bus error name (see
    org.freedesktop.systemd1(5))."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(words)
        self.name = name


class Limit(NamedTuple):
    """When to stop waiting for a job: at `deadline` (`time.monotonic`), or as soon as `interrupt_fd` is readable."""

    deadline: float
    interrupt_fd: int | None = None


class BusCall(NamedTuple):
    """A method of the manager, or of another of its objects."""

    method: str
    signature: str | None = None
    arguments: tuple[Any, ...] = ()
    target: DBusAddress = _MANAGER


class BusReply:
    """The answer to one call."""

    def __init__(self, message: Message) -> None:
        self._body: tuple[Any, ...] = message.body
        self.refusal: CallRefused | None = None
        if message.header.message_type is MessageType.error:
            name = message.header.fields.get(HeaderFields.error_name, "")
            self.refusal = CallRefused(name, str(self._body[0]) if self._body else name)

    def values(self) -> tuple[Any, ...]:
        """What the method returned.

        Raises:
            CallRefused
        """
        if self.refusal is not None:
            raise self.refusal
        return self._body


def all_properties(unit: str) -> BusCall:
    """Asks for every property of a unit, as one snapshot. The answer is one dict that maps a name to signature and
    value. systemd loads the unit if it is not loaded."""
    return BusCall("GetAll", "s", ("",), DBusAddress(f"{_PATH}/unit/{_escape(unit)}", _NAME, _PROPERTIES))


def properties(unit: str, *named: tuple[str, str]) -> list[BusCall]:
    """Asks for some properties of a unit, each given as interface (`Unit`, `Service`) and name. Each answer is a
    signature and a value. If the unit is not loaded, systemd loads it once for each property."""
    target = DBusAddress(f"{_PATH}/unit/{_escape(unit)}", _NAME, _PROPERTIES)
    return [BusCall("Get", "ss", (f"{_NAME}.{interface}", name), target) for interface, name in named]


class ManagerBus:
    """One connection. A context manager; not thread-safe.

    It uses the manager's own socket, as systemctl does, or else the session bus.

    Raises:
        BusError: from the constructor and from every method.
    """

    def __init__(self, environ: Mapping[str, str], reply_timeout_s: float = REPLY_TIMEOUT_S) -> None:
        self._reply_timeout_s = reply_timeout_s
        self._serials = itertools.count(1)
        self._received = bytearray()
        self._job_results: dict[str, str] = {}
        address, is_private = _socket(environ)
        self._hears_jobs = is_private  # on its own socket, the manager sends its signals unasked
        self._interrupt_fd: int | None = None
        self._name = address.replace("\0", "@")
        try:
            self._sock = socket.socket(socket.AF_UNIX)
        except OSError as error:
            raise BusError(f"no socket can be opened: {error.strerror}") from error
        try:
            self._greet(address, time.monotonic() + self._reply_timeout_s)
            if not is_private:
                self._call_bus("Hello")
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()

    def call(self, call: BusCall) -> tuple[Any, ...]:
        """What a method returns.

        Raises:
            CallRefused
        """
        return self.call_all([call])[0].values()

    def call_all(self, calls: Sequence[BusCall]) -> list[BusReply]:
        """Sends calls together, in one round trip, and returns their answers."""
        deadline = time.monotonic() + self._reply_timeout_s
        numbered = {next(self._serials): call for call in calls}
        self._send(b"".join(_serialise(call, serial) for serial, call in numbered.items()), deadline)
        answers: dict[int, BusReply] = {}
        while len(answers) < len(numbered):
            message = self._receive(deadline)
            serial = message.header.fields.get(HeaderFields.reply_serial)
            if serial in numbered:
                answers[serial] = BusReply(message)
        return [answers[serial] for serial in numbered]

    def run_jobs(self, calls: Sequence[BusCall], limit: Limit) -> list[str | CallRefused]:
        """Makes calls that each start a job (StartUnit, StopUnit), all at once, and waits until the jobs end. Returns
        for each job systemd's result (org.freedesktop.systemd1(5), JobRemoved: `done`, `failed`, ...), UNFINISHED if it
        did not end by the deadline, or the refusal of the call.

        Raises:
            Interrupted
        """
        if not self._hears_jobs:
            self._call_bus("AddMatch", "s", (_JOBS_END,))
            self.call(BusCall("Subscribe"))
            self._hears_jobs = True
        jobs = [answer.refusal or str(answer.values()[0]) for answer in self.call_all(calls)]
        # A job may end before the answer that names it arrives, so its result may be here already.
        with contextlib.suppress(BusTimeout), self._interruptible(limit.interrupt_fd):
            while any(isinstance(job, str) and job not in self._job_results for job in jobs):
                self._receive(limit.deadline)
        return [self._job_results.get(job, UNFINISHED) if isinstance(job, str) else job for job in jobs]

    @contextlib.contextmanager
    def _interruptible(self, interrupt_fd: int | None) -> Iterator[None]:
        self._interrupt_fd = interrupt_fd
        try:
            yield
        finally:
            self._interrupt_fd = None

    def _greet(self, address: str, deadline: float) -> None:
        """Connects, and authenticates as our own user (SASL EXTERNAL).

        Everything is sent in one write, as sd-bus does. Line by line, as jeepney does it, may hang for ever: bytes that
        the manager reads together with BEGIN are processed only when more bytes come (seen with systemd 252).
        """
        try:
            self._wait_until(deadline)
            self._sock.connect(address)
        except OSError as error:
            raise self._broken(error) from error
        self._send(b"\0" + make_auth_external() + BEGIN, deadline)
        while b"\r\n" not in self._received:
            if len(self._received) > _MAX_GREETING_BYTES:
                raise BusError(f"{self._name} is not a D-Bus socket")
            self._read(deadline)
        line, _, self._received = self._received.partition(b"\r\n")
        if not line.startswith(b"OK "):
            raise BusError(f"{self._name} refused to authenticate us: {printable(bytes(line), 100)}")

    def _call_bus(self, method: str, signature: str | None = None, arguments: tuple[Any, ...] = ()) -> None:
        """Calls a method of the session bus itself."""
        try:
            self.call(BusCall(method, signature, arguments, _BUS))
        except CallRefused as error:
            raise BusError(f"{self._name} refused {method}: {error}") from error

    def _receive(self, deadline: float) -> Message:
        """The next answer, or the end of a job, which is noted. Other signals are not parsed: each job sends a dozen,
        and parsing them would cost more than everything else."""
        while True:
            try:
                data = self._receive_bytes(deadline)
                if data[1] == MessageType.signal.value and _JOB_REMOVED.encode() not in data:
                    continue
                message = Message.from_buffer(data)
                if message.header.fields.get(HeaderFields.member) == _JOB_REMOVED:
                    _, job, _, result = message.body
                    self._job_results[job] = result
            except _MALFORMED as error:
                raise BusError(f"{self._name} sent something that is not a D-Bus message") from error
            return message

    def _receive_bytes(self, deadline: float) -> bytes:
        size = _PREFIX_BYTES
        while len(self._received) < size or len(self._received) < (size := self._message_size()):
            self._read(deadline)
        message = bytes(self._received[:size])
        del self._received[:size]
        return message

    def _message_size(self) -> int:
        size: int = calc_msg_size(bytes(self._received[:_PREFIX_BYTES]))
        if size > _MAX_MESSAGE_BYTES:
            raise BusError(f"{self._name} sent a message of {size} bytes")
        return size

    def _send(self, data: bytes, deadline: float) -> None:
        try:
            self._wait_until(deadline)
            self._sock.sendall(data)
        except OSError as error:
            raise self._broken(error) from error

    def _read(self, deadline: float) -> None:
        try:
            self._check_interrupt(deadline)
            self._wait_until(deadline)
            data = self._sock.recv(_CHUNK_BYTES)
        except OSError as error:
            raise self._broken(error) from error
        if not data:
            raise BusClosed(f"{self._name}: the manager closed the connection")
        self._received += data

    def _check_interrupt(self, deadline: float) -> None:
        """Blocks until there is something to read or the deadline has come, if the wait may be interrupted.

        Raises:
            Interrupted
        """
        if self._interrupt_fd is None:
            return
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._interrupt_fd, select.POLLIN)
        if self._interrupt_fd in dict(poll.poll(min(remaining_s(deadline), LONGEST_WAIT_S) * 1000)):
            raise Interrupted

    def _wait_until(self, deadline: float) -> None:
        left_s = remaining_s(deadline)
        if left_s == 0:  # for a socket, 0 means not to block, and the caller would read in a busy loop
            raise TimeoutError
        self._sock.settimeout(left_s)

    def _broken(self, error: OSError) -> BusError:
        if isinstance(error, TimeoutError):
            return BusTimeout(f"{self._name}: the manager did not answer in time")
        kind = BusClosed if isinstance(error, ConnectionError) else BusError
        return kind(f"{self._name}: {error.strerror or error}")


def _socket(environ: Mapping[str, str]) -> tuple[str, bool]:
    """The socket to connect to, and whether it is the manager's own.

    Raises:
        BusError: neither exists.
    """
    folder = runtime_dir.find(environ)
    private, public = f"{folder}/systemd/private", f"{folder}/bus"
    if folder and os.path.exists(private):  # noqa: PTH110  (the path as the environment has it)
        return private, True
    try:
        if named := environ.get("DBUS_SESSION_BUS_ADDRESS"):
            return next(get_connectable_addresses(named)), False
    except (RuntimeError, ValueError) as error:
        raise BusError(f"DBUS_SESSION_BUS_ADDRESS={named} cannot be used: {error}") from error
    if folder and os.path.exists(public):  # noqa: PTH110
        return public, False
    raise BusError(f"there is no {private}" if folder else "XDG_RUNTIME_DIR is not set")


def _escape(unit: str) -> str:
    """A unit's name as part of an object path (as sd_bus_path_encode(3), except that a first digit is not escaped)."""
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"_{byte:02x}" for byte in unit.encode())


def _serialise(call: BusCall, serial: int) -> bytes:
    message = new_method_call(call.target, call.method, call.signature, call.arguments)
    data: bytes = message.serialise(serial)
    return data
