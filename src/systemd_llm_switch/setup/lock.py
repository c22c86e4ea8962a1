"""The lock that lets only one set-up run at a time, on the folders that it writes to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from systemd_llm_switch.setup.ledger import remove_empty
from systemd_llm_switch.setup.places import Places, SetupError


@contextlib.contextmanager
def only_one(places: Places, *, uses_clone: bool = True) -> Iterator[list[Path]]:
    """Holds the lock of this user's set-up and, with `uses_clone`, that of the clone, which other users may share.
    Yields the folders of ours that were not there before; if nothing is recorded in the end, those that are empty are
    removed.

    Raises:
        SetupError: another set-up holds it; the message says which process.
    """
    missing = [folder for folder in places.folders if not folder.exists()]
    places.own_data.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        for folder in filter(None, (places.own_data, places.checkout if uses_clone else None)):
            descriptor = _lock(folder, places)
            held.callback(os.close, descriptor)
        try:
            yield missing
        finally:
            remove_empty((places.own_data,))
            if not places.ledger.exists():
                remove_empty(sorted(missing, reverse=True))


def _lock(folder: Path, places: Places) -> int:
    """An open descriptor that holds the lock. Tries again if an uninstall removed the folder meanwhile."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise SetupError(f"another set-up works in {places.short(folder)}{holder}; wait until it ends") from error
        if folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Which process holds the lock, if the kernel shows it (proc_locks(5))."""
    inode = os.fstat(descriptor).st_ino
    found = re.search(rf"FLOCK +ADVISORY +WRITE +(\d+) +\S+:{inode} ", Path("/proc/locks").read_text())
    if found is None or found[1] == "0":
        return ""
    try:
        words = Path(f"/proc/{found[1]}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f" (process {found[1]})"
    line = b" ".join(words).decode(errors="replace").strip()[:200]
    return f" (process {found[1]}: {line})"
