"""Serves one parsed request: its lease, its exchange with the backend, its answer.

Runs in the request's own thread, from `run` downwards. Must not know the web framework.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
from http import HTTPStatus

from systemd_llm_switch.backend.exchange import Exchange, Reply
from systemd_llm_switch.config.records import Config, Model
from systemd_llm_switch.contexts.fingerprint import Fingerprint, fingerprint
from systemd_llm_switch.dialects.routes import error_of_route
from systemd_llm_switch.errors import BackendError, ModelStartTimeout, Unloaded
from systemd_llm_switch.forward import recovery
from systemd_llm_switch.forward.answer import Answer
from systemd_llm_switch.forward.attempt import FAULTS, Attempt, WasEnding, WasPaused, wrong_key
from systemd_llm_switch.forward.live_reply import BrokenStream, LiveReply, StreamError
from systemd_llm_switch.forward.record import Record
from systemd_llm_switch.forward.recovery import Continuation, PartialReply
from systemd_llm_switch.forward.responder import Responder
from systemd_llm_switch.openai.decoder import TooLarge
from systemd_llm_switch.openai.endpoints import NAMES_MODEL
from systemd_llm_switch.openai.request import Request, to_backend
from systemd_llm_switch.openai.shapes import (
    JSON_TYPE,
    Json,
    choices_of,
    dump,
    foreign_error,
    naming,
    object_of,
    renamed,
    timings_in,
)
from systemd_llm_switch.openai.sse import SSE_HEADERS, EventReader, may_get_better, raw_frame, sse_frames
from systemd_llm_switch.quoting import quoted
from systemd_llm_switch.repair import (
    Budget,
    Repair,
    RequestFacts,
    UnrepairableReply,
    parse_reply,
    repair_history,
    repair_reply,
)
from systemd_llm_switch.switching.leases import Lease
from systemd_llm_switch.switching.losses import Losses
from systemd_llm_switch.switching.switcher import Switcher
from systemd_llm_switch.waiting import LONGEST_WAIT_S, Signal

log = logging.getLogger(__name__)


class Forwarding:
    """One request.

    `run` asks the backend while it holds a lease, gives the lease back, and then answers: a client that reads slowly
    must not delay a switch.
    """

    __slots__ = (
        "_budget", "_config", "_known_beginning", "_known_facts", "_live", "_losses", "_model", "_record",
        "_request", "_responder", "_switcher", "_warning",
    )  # fmt: skip

    def __init__(
        self,
        switcher: Switcher,
        losses: Losses,
        config: Config,
        request: Request,
        model: Model,
        responder: Responder,
        record: Record,
    ) -> None:
        self._switcher = switcher
        self._losses = losses
        self._config = config
        self._request = request
        self._model = model
        self._responder = responder
        self._record = record
        self._known_facts: RequestFacts | None = None
        self._known_beginning: Fingerprint | None = None
        self._live: LiveReply | None = None  # the part of a paused answer that the client has
        self._warning = ""  # added to the backend's error message
        self._budget = Budget(responder.is_gone)  # of CPU time for repair

    def run(self) -> None:
        """From the queue to the answer.

        Raises:
            ProxyError
        """
        request = self._request
        body, repairs = repair_history(request.body, self._budget) if request.is_chat else (request.body, ())
        self._record.repairs.extend(repairs)
        sent = to_backend(request, body, self._model.params, self._model.force, self._is_live)
        brought = self._try_until_served(sent)
        if isinstance(brought, LiveReply):
            self._end_stream(brought)
        elif brought is not None:
            self._answer(brought)
        else:
            self._record.status = 200
        if request.is_chat and self._record.status == 200:
            self._switcher.note_chat(self._model, sent)

    @property
    def _is_live(self) -> bool:
        """Whether the client gets the reply while the model writes it."""
        request = self._request
        return request.is_streamed and (not request.is_repairable or self._model.streaming == "live")

    def _try_until_served(self, sent: bytes) -> Reply | LiveReply | None:
        """
        Raises:
            ProxyError
        """
        may_retry = True
        while True:
            try:
                return self._try(sent, may_retry=may_retry)
            except WasEnding:
                log.debug("asked_again model=%s", self._model.id)
                may_retry = False
            except WasPaused:
                log.info("request_paused model=%s", self._model.id)
                hold_end = Signal()
                self._switcher.await_hold_end(hold_end)
                while not hold_end.wait(self._responder, LONGEST_WAIT_S):
                    continue
                log.info("request_goes_on model=%s", self._model.id)

    # --- under the lease ------------------------------------------------------------------------------

    def _try(self, sent: bytes, *, may_retry: bool) -> Reply | LiveReply | None:
        """Asks the backend. Returns a whole reply, or the rest of a live one, or None if the client has all of it.

        Raises:
            WasEnding: the backend's process was about to end when the request came; it may be retried.
            ProxyError
        """
        lease = self._record.lease = self._switcher.lease(self._model)
        if not lease.is_resolved and self._model.contexts:
            lease.beginning = self._beginning()  # finds the saved context that it continues
        lease.may_pause = self._may_pause
        try:
            self._await_turn(lease)
            attempt = Attempt(
                self._switcher, self._losses, lease, self._request, sent, self._responder, self._config.server
            )
            try:
                brought = self._exchange(attempt)
                self._note_context(lease, brought, sent)
                return brought
            except FAULTS as fault:
                if lease.is_paused:
                    self._pause(lease, sent)
                    raise WasPaused from fault
                raise attempt.explain(fault, may_retry=may_retry) from fault
            finally:
                self._record.backend_s = attempt.lasted_s
        finally:
            self._switcher.release(lease)

    def _note_context(self, lease: Lease, brought: Reply | LiveReply | None, sent: bytes) -> None:
        """Reports what the model has read. The lease is still held: the next switch may begin as soon as it is given
        back, long before a slow client has its answer."""
        if not (self._request.is_repairable and self._switcher.keeps_contexts(self._model)):
            return
        if isinstance(brought, LiveReply):
            timings = brought.timings
        else:
            timings = timings_in(brought.body) if brought is not None and brought.status == 200 else {}
        if timings:
            self._switcher.note_reply(lease, self._beginning, sent, self._request.is_chat, timings)

    def _await_turn(self, lease: Lease) -> None:
        server = self._config.server
        # Longer than the scheduler's longest wait (docs/scheduling.md, "The bound"), in case that bound does not hold.
        turn_s = 3 * server.health_timeout + (server.max_wait or 0) + (server.min_resident or 0)
        turn_s += max(server.request_timeout, server.drain_timeout or 0)
        limit_s = (len(self._config.models) + 1) * turn_s
        if not lease.wait(self._responder, limit_s):
            raise ModelStartTimeout(f"model {self._model.id!r} did not get its turn within {limit_s:g} s")

    @property
    def _may_pause(self) -> bool:
        """Whether the request can go on after a pause, or start over because its client has no part of the answer."""
        return self._request.is_chat

    def _pause(self, lease: Lease, sent: bytes) -> None:
        """The process is about to be stopped for a while. Marks the context of this request for saving, if possible.

        Raises:
            Unloaded: the client has parts of several answers, and these cannot go on.
        """
        if self._live is not None and self._live.begun is None:
            raise Unloaded(f"model {self._model.id!r} was paused, and an answer with several choices cannot go on")
        self._switcher.pauses.note(lease, self._beginning(), sent)

    def _exchange(self, attempt: Attempt) -> Reply | LiveReply | None:
        if self._live is not None and self._live.has_begun:
            return self._go_on(attempt, self._live)
        with contextlib.closing(attempt.begin(self._prepare)) as exchange:
            if self._is_live and exchange.is_event_stream:
                if self._request.is_repairable:
                    return self._relay_events(attempt, exchange)
                self._relay_bytes(exchange)
                return None
            reply = exchange.read()
        if self._is_refusal(reply):
            recovered = self._recover(attempt, reply, PartialReply())
            return reply if recovered is None else Reply(200, "application/json", dump(recovered))
        self._warning = attempt.judge(reply)
        return reply

    def _relay_events(self, attempt: Attempt, exchange: Exchange) -> Reply | LiveReply:
        """Passes a reply on while the model writes it. Returns what must still be sent when the backend is done."""
        live = LiveReply(self._facts(), self._request.is_chat, self._request.wants_usage, self._budget, self._model.id)
        self._live = live
        try:
            reader = EventReader()
            while received := exchange.read_some():
                self._record.note_first_token()
                self._pass_on(live, reader, received)
            live.check()
        except StreamError as error:
            reply = Reply(error.status, "application/json", dump(error.body))
            begun = live.begun if self._is_refusal(reply) else None
            recovered = None if begun is None else self._recover(attempt, reply, begun)
            if recovered is None:
                self._warning = attempt.judge(reply)
                return reply
            for frame in live.resume(recovered):
                self._responder.stream(frame)
        return live

    def _go_on(self, attempt: Attempt, live: LiveReply) -> LiveReply:
        """Lets the model write the rest of a paused answer: live, or as a whole where calls and thoughts are in it."""
        begun = live.begun
        if begun is not None and begun.thoughts:
            begun = self._with_thoughts(attempt, begun, goes_on_thinking=live.is_in_thoughts)
        rest = None
        if begun is not None:
            rest = self._write_on_live(attempt, live, begun) if live.is_in_text else self._write_on(attempt, begun)
        if rest is None:
            raise BackendError(f"the answer of {self._model.id!r} was paused and cannot go on; ask again")
        for frame in live.resume(rest):
            self._responder.stream(frame)
        return live

    def _with_thoughts(self, attempt: Attempt, begun: PartialReply, *, goes_on_thinking: bool) -> PartialReply | None:
        """None if the model writes its thoughts in a form that is not known here, so that they cannot be continued."""
        if not recovery.thinks_in_tags(attempt.look(recovery.PROPS_PATH).body):
            return None
        return replace(begun, goes_on_thinking=goes_on_thinking)

    def _write_on_live(self, attempt: Attempt, live: LiveReply, begun: PartialReply) -> Json | None:
        """Passes the rest of an answer on while the model writes it. Returns its end; None if the model cannot."""
        message = self._message_to_write_on(attempt, begun, stream=True)
        if message is None:
            return None
        text, reader = Continuation(begun), EventReader()
        with contextlib.closing(attempt.open(recovery.COMPLETION_PATH, message)) as exchange:
            while exchange.is_event_stream and (received := exchange.read_some()):
                for data in reader.feed(received):
                    if data != b"[DONE]" and (frames := live.go_on(_taken(text, data))):
                        self._responder.stream(frames)
        live.timings = object_of(text.timings)
        return recovery.chat_reply(text.end, self._model.id, begun, int(time.time()))

    def _pass_on(self, live: LiveReply, reader: EventReader, received: bytes) -> None:
        frames = b""
        try:
            for data in reader.feed(received):
                if data != b"[DONE]":
                    frames += live.feed(data)
        finally:  # also sends the events that came before an error in the same piece
            if frames:
                self._responder.stream(frames)

    def _relay_bytes(self, exchange: Exchange) -> None:
        """Passes on a stream of another protocol, byte by byte."""
        reader = EventReader()
        while received := exchange.read_some():
            self._record.note_first_token()
            reader.feed(received)
            self._responder.is_mid_event = not reader.is_between_events
            self._responder.stream(received)
        if not self._responder.has_started:
            raise BrokenStream("the stream ended early")

    def _is_refusal(self, reply: Reply) -> bool:
        return self._request.is_chat and recovery.is_refusal(reply.status, reply.body)

    def _recover(self, attempt: Attempt, refusal: Reply, begun: PartialReply) -> Json | None:
        """The rest of a reply that the backend's own parser refused, made from the model's raw text. None if there is
        no way to get the text."""
        text = recovery.refused_text(refusal.body)
        if text is None:
            recovered = self._write_on(attempt, begun)
        else:
            recovered = recovery.refused_reply(text, self._model.id, begun, int(time.time()))
        if recovered is not None:
            self._record.repairs.append(Repair("backend_refusal"))
        return recovered

    def _write_on(self, attempt: Attempt, begun: PartialReply) -> Json | None:
        """Lets the model write the rest of a reply whose beginning is known. None if it cannot."""
        message = self._message_to_write_on(attempt, begun)
        if message is None:
            return None
        completion = attempt.fetch(recovery.COMPLETION_PATH, message)
        recovered = recovery.chat_reply(completion.body, self._model.id, begun, int(time.time()))
        if completion.status != 200 or recovered is None:
            return None
        return recovered

    def _message_to_write_on(self, attempt: Attempt, begun: PartialReply, *, stream: bool = False) -> bytes | None:
        template = attempt.fetch(recovery.TEMPLATE_PATH, attempt.sent)
        if template.status != 200:
            return None
        return recovery.completion_message(attempt.sent, template.body, begun, stream=stream)

    def _prepare(self) -> None:
        """Computes what the reply will need, while the backend works."""
        self._facts()
        if self._switcher.keeps_contexts(self._model):
            self._beginning()

    def _beginning(self) -> Fingerprint:
        """The fingerprint of the request's beginning. Computed once."""
        if self._known_beginning is None:
            self._known_beginning = fingerprint(self._request.body)
        return self._known_beginning

    def _facts(self) -> RequestFacts:
        """The facts of the request that the reply is checked against. Computed once."""
        if self._known_facts is None:
            self._known_facts = RequestFacts.of(
                self._request.body, rescue=self._config.repair.rescue, thoughts=self._config.repair.thoughts
            )
        return self._known_facts

    # --- after the lease ------------------------------------------------------------------------------

    def _end_stream(self, live: LiveReply) -> None:
        """Sends what was held back until the whole reply was known."""
        live.end()
        self._record.repairs.extend(live.repairs)
        self._record.note_reply({"usage": live.usage, "timings": live.timings})
        self._finish_stream(200, b"".join(live.rest()))

    def _answer(self, reply: Reply) -> None:
        if not 200 <= reply.status < 300:
            self._pass_error(reply)
        elif self._request.is_repairable:
            self._answer_repaired(reply)
        elif self._responder.has_started:
            self._finish_stream(reply.status, raw_frame(reply.body))
        else:
            body = naming(reply.body, self._model.id) if self._request.path in NAMES_MODEL else reply.body
            self._send(reply.status, (("Content-Type", reply.content_type),), body)

    def _answer_repaired(self, reply: Reply) -> None:
        dialect = self._responder.dialect
        try:
            parsed, body = self._repair(reply)
        except TooLarge as error:
            if self._request.is_streamed or dialect.is_translation:
                raise BackendError(f"the reply of {self._model.id!r} cannot be read: {error}") from error
            self._record.repairs.append(Repair("repair_budget"))
            self._send(reply.status, (JSON_TYPE,), renamed(reply.body, self._model.id) or reply.body)
            return
        self._record.note_reply(parsed)
        if not choices_of(parsed) and (self._request.is_streamed or dialect.is_translation):
            # An empty answer would not tell the client why.
            raise BackendError(f"the reply of {self._model.id!r} holds no choices")
        if not self._request.is_streamed:
            self._send(reply.status, (JSON_TYPE,), dialect.whole(parsed, body))
            return
        frames = b"".join(sse_frames(parsed, self._request.is_chat, self._request.wants_usage))
        self._record.note_first_token()
        if self._responder.has_started:
            self._finish_stream(200, frames)
        else:
            self._send(200, SSE_HEADERS, dialect.events(frames))

    def _repair(self, reply: Reply) -> tuple[Json, bytes]:
        """The repaired reply as an object and as bytes; the backend's own bytes if nothing was repaired.

        Raises:
            BackendError, TooLarge
        """
        try:
            parsed, repairs = parse_reply(reply.body, self._budget)
        except UnrepairableReply as error:
            raise BackendError(f"the reply of {self._model.id!r} is not valid JSON: {error}") from error
        repaired, more = repair_reply(parsed, self._facts(), self._budget)
        self._record.repairs.extend(repairs + more)
        body = reply.body if repaired is parsed and not repairs else None
        if repaired.get("model", self._model.id) != self._model.id:
            repaired = repaired | {"model": self._model.id}
            body = body and renamed(body, self._model.id)
        return repaired, body or dump(repaired)

    def _pass_error(self, reply: Reply) -> None:
        """A backend's own error keeps its status and message, in a shape that clients can show."""
        if reply.status < 400:
            raise BackendError(f"the backend of {self._model.id!r} returned unexpected status {reply.status}")
        if reply.status == HTTPStatus.UNAUTHORIZED:
            raise wrong_key(self._model)
        body = foreign_error(reply.status, reply.body)
        body["error"]["message"] += self._warning
        if self._responder.has_started:
            self._record.status = reply.status
            self._responder.stream_error(reply.status, body, may_get_better=may_get_better(reply.status))
        else:
            self._send(reply.status, (JSON_TYPE,), dump(error_of_route(self._record.path, reply.status, body)))

    def _finish_stream(self, status: int, frames: bytes) -> None:
        self._record.status = status
        self._responder.stream(frames)

    def _send(self, status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
        self._record.status = status
        self._responder.answer(Answer(status, (*headers, *self._record.headers()), body))


def _taken(text: Continuation, data: bytes) -> str:
    """
    Raises:
        BrokenStream: the event is an error, or another's.
    """
    try:
        return text.take(data)
    except ValueError as error:
        raise BrokenStream(f"{error}: {quoted(data)}") from error
