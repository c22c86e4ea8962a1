"""What Linux reports of a process: its CPU time, its memory, its children, who listens on a port."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

_LISTENING = "0A"


def cpu_s(pid: int) -> float:
    """CPU time that a process has used, all its threads together: clock_getcpuclockid(3), in nanoseconds."""
    return time.clock_gettime((~pid << 3) | 2)


def pss_mib(pid: int) -> float:
    """The resident memory of a process, where each shared page counts by its share: proc_pid_smaps(5)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    tasks = Path(f"/proc/{pid}/task")
    found: list[int] = []
    for task in tasks.iterdir():
        with contextlib.suppress(OSError):
            found += (int(word) for word in (task / "children").read_text().split())
    return found


def option_of(pid: int, name: str) -> str | None:
    """The value of a command line option of a process."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        return words[words.index(name) + 1]
    return None


def listener_pid(port: int) -> int | None:
    """The process that listens on a port of this machine; None if it cannot be found."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in inodes for link in folder.iterdir()):
                return int(folder.parent.name)
    return None


def _listening_inodes(port: int) -> list[str]:
    found = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                found.append(words[9])
    return found
