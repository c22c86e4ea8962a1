"""The calls to systemctl, systemd-run, journalctl and loginctl during the set-up."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from systemd_llm_switch.setup.places import SetupError
from systemd_llm_switch.systemd import runtime_dir

# These two mount a new tmpfs on /run if that is not a mount point, as in a container. The proxy would then lose the
# manager's socket, and could do nothing.
_FRESH_RUN_SETTINGS = ("ProtectControlGroups=yes", "ProtectKernelTunables=yes")
# Each needs a mount (or UTS) namespace. A user manager without the right to make one leaves them out or fails
# to start it (226/NAMESPACE), depending on its version and on the kernel's settings.
_NAMESPACE_SETTINGS = (
    *_FRESH_RUN_SETTINGS,
    "PrivateUsers=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectHostname=yes",
)


@dataclass(frozen=True, slots=True)
class Systemctl:
    """The user manager that `env` leads to."""

    env: Mapping[str, str]

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Systemctl:
        """The environment of a login shell: `su` and cron do not set XDG_RUNTIME_DIR."""
        folder = runtime_dir.find(environ)
        return cls({**environ, "XDG_RUNTIME_DIR": folder} if folder else dict(environ))

    def how_to_reach(self, environ: Mapping[str, str]) -> str:
        """What to type before `systemctl --user` finds this manager from a shell; empty if it finds it already."""
        folder = self.env.get("XDG_RUNTIME_DIR", "")
        if not folder or folder == environ.get("XDG_RUNTIME_DIR"):
            return ""
        return f"export XDG_RUNTIME_DIR={shlex.quote(folder)}"

    def reload(self) -> None:
        self._systemctl("daemon-reload")

    def enable(self, unit: str) -> None:
        self._systemctl("enable", "--quiet", unit)

    def start(self, unit: str) -> None:
        """Blocks until the unit is ready. Raises SetupError with its last journal lines when it fails."""
        self._run_unit("start", unit)

    def restart(self, unit: str) -> None:
        """Like `start`, but stops a running unit first."""
        self._run_unit("restart", unit)

    def stop(self, units: Sequence[str]) -> None:
        """Stops the units that exist, all at once."""
        known = [unit for unit in units if self.is_known(unit)]
        if known:
            self._systemctl("stop", *known)

    def forget(self, units: Sequence[str]) -> None:
        """Disables units and clears their failures. A missing unit is not an error."""
        for unit in units:
            self._call("systemctl", "--user", "disable", "--quiet", unit)
            self._call("systemctl", "--user", "reset-failed", unit)

    def is_known(self, unit: str) -> bool:
        return self.show(unit, "LoadState") not in ("", "not-found")

    def is_active(self, unit: str) -> bool:
        return self.show(unit, "ActiveState") in ("active", "activating", "reloading")

    def show(self, unit: str, name: str) -> str:
        asked = self._call("systemctl", "--user", "show", f"--property={name}", "--value", unit)
        return asked.stdout.strip()

    def was_stopped(self, unit: str) -> bool:
        """Whether its last run was up before it ended. If so, a timeout happened while it stopped: it had to be
        killed."""
        names = ("InactiveExitTimestampMonotonic", "ActiveExitTimestampMonotonic")
        began, ended = (int(value) if (value := self.show(unit, name)).isdecimal() else 0 for name in names)
        return 0 < began <= ended

    def last_lines(self, unit: str, since: float, count: int = 15) -> str:
        """The unit's newest journal lines since that `time.time()`; empty if they cannot be read."""
        lines = ("-n", str(count), "-o", "cat", "--no-pager", "-q", f"--since=@{since:.6f}")
        return self._call("journalctl", "--user-unit", unit, *lines).stdout.strip()

    def unusable_settings(self) -> tuple[str, ...]:
        """The hardening settings that this manager does not support. It tries them, because nothing reports them."""
        for left_out in ((), _FRESH_RUN_SETTINGS):
            if self._can_run_with([s for s in _NAMESPACE_SETTINGS if s not in left_out]):
                return left_out
        return _NAMESPACE_SETTINGS

    def _can_run_with(self, settings: Sequence[str]) -> bool:
        run = ("systemd-run", "--user", "--wait", "--quiet", "--collect")
        properties = [f"--property={setting}" for setting in settings]
        ask = ("systemctl", "--user", "show", "--property=Version")
        return self._call(*run, *properties, *ask).returncode == 0

    def lingers(self, user: str) -> bool:
        return self._call("loginctl", "show-user", user, "--property=Linger", "--value").stdout.strip() == "yes"

    def set_linger(self, user: str, *, on: bool) -> bool:
        """True if it worked. It needs systemd-logind, and often a privilege."""
        verb = "enable-linger" if on else "disable-linger"
        return self._call("loginctl", "--no-ask-password", verb, user).returncode == 0

    def _run_unit(self, verb: str, unit: str) -> None:
        self._call("systemctl", "--user", "reset-failed", unit)
        began = time.time()
        ran = self._call("systemctl", "--user", verb, unit)
        if ran.returncode:
            said = self.last_lines(unit, began) or ran.stderr.strip()
            indented = "\n".join(f"    {line}" for line in said.splitlines())
            raise SetupError(
                f"{unit} did not start. Its last words:\n{indented}\n  More: journalctl --user -u {unit} -n 50"
            )

    def _systemctl(self, *arguments: str) -> None:
        ran = self._call("systemctl", "--user", *arguments)
        if ran.returncode:
            raise SetupError(f"`systemctl --user {' '.join(arguments)}` failed: {ran.stderr.strip()}")

    def _call(self, *command: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: not found")
