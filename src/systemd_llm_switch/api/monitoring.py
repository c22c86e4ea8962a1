"""The routes that show the proxy's work: the last requests, events, journal lines, metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack, closing

from systemd_llm_switch.api.handlers import Handler
from systemd_llm_switch.config.records import Model
from systemd_llm_switch.errors import ClientGone, InternalError, InvalidRequest
from systemd_llm_switch.forward.answer import Answer, Start
from systemd_llm_switch.observe.event_hub import Watcher, frame
from systemd_llm_switch.observe.observation import own_line, own_lines, unit_line
from systemd_llm_switch.observe.requests import KEPT
from systemd_llm_switch.openai.shapes import Json
from systemd_llm_switch.openai.sse import KEEP_ALIVE, SSE_HEADERS
from systemd_llm_switch.quoting import quoted
from systemd_llm_switch.systemd.journal_reader import Follower, JournalError, last_lines
from systemd_llm_switch.waiting import Client

_KEEP_ALIVE_S = 10.0
_LINES = 100
_MOST_LINES = 1000


class Watch:
    """An answer that goes on until its client hangs up or reads too slowly. `stack` is closed when it ends."""

    def __init__(self, client: Client, stack: ExitStack, watcher: Watcher) -> None:
        self._client = client
        self._stack = stack
        self._watcher = watcher

    def send(self, start: Start, *, has_body: bool = True) -> None:
        """Sends events as they come; blocks.

        Raises:
            ClientGone
        """
        with self._stack:
            write = start(200, SSE_HEADERS)
            while has_body and not self._watcher.is_dropped:
                try:
                    write(self._watcher.take(self._client, _KEEP_ALIVE_S) or KEEP_ALIVE)
                except OSError as error:
                    raise ClientGone("the watcher closed its connection, or reads nothing") from error


class Observing(Handler):
    """Base of these routes."""

    def read_count(self, name: str, default: int, most: int) -> int:
        """A number in the query. One that is larger than `most` asks for all there is.

        Raises:
            InvalidRequest
        """
        text = self.read_query(name)
        if not text:
            return default
        digits = text.lstrip("0")
        if not text.isdecimal() or not digits:
            raise InvalidRequest(f"`{name}` must be a whole number above 0, not {quoted(text)}", param=name)
        return min(int(digits[:9]), most)

    def watch(self, open_watcher: Callable[[ExitStack], Watcher]) -> Watch:
        """Takes a seat and makes a watcher with `open_watcher`; the stack ends both.

        Raises:
            TooManyWatchers
        """
        with ExitStack() as stack:
            stack.enter_context(self.services.observation.hub.seat())
            watcher = open_watcher(stack)
            return Watch(self.client, stack.pop_all(), watcher)


class Requests(Observing):
    """`?limit=N`: the last requests, the newest first."""

    def GET(self) -> Answer:
        return self.write(self.services.observation.requests.last(self.read_count("limit", KEPT, KEPT)))


class Events(Observing):
    """The status, and then each event."""

    def GET(self) -> Watch:
        return self.watch(lambda stack: stack.enter_context(self.services.observation.hub.watch()))


class Logs(Observing):
    """`?model=ID&lines=N&follow=1`: the journal of a model's unit; without `model`, the proxy's own log."""

    def GET(self) -> Answer | Watch:
        count = self.read_count("lines", _LINES, _MOST_LINES)
        name, follow = self.read_query("model"), self.read_query("follow") not in ("", "0", "false")
        model = self.services.live.current().find_model(name) if name else None
        if not follow:
            lines = self.own_lines(count) if model is None else self.unit_lines(model, count)
            return self.write({"model": name or None, "unit": model.unit if model else None, "lines": lines})
        if model is None:
            return self.watch(lambda stack: self.follow_own(stack, count))
        unit = model.unit
        return self.watch(lambda stack: self.follow_unit(stack, unit, count))

    def own_lines(self, count: int) -> list[Json]:
        return own_lines(self.services.observation.own_log.last(count))

    def unit_lines(self, model: Model, count: int) -> list[Json]:
        with self.services.unqueued():
            try:
                return [unit_line(line) for line in last_lines([model.unit], count)]
            except JournalError as error:
                raise InternalError(f"the log of {model.id!r} cannot be shown: {error}") from error

    def follow_own(self, stack: ExitStack, count: int) -> Watcher:
        own_log = self.services.observation.own_log
        watcher = stack.enter_context(closing(Watcher(b"".join(frame("log", it) for it in self.own_lines(count)))))
        stack.callback(own_log.listen(lambda line: watcher.give(frame("log", own_line(*line.shown())))))
        return watcher

    def follow_unit(self, stack: ExitStack, unit: str, count: int) -> Watcher:
        watcher = stack.enter_context(closing(Watcher()))
        try:
            follower = Follower([unit], count, lambda line: watcher.give(frame("log", unit_line(line))))
        except JournalError as error:
            raise InternalError(f"the journal of {unit} cannot be followed: {error}") from error
        stack.callback(follower.close)
        return watcher


class VramInUse(Observing):
    """The cards whose memory is known. May run nvidia-smi, so only on demand."""

    def GET(self) -> Answer:
        with self.services.unqueued():
            cards = self.services.observation.vram.cards()
        return self.write({"cards": [dataclasses.asdict(card) for card in cards]})


class Scrape(Observing):
    """The proxy's counts and the loaded models' own series, for Prometheus."""

    def GET(self) -> Answer:
        with self.services.unqueued():
            text, content_type = self.services.metrics.render(self.accept)
        return Answer(200, (("Content-Type", content_type),), text)


ROUTES: tuple[tuple[str, type[Handler]], ...] = (
    (r"/api/requests", Requests),
    (r"/api/events", Events),
    (r"/api/logs", Logs),
    (r"/api/vram", VramInUse),
    (r"/metrics", Scrape),
)
GOT = ("/metrics", "/api/requests", "/api/events", "/api/logs", "/api/vram")
