"""Which control groups listen on a TCP port of this machine: sock_diag(7), cgroups(7).

Must not know units or models. A socket belongs to the control group that made it. The kernel shows that to every
process. It hides the open files of other processes (/proc/PID/fd) from a process in a user namespace, such as a
hardened unit. If the kernel does not know (another machine's port, a kernel before 5.7), there are no listeners.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _NLMSG_ERROR, _NLMSG_DONE = 20, 2, 3
_REQUEST_ALL = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_LISTENING = 1 << 10  # TCP_LISTEN
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_QUERY = struct.Struct("=4BI")  # inet_diag_req_v2 up to its id: family, protocol, extensions, pad, states
_SOCKET_ID = struct.Struct("!2H32x12x")  # inet_diag_sockid: source and destination port, addresses, interface, cookie
_MESSAGE_LENGTH = 72  # inet_diag_msg; attributes follow
_ATTRIBUTE = struct.Struct("=2H")  # rtattr: length, type
_CGROUP_ID = 21  # INET_DIAG_CGROUP_ID: a number of 64 bits, which is also the inode of the group's folder


def listening_sockets(port: int) -> frozenset[int]:
    """The sockets that listen on a port, each as the number of the control group that made it."""
    with suppress(OSError, struct.error), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(1)
        return frozenset(group for family in (socket.AF_INET, socket.AF_INET6) for group in _ask(sock, family, port))
    return frozenset()


def holds_any(pid: int, sockets: frozenset[int]) -> bool:
    """Whether a process is in a control group that made one of these sockets; False if that is unknown."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
        own = next(line.removeprefix("0::") for line in groups.splitlines() if line.startswith("0::"))
        return _inode(f"{cgroup_root()}{own}") in sockets
    except (OSError, StopIteration):
        return False


def control_groups(sockets: frozenset[int]) -> Iterator[str]:
    """The paths of the control groups that made these sockets, as systemd writes them. Searches the whole tree."""
    if not sockets:
        return
    with suppress(OSError):
        root = cgroup_root()
        for folder, names, _ in os.walk(root):
            for name in names:
                if _inode(f"{folder}/{name}") in sockets:
                    yield f"{folder}/{name}".removeprefix(root)


def _inode(path: str) -> int:
    """0 if it no longer exists."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116  (many are looked at)
    except OSError:
        return 0


def _ask(sock: socket.socket, family: int, port: int) -> Iterator[int]:
    """The control groups of the sockets of one address family.

    Raises:
        OSError, struct.error: the kernel does not answer.
    """
    query = _QUERY.pack(family, socket.IPPROTO_TCP, 0, 0, _LISTENING) + _SOCKET_ID.pack(port, 0)
    sock.send(_HEADER.pack(_HEADER.size + len(query), _SOCK_DIAG_BY_FAMILY, _REQUEST_ALL, 0, 0) + query)
    yield from groups_in(iter(lambda: sock.recv(1 << 16), b""))


def groups_in(answer: Iterable[bytes]) -> Iterator[int]:
    """The control groups in the kernel's answer, which ends with a message that says so.

    Raises:
        struct.error: it is malformed.
    """
    for received in answer:
        for kind, message in _split(received, _HEADER):
            if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                return
            for attribute, value in _split(message[_MESSAGE_LENGTH:], _ATTRIBUTE):
                if attribute == _CGROUP_ID:
                    yield int.from_bytes(value, sys.byteorder)


def _split(data: bytes, header: struct.Struct) -> Iterator[tuple[int, bytes]]:
    """The types and contents of messages, or of attributes, that follow one another.

    Raises:
        struct.error: a length does not even cover its own header; the next one's place is unknown.
    """
    while len(data) >= header.size:
        length, kind, *_ = header.unpack_from(data)
        if length < header.size:
            raise struct.error(f"a length of {length}")
        yield kind, data[header.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def cgroup_root() -> str:
    """Where cgroup2 is mounted (on hybrid hosts below /sys/fs/cgroup/unified).

    Raises:
        OSError: it is not mounted.
    """
    for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, folder, kind, *_ = line.split()
        if kind == "cgroup2":
            return folder
    raise FileNotFoundError("no cgroup2 is mounted")
