"""One folder that a llama-server saves contexts to: our own files in it, and nothing else.

Every access names a file within the open folder and follows no symbolic link. Files of others are neither read,
changed nor removed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from systemd_llm_switch.contexts.entry import OURS, FileMark

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MOST_FILES = 10_000  # no more names are read: a folder with more files is not ours
_LARGEST_TEXT = 1 << 20


class FolderProblem(Exception):
    """The folder cannot be used; the message says why, and what to do."""


class Folder:
    """Stateless: each method opens the folder anew. Every method may raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """
        Raises:
            FolderProblem: contexts cannot be kept here, or other users could read them.
        """
        try:
            found = self.path.stat()
        except OSError as error:
            raise FolderProblem(f"{self.path}: {error.strerror}; create the folder, with mode 0700") from error
        if not stat.S_ISDIR(found.st_mode):
            raise FolderProblem(f"{self.path} is not a folder")
        if found.st_uid != os.getuid() or found.st_mode & _OTHERS_MAY_WRITE:
            raise FolderProblem(f"{self.path} must belong to this user, and others must not write it: chmod 700")
        if not os.access(self.path, os.W_OK | os.X_OK | os.R_OK):
            raise FolderProblem(
                f"the proxy must not write {self.path}: add it to `ReadWritePaths=` of the proxy's unit"
            )

    def make_private(self) -> None:
        """Sets mode 0700 if the folder has only files of ours."""
        with self._opened() as folder, os.scandir(folder) as found:
            is_private = stat.S_IMODE(os.fstat(folder).st_mode) == 0o700
            if not is_private and all(OURS.fullmatch(item.name) for item in found):
                os.fchmod(folder, 0o700)

    def names(self) -> list[str]:
        """The names that have our form. Such a name may still be a link or a folder."""
        with self._opened() as folder, os.scandir(folder) as found:
            names = [item.name for item, _ in zip(found, range(_MOST_FILES), strict=False)]
        return [name for name in names if OURS.fullmatch(name)]

    def look(self, name: str) -> os.stat_result | None:
        """The status of a regular file of this user without further hard links; None for anything else."""
        with self._opened() as folder:
            return _look(folder, name)

    def mark(self, name: str) -> FileMark | None:
        """Identifies the file under a name, to notice another file there; None if no file of ours has the name."""
        found = self.look(name)
        return None if found is None else FileMark(found.st_size, found.st_mtime_ns, found.st_ino)

    def make_private_file(self, name: str) -> None:
        """Sets mode 0600, whatever the backend's umask was."""
        with self._opened() as folder, _file(folder, name, os.O_RDONLY) as handle:
            os.fchmod(handle, 0o600)

    def read(self, name: str) -> tuple[str, float]:
        """A small file's text, and its time.

        Raises:
            ValueError: it is too large, or not text.
        """
        with self._opened() as folder, _file(folder, name, os.O_RDONLY) as handle:
            found = os.fstat(handle)
            if found.st_size > _LARGEST_TEXT:
                raise ValueError(f"{name} is too large")
            return os.read(handle, _LARGEST_TEXT).decode(), found.st_mtime

    def write(self, name: str, text: str) -> None:
        """Writes a small file: all of it or nothing."""
        new = name.rpartition(".")[0] + ".part"
        data = text.encode()
        with self._opened() as folder:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with _file(folder, new, flags) as handle:
                if os.write(handle, data) != len(data):
                    raise OSError(f"{name} could not be written whole")
            os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)

    def rename(self, old: str, new: str) -> None:
        with self._opened() as folder:
            os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)

    def touch(self, name: str, at: float) -> None:
        """Sets a file's time."""
        with self._opened() as folder, _file(folder, name, os.O_RDONLY) as handle:
            os.utime(handle, (at, at))

    def remove(self, name: str) -> int:
        """Removes a file of ours; returns its size in bytes. Other files stay."""
        if not OURS.fullmatch(name):
            return 0
        with self._opened() as folder:
            found = _look(folder, name)
            if found is None:
                return 0
            os.unlink(name, dir_fd=folder)
            return found.st_size

    def free_bytes(self) -> int:
        """How many bytes may be written until only a tenth of the disk is free."""
        disk = os.statvfs(self.path)
        return int(disk.f_bavail - disk.f_blocks / 10) * disk.f_frsize

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield handle
        finally:
            os.close(handle)


def _look(folder: int, name: str) -> os.stat_result | None:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and found.st_nlink == 1
    return found if is_ours else None


@contextlib.contextmanager
def _file(folder: int, name: str, flags: int) -> Iterator[int]:
    handle = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        yield handle
    finally:
        os.close(handle)
