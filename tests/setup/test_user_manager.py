"""The private user manager that the demo and every other test stand on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stack import ROOT, wait_for
from systemd_llm_switch.setup import user_manager
from systemd_llm_switch.setup.user_manager import HIDDEN_NODES, Process, UserManager, UserManagerError, is_reachable

pytestmark = pytest.mark.systemd


@pytest.fixture
def own_manager(tmp_path: Path) -> Iterator[UserManager]:
    manager = UserManager.start(tmp_path / "home")
    yield manager
    manager.stop(within_s=5)


def call(manager: UserManager, *command: str) -> str:
    return subprocess.run(command, env=manager.env, capture_output=True, text=True, check=False).stdout.strip()


def start_unit(manager: UserManager, name: str, script: str) -> int:
    """Runs a shell script as a unit; its process id."""
    call(manager, "systemd-run", "--user", "--quiet", f"--unit={name}", "sh", "-c", script)
    return int(call(manager, "systemctl", "--user", "show", "-p", "MainPID", "--value", name))


def is_alive(pid: int) -> bool:
    """A killed process that nobody has waited for yet is not."""
    try:
        return Process.of(pid).is_alive()
    except ProcessLookupError:
        return False


def test_answers_as_soon_as_it_is_started(own_manager: UserManager) -> None:
    assert is_reachable(own_manager.env)
    assert call(own_manager, "systemctl", "--user", "is-system-running") in ("running", "degraded")


def test_its_journal_knows_the_units_as_a_users(own_manager: UserManager) -> None:
    unit = f"said-{os.getpid()}"
    start_unit(own_manager, unit, "echo hello from the unit; sleep 60")

    def is_found(match: str) -> bool:
        return "hello from the unit" in call(own_manager, "journalctl", match, "-o", "cat")

    wait_for(lambda: is_found(f"--user-unit={unit}"))
    wait_for(lambda: is_found(f"_SYSTEMD_USER_UNIT={unit}.service"))


def test_managers_run_side_by_side(own_manager: UserManager, tmp_path: Path) -> None:
    other = UserManager.start(tmp_path / "other", tmp_path / "config")
    try:
        start_unit(own_manager, "only-here", "sleep 60")
        assert other.runtime_dir != own_manager.runtime_dir
        assert call(other, "systemctl", "--user", "is-active", "only-here") == "inactive"
        assert other.env["XDG_CONFIG_HOME"] == str(tmp_path / "config")
    finally:
        other.stop()
    assert is_reachable(own_manager.env)
    assert call(own_manager, "journalctl", "-n", "1", "-q", "-o", "cat")


def test_stop_leaves_nothing(tmp_path: Path) -> None:
    manager = UserManager.start(tmp_path)
    pid = start_unit(manager, "sleeper", "sleep 60")
    manager.stop()
    assert not is_alive(pid)
    assert not is_alive(manager.pid)
    assert not manager.runtime_dir.exists()
    assert not manager.cgroup.exists()
    assert UserManager.of_home(tmp_path) is None


def test_stop_kills_what_does_not_end(tmp_path: Path) -> None:
    manager = UserManager.start(tmp_path)
    pid = start_unit(manager, "stubborn", "trap '' TERM; while :; do sleep 1; done")
    manager.stop(within_s=0.5)
    assert not is_alive(pid)
    assert not manager.cgroup.exists()


def test_stop_cleans_up_after_a_killed_manager(tmp_path: Path) -> None:
    manager = UserManager.start(tmp_path)
    pid = start_unit(manager, "orphan", "sleep 60")
    os.kill(manager.pid, signal.SIGKILL)
    manager.stop()
    assert not is_alive(pid)
    assert not manager.runtime_dir.exists()


def test_units_inherit_nothing_of_this_process(own_manager: UserManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/somewhere")
    assert "NOTIFY_SOCKET" not in own_manager.env
    seen = call(own_manager, "systemctl", "--user", "show-environment")
    assert "PYTEST" not in seen
    assert f"HOME={own_manager.home}" in seen


def test_hardened_units_start(own_manager: UserManager) -> None:
    """What PID 1 makes at boot for ProtectKernelLogs= and the like is there."""
    run = ("systemd-run", "--user", "--wait", "--pipe", "--quiet", "-p", "ProtectKernelLogs=yes")
    assert call(own_manager, *run, "echo", "started") == "started"
    assert HIDDEN_NODES.is_dir()


def test_the_command_starts_lists_and_stops(tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, str(ROOT / "deploy/user_manager.py"), *arguments]
        return subprocess.run(program, capture_output=True, text=True, check=False)

    try:
        exports = command("start", "--home", str(tmp_path)).stdout
        script = ["sh", "-c", f"{exports}\nsystemctl --user is-system-running"]
        asked = subprocess.run(script, capture_output=True, text=True, check=False)
        assert asked.stdout.strip() == "running"
        assert command("start", "--home", str(tmp_path)).stdout == exports
        assert str(tmp_path) in command("list").stdout
    finally:
        stopped = command("stop", "--home", str(tmp_path))
    assert stopped.returncode == 0
    again = command("stop", "--home", str(tmp_path))
    assert (again.returncode, again.stderr) == (1, f"error: no private user manager runs for {tmp_path}\n")


def test_a_plain_user_learns_why_not(tmp_path: Path) -> None:
    """As another user, in a process of its own, since privileges cannot be taken back."""
    script = (
        f"import os, sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import pathlib\n"
        "from systemd_llm_switch.setup import user_manager\n"
        "os.setuid(65534)\n"
        f"user_manager.UserManager.start(pathlib.Path({str(tmp_path)!r}))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "only root can start a private one" in ran.stderr


def test_a_read_only_cgroup_tree_is_named(tmp_path: Path) -> None:
    """As in a container that is not privileged."""
    root = user_manager._cgroup_root()
    program = f"mount -o remount,bind,ro {root} && exec {sys.executable} {ROOT / 'deploy/user_manager.py'}"
    command = ["unshare", "--mount", "sh", "-c", f"{program} start --home {tmp_path}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert f"{root} is read-only" in ran.stderr
    assert "--privileged" in ran.stderr


def test_a_machine_without_systemd_shows_the_line_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserManagerError, match="apt-get install --yes systemd"):
        UserManager.start(tmp_path / "home")


BARE_MACHINE = """
import json, os, subprocess, sys, pathlib
sys.path.insert(0, sys.argv[1])
from systemd_llm_switch.setup import user_manager
manager = user_manager.UserManager.start(pathlib.Path(sys.argv[2]))
try:
    run = ("systemd-run", "--user", "--wait", "--quiet", "--unit=bare", "echo", "heard")
    subprocess.run(run, env=manager.env, check=True)
    read = ("journalctl", "--user-unit=bare", "-o", "cat")
    heard = subprocess.run(read, env=manager.env, capture_output=True, text=True).stdout
    journald = json.loads(pathlib.Path("/run/systemd-llm-switch/journald.json").read_text())["pid"]
finally:
    manager.stop()
left = [str(path) for path in pathlib.Path("/run/systemd").glob("*") if path.name in ("system", "inaccessible")]
print(json.dumps({"heard": heard, "journald": os.path.exists(f"/proc/{journald}/exe"), "left": left}))
"""


def test_brings_a_journal_where_there_is_none_and_takes_it_away(tmp_path: Path) -> None:
    """On a machine of its own, as far as /run and /var/log go."""
    enter = 'mount -t tmpfs none /run && mount -t tmpfs none /var/log && exec "$@"'
    program = [sys.executable, "-c", BARE_MACHINE, str(ROOT / "src"), str(tmp_path)]
    command = ["unshare", "--mount", "sh", "-c", enter, "sh", *program]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert "heard" in result["heard"]
    assert result["journald"] is False
    assert result["left"] == []


CLAIM = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from systemd_llm_switch.setup import user_manager
print(*user_manager._claim_folders())
"""


def test_managers_in_containers_that_share_the_cgroup_tree_do_not_meet(tmp_path: Path) -> None:
    """Each has its own /run, so that only the cgroup's folder shows that a number is taken."""
    enter = 'mount -t tmpfs none /run && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", enter, "sh", sys.executable, "-c", CLAIM, str(ROOT / "src")]
    claimed = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)]
    for _folder, cgroup in claimed:
        Path(cgroup).rmdir()
    assert claimed[0] != claimed[1]
