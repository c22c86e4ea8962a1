"""A private systemd user manager with a journal, for containers and tests, where none runs.

Must not know the proxy or models. Needs only Python's standard library.

As a command:  python3 deploy/user_manager.py start --home DIR   (prints the `export` lines that lead to it)
               python3 deploy/user_manager.py stop --home DIR
               python3 deploy/user_manager.py list

Several managers may run at once. They share a journald and folders below /run/systemd: the first manager makes them,
and the last one removes them.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from systemd_llm_switch.systemd.listeners import cgroup_root

RECORDS = Path("/run/systemd-llm-switch")
BOOTED_MARK = Path("/run/systemd/system")  # what sd_booted(3) looks for; without it systemctl refuses to work
# What systemd shows instead of files that a unit must not see (ProtectKernelLogs=, for example); PID 1 makes it.
HIDDEN_NODES = Path("/run/systemd/inaccessible")
HIDDEN_KINDS = {"reg": stat.S_IFREG, "fifo": stat.S_IFIFO, "sock": stat.S_IFSOCK}
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
PROGRAM_FOLDERS = (Path("/usr/lib/systemd"), Path("/lib/systemd"))
# User ids that no user has: "unused" in systemd's own table (UIDS-GIDS.md).
FREE_NUMBERS = range(60578, 61184)
INSTALL_HINT = "apt-get update && apt-get install --yes systemd"
# A unit that inherits one of these would talk to the wrong manager, or believe that it was started by one.
FOREIGN_VARIABLES = frozenset(
    (
        *("DBUS_SESSION_BUS_ADDRESS", "INVOCATION_ID", "JOURNAL_STREAM", "MANAGERPID", "SYSTEMD_EXEC_PID"),
        *("LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"),
        *("MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE", "XDG_SESSION_ID"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"),
    )
)
# A real user manager starts with almost no environment, and so must a private one.
KEPT_FOR_UNITS = ("PATH", "LANG", "LC_ALL", "TZ")


class UserManagerError(Exception):
    """A private manager cannot be started here, or it failed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one with the same id."""

    pid: int
    started: int  # clock ticks since boot, field 22 of /proc/PID/stat

    @classmethod
    def of(cls, pid: int) -> Process:
        """Raises ProcessLookupError when no such process lives."""
        return cls(pid, _start_ticks(pid))

    def is_alive(self) -> bool:
        try:
            return _start_ticks(self.pid) == self.started
        except ProcessLookupError:
            return False

    def end(self, within_s: float) -> bool:
        """Sends SIGTERM. True if the process ends within `within_s` seconds or has ended already."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.is_alive():
                return True
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            gone = bool(select.select([pidfd], [], [], within_s)[0])
        finally:
            os.close(pidfd)
        with contextlib.suppress(ChildProcessError):  # it is our child only when this very process started it
            os.waitpid(self.pid, os.WNOHANG)
        return gone


@dataclass(frozen=True, slots=True)
class UserManager:
    """A running private manager. `env` leads any subprocess to it; `stop()` leaves nothing behind."""

    process: Process
    home: Path
    config_home: Path | None
    runtime_dir: Path
    cgroup: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def env(self) -> dict[str, str]:
        """This process's environment, in which `systemctl --user` and HOME are the private ones."""
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
        return kept | _own_variables(self.home, self.config_home, self.runtime_dir)

    @classmethod
    def start(cls, home: Path, config_home: Path | None = None) -> UserManager:
        """Blocks until the manager has started its default target. Raises UserManagerError."""
        check_machine()
        home = home.absolute()
        home.mkdir(parents=True, exist_ok=True)
        with _records_lock():
            _provide_shared_parts()
            manager = _spawn(home, config_home.absolute() if config_home else None)
        try:
            manager._wait_until_started()
        except BaseException:
            manager.stop(within_s=5)
            raise
        return manager

    @classmethod
    def of_home(cls, home: Path) -> UserManager | None:
        """The private manager that was started for `home`, if it still runs."""
        return next((m for m in cls.all() if m.home == home.absolute()), None)

    @classmethod
    def all(cls) -> list[UserManager]:
        """Every private manager that runs on this machine."""
        if not os.access(RECORDS, os.R_OK):
            return []
        found = [_read_record(path) for path in sorted(RECORDS.glob("user-*.json"))]
        return [manager for manager in found if manager.process.is_alive()]

    def stop(self, within_s: float = 45) -> None:
        """Stops all units as systemd does, kills what is left after `within_s` seconds, and removes all files."""
        if not self.process.end(within_s) or self._pids():
            self._kill_rest()
        _remove_tree_of_groups(self.cgroup)
        shutil.rmtree(self.runtime_dir, ignore_errors=True)
        with _records_lock():
            self._record().unlink(missing_ok=True)
            if not self.all():
                _remove_shared_parts()

    def _record(self) -> Path:
        return RECORDS / f"user-{self.runtime_dir.name}.json"

    def _pids(self) -> list[int]:
        return [int(pid) for file in self.cgroup.rglob("cgroup.procs") for pid in file.read_text().split()]

    def _kill_rest(self, within_s: float = 5) -> None:
        deadline = time.monotonic() + within_s
        while (pids := self._pids()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
            time.sleep(0.02)

    def _wait_until_started(self, within_s: float = 20) -> None:
        deadline = time.monotonic() + within_s
        while not (self.runtime_dir / "systemd/private").exists():
            if not self.process.is_alive() or time.monotonic() > deadline:
                raise UserManagerError(
                    "the private systemd user manager did not start; `journalctl -t systemd -n 20` says why"
                )
            time.sleep(0.01)
        left_s = max(1.0, deadline - time.monotonic())
        with contextlib.suppress(subprocess.TimeoutExpired):  # slow units of the machine do not concern us
            subprocess.run(
                ["systemctl", "--user", "is-system-running", "--wait"],
                env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=left_s,
            )  # fmt: skip


def is_reachable(env: dict[str, str] | None = None) -> bool:
    """Whether a user manager answers in this environment (default: our own)."""
    if shutil.which("systemctl") is None:
        return False
    asked = subprocess.run(
        ["systemctl", "--user", "show", "--property=Version"], env=env, capture_output=True, text=True
    )
    return asked.returncode == 0


def check_machine() -> None:
    """Raises UserManagerError if no private manager can be started here."""
    if os.geteuid() != 0:
        raise UserManagerError(
            "no systemd user manager answers, and only root can start a private one: log in as a normal user"
            " (by ssh, or `machinectl shell USER@`, not by su), or run this as root in a container"
        )
    programs = (shutil.which("systemctl"), _program("systemd"), _program("systemd-journald"))
    if None in programs:
        raise UserManagerError(f"systemd is not installed; install it with `{INSTALL_HINT}`")
    root = _cgroup_root()
    if not os.access(root, os.W_OK):
        raise UserManagerError(
            f"{root} is read-only, so no unit can be started here; start the container with `--privileged`"
        )


def _program(name: str) -> Path | None:
    return next((folder / name for folder in PROGRAM_FOLDERS if os.access(folder / name, os.X_OK)), None)


def _cgroup_root() -> Path:
    try:
        return Path(cgroup_root())
    except OSError as error:
        hint = "systemd needs one: `mount -t cgroup2 none /sys/fs/cgroup`"
        raise UserManagerError(f"{error} here, and {hint}") from error


def _start_ticks(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    state, *fields = stat.rpartition(")")[2].split()
    if state == "Z":
        raise ProcessLookupError(pid)
    return int(fields[18])


def _own_variables(home: Path, config_home: Path | None, runtime_dir: Path) -> dict[str, str]:
    own = {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime_dir), "USER": "root", "LOGNAME": "root"}
    return own | ({"XDG_CONFIG_HOME": str(config_home)} if config_home else {})


def _spawn(home: Path, config_home: Path | None) -> UserManager:
    runtime_dir, cgroup = _claim_folders()
    # The journal recognises the units as *user* units only with exactly this path.
    first_group = cgroup / f"user@{runtime_dir.name}.service/init.scope"
    first_group.mkdir(parents=True)
    kept = {name: os.environ[name] for name in KEPT_FOR_UNITS if name in os.environ}
    enter_and_run = 'echo $$ >"$1/cgroup.procs" && exec "$2" --user'
    child = subprocess.Popen(
        ["/bin/sh", "-c", enter_and_run, "sh", str(first_group), str(_program("systemd"))],
        env=kept | _own_variables(home, config_home, runtime_dir) | {"SYSTEMD_LOG_TARGET": "journal"},
        cwd=home, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    manager = UserManager(Process.of(child.pid), home, config_home, runtime_dir, cgroup)
    child.returncode = 0  # Process.end() reaps it; Popen must neither wait for it nor warn about it
    unfinished = manager._record().with_suffix(".new")
    unfinished.write_text(json.dumps(asdict(manager), default=str))
    unfinished.replace(manager._record())  # `all` reads without the lock
    return manager


def _claim_folders() -> tuple[Path, Path]:
    """Makes the runtime folder and the cgroup folder for an unused user id.

    Creating the cgroup's folder claims the id: managers with different /run may share the cgroup tree.
    """
    for number in FREE_NUMBERS:
        cgroup = _cgroup_root() / f"user.slice/user-{number}.slice"
        cgroup.parent.mkdir(parents=True, exist_ok=True)
        try:
            cgroup.mkdir()
        except FileExistsError:
            continue
        folder = Path(f"/run/user/{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
            return folder, cgroup
        cgroup.rmdir()
    raise UserManagerError("too many private user managers: see `python3 deploy/user_manager.py list`")


def _read_record(path: Path) -> UserManager:
    record = json.loads(path.read_text())
    config_home = record["config_home"]
    return UserManager(
        Process(**record["process"]), Path(record["home"]), Path(config_home) if config_home else None,
        Path(record["runtime_dir"]), Path(record["cgroup"]),
    )  # fmt: skip


@contextlib.contextmanager
def _records_lock() -> Iterator[None]:
    """Held while the shared parts are read or changed, so that two starts or stops do not interfere."""
    RECORDS.mkdir(mode=0o755, exist_ok=True)
    with (RECORDS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _provide_shared_parts() -> None:
    if not BOOTED_MARK.exists():
        BOOTED_MARK.mkdir(parents=True)
        (RECORDS / "made-booted-mark").touch()
    if not HIDDEN_NODES.exists():
        (HIDDEN_NODES / "dir").mkdir(mode=0, parents=True)
        for name, kind in HIDDEN_KINDS.items():
            os.mknod(HIDDEN_NODES / name, kind)
        (RECORDS / "made-hidden-nodes").touch()
    machine_id = Path("/etc/machine-id")
    if not machine_id.exists() or not machine_id.read_text().strip():  # journald stores nothing without one
        subprocess.run(["systemd-machine-id-setup"], check=True, stderr=subprocess.DEVNULL)
    if not _journal_answers():
        _start_journald()


def _journal_answers() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(JOURNAL_SOCKET))
        except OSError:
            return False
    return True


def _start_journald(within_s: float = 10) -> None:
    child = subprocess.Popen(
        [str(_program("systemd-journald"))], cwd="/", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + within_s
    while not _journal_answers():
        if child.poll() is not None or time.monotonic() > deadline:
            raise UserManagerError("systemd-journald did not start; run it by hand to see why")
        time.sleep(0.01)
    (RECORDS / "journald.json").write_text(json.dumps(asdict(Process.of(child.pid))))
    child.returncode = 0  # as in _spawn


def _remove_shared_parts() -> None:
    journald = RECORDS / "journald.json"
    if journald.exists():
        Process(**json.loads(journald.read_text())).end(within_s=10)
        journald.unlink()
    if (RECORDS / "made-booted-mark").exists():
        with contextlib.suppress(OSError):  # not empty: another program uses it by now
            BOOTED_MARK.rmdir()
        (RECORDS / "made-booted-mark").unlink()
    if (RECORDS / "made-hidden-nodes").exists():
        shutil.rmtree(HIDDEN_NODES)
        (RECORDS / "made-hidden-nodes").unlink()
    for record in RECORDS.glob("user-*.json"):  # of managers that died without a stop
        record.unlink()


def _remove_tree_of_groups(top: Path) -> None:
    """cgroup folders go from the innermost outwards, by rmdir alone; their files are the kernel's."""
    for folder in sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        top.rmdir()


def _export_lines(manager: UserManager) -> str:
    own = _own_variables(manager.home, manager.config_home, manager.runtime_dir)
    names = ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME")
    return "\n".join(f"export {name}={shlex.quote(own[name])}" for name in names if name in own)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A private systemd user manager (needs root).")
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {"start": "start one and print how to reach it", "stop": "stop it and all its units"}
    for name, does in helps.items():
        command = commands.add_parser(name, help=does)
        command.add_argument("--home", type=Path, default=Path.home(), help="its HOME (default: yours)")
    commands.add_parser("list", help="show those that run")
    asked = parser.parse_args(arguments)
    try:
        if asked.command == "start":
            print(_export_lines(UserManager.of_home(asked.home) or UserManager.start(asked.home)))
        elif asked.command == "stop":
            manager = UserManager.of_home(asked.home)
            if manager is None:
                raise UserManagerError(f"no private user manager runs for {asked.home}")
            manager.stop()
        else:
            for manager in UserManager.all():
                print(f"pid {manager.pid}  XDG_RUNTIME_DIR={manager.runtime_dir}  HOME={manager.home}")
    except UserManagerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
