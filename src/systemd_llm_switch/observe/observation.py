"""The parts of `observe`, wired together: the last requests, counts, the proxy's log, the units' journal, the hub."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from systemd_llm_switch.observe.event_hub import EventHub
from systemd_llm_switch.observe.own_log import OwnLog
from systemd_llm_switch.observe.requests import Finished, RequestLog
from systemd_llm_switch.observe.tally import Tally
from systemd_llm_switch.observe.vram import Vram
from systemd_llm_switch.openai.shapes import Json
from systemd_llm_switch.systemd.journal_reader import Follower, JournalError, Line

log = logging.getLogger(__name__)


class Observation:
    """Thread-safe. `units` names the models' units now; `make_status` computes what /api/status shows."""

    def __init__(self, units: Callable[[], Sequence[str]], make_status: Callable[[], Json]) -> None:
        self._units = units
        self.hub = EventHub(make_status, (self._follow_own_log, self._follow_units))
        self.tally = Tally()
        self.requests = RequestLog()
        self.own_log = OwnLog()
        self.vram = Vram()

    def note_request(self, entry: Finished) -> None:
        """A request is over. Costs almost nothing without watchers."""
        self.requests.add(entry)
        self.tally.note_request(entry)
        if self.hub.is_watched:
            self.hub.publish("request", entry.as_json)

    def note_switch(self, record: Json) -> None:
        """A switch is over."""
        self.tally.note_switch(record)
        self.hub.publish("switch", lambda: record)

    def _follow_own_log(self) -> Callable[[], None]:
        """Sends the proxy's own log lines as events until the returned function is called."""
        return self.own_log.listen(lambda line: self.hub.publish("log", lambda: own_line(*line.shown())))

    def _follow_units(self) -> Callable[[], None]:
        """Sends the units' journal lines as events until the returned function is called."""
        try:
            return Follower(self._units(), 0, lambda line: self.hub.publish("log", lambda: unit_line(line))).close
        except JournalError as error:
            log.warning("journal_not_followed reason=%r", str(error))
            return lambda: None


def own_line(at: float, priority: int, message: str) -> Json:
    """A line of the proxy's own log, as /api/logs and the events show it."""
    return {"at": round(at, 3), "unit": None, "priority": priority, "message": message}


def own_lines(lines: Iterable[tuple[float, int, str]]) -> list[Json]:
    return [own_line(*line) for line in lines]


def unit_line(line: Line) -> Json:
    """A line of a unit's journal, as /api/logs and the events show it."""
    return {"at": round(line.at, 3), "unit": line.unit, "priority": line.priority, "message": line.message}
