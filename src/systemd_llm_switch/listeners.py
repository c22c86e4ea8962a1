"""Who listens on a TCP port of this machine, as the kernel tells it: proc_net(5), proc_pid_fd(5).

Knows nothing of units or models. Where the kernel does not tell (another user's process, another machine's port),
nobody is known to listen.
"""

from __future__ import annotations

import os
from pathlib import Path

_LISTEN = "0A"


def listening_sockets(port: int) -> frozenset[str]:
    """The sockets that listen on a port, as /proc/PID/fd names them."""
    found = []
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.append(f"socket:[{fields[9]}]")
    return frozenset(found)


def holds_any(pid: int, sockets: frozenset[str]) -> bool:
    """Whether a process holds one of these sockets open; False where that may not be seen."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)  # noqa: PTH208  (a path a file would be made and thrown away)
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(f"{folder}/{name}") in sockets:  # noqa: PTH115
                return True
        except OSError:
            continue  # closed meanwhile
    return False
