"""Stops units, and confirms with systemd that they stopped. Blocks; never call it under a lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from systemd_llm_switch.systemd.manager import Systemd, SystemdError


class StopUnconfirmed(Exception):
    """Units that had to stop still run, or systemd cannot say whether they do. So their memory and ports may be in use.

    `states` is the state of each unit now; `reasons` are systemd's answers.
    """

    def __init__(self, states: Mapping[str, str], reasons: Sequence[str] = ()) -> None:
        listed = ", ".join(f"unit {unit} did not stop ({state})" for unit, state in states.items())
        super().__init__("; ".join([listed, *reasons, f"see `systemctl --user status {next(iter(states))}`"]))
        self.units = frozenset(states)


def stop_units(systemd: Systemd, units: Sequence[str], beside: Sequence[str] = ()) -> frozenset[str]:
    """Stops units, all at once, and confirms that they stopped. Returns those of `beside` that run.

    Raises:
        StopUnconfirmed: some still run, or systemd cannot be asked whether they do.
        SystemdError: there are no `units`, and systemd cannot be asked.
    """
    reasons = []
    if units:
        try:
            systemd.stop(units)
        except SystemdError as error:  # some may have stopped anyway: `running` says which
            reasons.append(str(error))
    try:
        running = systemd.running([*units, *beside])
    except SystemdError as error:
        if not units:
            raise
        raise StopUnconfirmed(dict.fromkeys(units, "as far as is known"), [*reasons, str(error)]) from error
    unstopped = {unit: running[unit] for unit in units if unit in running}
    if unstopped:
        raise StopUnconfirmed(unstopped, reasons)
    return frozenset(running)
