"""A reply that is passed on while the model still writes it: events in, frames out. Pure.

Text and reasoning are passed on at once. What may need repair is held until the stream has ended: tool calls, JSON that
the client asked for, and text that may still turn out to be a leaked tool call. Then the same function repairs the
whole reply as for a finished one, so a client gets the same answer in both modes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter

from systemd_llm_switch.forward.recovery import PartialReply
from systemd_llm_switch.openai.shapes import Json, choices_of, dump, load, object_of, objects_of
from systemd_llm_switch.openai.sse import (
    DONE,
    frame,
    function_call_deltas,
    split_logprobs,
    split_text,
    tool_call_deltas,
)
from systemd_llm_switch.quoting import quoted
from systemd_llm_switch.repair import (
    THOUGHTS_END,
    Budget,
    Holding,
    Repair,
    RequestFacts,
    may_end_thoughts,
    repair_reply,
    take_thoughts,
)


class BrokenStream(Exception):
    """The backend's stream is malformed or incomplete."""


class StreamError(Exception):
    """The backend sent an error in its stream; `body` is the object that it sent."""

    def __init__(self, body: Json) -> None:
        super().__init__(str(body.get("error")))
        self.body = body

    @property
    def status(self) -> int:
        """The HTTP status that it would have had before the stream began."""
        code = object_of(self.body.get("error")).get("code")
        return code if isinstance(code, int) and 400 <= code < 600 else 502


@dataclass(slots=True)
class _Choice:
    """One choice of the reply, as read so far."""

    sent: list[str] = field(default_factory=list)
    pending: str = ""  # text that was read but not passed on
    thinking: int = 0  # length of the pending text when it was last known to be thoughts that go on
    held: list[str] = field(default_factory=list)  # text after `pending`, once all further text is held
    holding: Holding | None = None
    fields: Json = field(default_factory=dict)  # of the message: role, reasoning_content, …
    calls: list[tuple[int, Json]] = field(default_factory=list)  # each with its index
    positions: dict[int, int] = field(default_factory=dict)  # of the last call with an index
    function: Json | None = None
    logprobs: list[object] = field(default_factory=list)
    finish_reason: str | None = None
    tokens: int = 0  # of text and thoughts: llama-server sends one event for each

    @property
    def text(self) -> str:
        return "".join([*self.sent, self.pending, *self.held])

    @property
    def has_calls(self) -> bool:
        return bool(self.calls) or self.function is not None


class LiveReply:
    """The reply of one streamed request. Feed it the data of each event; `repairs`, `usage` and `timings` are complete
    at the end."""

    def __init__(
        self,
        facts: RequestFacts,
        is_chat: bool,
        wants_usage: bool,
        budget: Budget | None = None,
        model_id: str | None = None,
    ) -> None:
        """`model_id`: what each chunk names as its model; None leaves the backend's own name."""
        self._facts = facts
        self._model_id = model_id
        self._may_rescue = bool(facts.rescue and facts.tools)
        self._is_chat = is_chat
        self._wants_usage = wants_usage
        self._budget = budget
        self._choices: dict[int, _Choice] = {}
        self._envelope: Json = {}
        self._usage_chunk: Json | None = None
        self._whole: Json = {}
        self.repairs: tuple[Repair, ...] = ()
        self.usage: Json = {}
        self.timings: Json = {}

    @property
    def begun(self) -> PartialReply | None:
        """The reply as read so far; None if it has several choices."""
        if len(self._choices) > 1:
            return None
        state = next(iter(self._choices.values()), _Choice())
        return PartialReply(state.fields.get("reasoning_content", ""), state.text, state.tokens)

    @property
    def has_begun(self) -> bool:
        """Whether anything of the reply was read."""
        return bool(self._choices)

    def feed(self, data: bytes) -> bytes:
        """Takes one event's data (not `[DONE]`). Returns what the client gets now.

        Raises:
            StreamError: the event is an error.
            BrokenStream: the event is not a chunk.
        """
        try:
            chunk: Json = load(data, _MOST_VALUES)
            choices = choices_of(chunk)
        except (ValueError, AttributeError) as error:
            raise BrokenStream(f"an event is not a JSON object: {quoted(data)}") from error
        if "error" in chunk:
            raise StreamError(chunk)
        if self._model_id is not None and chunk.get("model", self._model_id) != self._model_id:
            chunk["model"] = self._model_id
            data = dump(chunk)
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
            if not choices:
                self._usage_chunk = chunk
                if "timings" in chunk and not self._wants_usage:
                    # The proxy asked for the usage, not the client. Without usage, the timings are one chunk earlier.
                    self._envelope["timings"] = chunk["timings"]
                self.timings = object_of(chunk.get("timings"))
                return b""
        self._note_envelope(chunk)
        self.timings = object_of(chunk.get("timings")) or self.timings
        if len(choices) == 1 and not chunk.get("usage") and self._may_pass(choices[0]):
            return b"data: " + data + b"\n\n"
        return b"".join(frame for choice in choices for frame in self._take(choice))

    @property
    def is_in_text(self) -> bool:
        """Whether the client reads the text of the one answer, and no call was begun: the rest can pass as it comes."""
        begun, state = self.begun, self._choices.get(0)
        return begun is not None and state is not None and bool(begun.words) and not state.has_calls

    @property
    def is_in_thoughts(self) -> bool:
        """Whether the one answer has only thoughts so far."""
        begun, state = self.begun, self._choices.get(0)
        return bool(begun and begun.thoughts and not begun.words and state and not state.has_calls)

    def go_on(self, text: str) -> bytes:
        """Takes text that follows after a pause. Returns what the client gets now; `resume` ends it."""
        return b"".join(self._take({"index": 0, "delta": {"content": text}}))

    def resume(self, rest: Json) -> Iterator[bytes]:
        """Continues with the rest of the reply after an error ended the stream. Yields what the client gets."""
        choice = rest["choices"][0]
        state = self._choices.setdefault(0, _Choice())
        state.positions.clear()
        state.calls.clear()  # read by the parser that failed; `rest` has them as text
        state.function = None
        self.usage = rest.get("usage") or self.usage
        self._envelope = {name: rest[name] for name in ("id", "object", "created", "model")} | self._envelope
        yield from self._take({"index": 0, "delta": choice["message"], "finish_reason": choice["finish_reason"]})

    def check(self) -> None:
        """Checks that the reply is complete, after the stream has ended.

        Raises:
            BrokenStream: a choice has no finish_reason.
        """
        if not self._choices or any(choice.finish_reason is None for choice in self._choices.values()):
            raise BrokenStream("the stream ended early")

    def end(self) -> None:
        """Repairs what was held, now that the reply is whole."""
        reply: Json = {"choices": [self._finished(index, it) for index, it in sorted(self._choices.items())]}
        # Text that the client has already cannot become thoughts.
        has_spoken = any(choice.sent for choice in self._choices.values())
        facts = replace(self._facts, thoughts=False) if has_spoken else self._facts
        self._whole, self.repairs = repair_reply(reply | {"usage": self.usage}, facts, self._budget)

    def rest(self) -> Iterator[bytes]:
        """What is left after `end()`: held text, tool calls, finish_reason, usage, `[DONE]`."""
        for choice in choices_of(self._whole):
            yield from self._rest(choice, self._choices[choice["index"]])
        if self._wants_usage:
            usage = {"choices": [], "usage": self.usage} if self._usage_chunk is None else self._usage_chunk
            yield frame(self._base() | usage)
        yield DONE

    # --- reading --------------------------------------------------------------------------------------

    def _may_pass(self, choice: Json) -> bool:
        """Notes a choice if its event can be passed on unchanged: the hot path of a live stream."""
        _, state, delta = self._read(choice)
        text = delta.get("content")
        if choice.get("finish_reason") is not None or choice.get("logprobs") or not _PLAIN.issuperset(delta):
            return False
        is_held = self._may_rescue or self._facts.wants_json or state.pending or state.has_calls
        if text and (is_held or (self._facts.thoughts and not state.sent)):
            return False
        self._note(state, delta)
        if text:
            state.sent.append(text)
        return True

    def _take(self, choice: Json) -> Iterator[bytes]:
        """Notes a choice; yields the part of it that may be passed on."""
        index, state, delta = self._read(choice)
        is_first = not state.fields
        self._note(state, delta)
        if is_first and "role" in state.fields:
            yield self._frame(index, {"role": state.fields["role"]})
        if delta.get("reasoning_content"):
            yield self._frame(index, {"reasoning_content": delta["reasoning_content"]})
        text = delta.get("content") or ""
        # More space behind space decides nothing: a model in a loop may write thousands of newlines.
        is_blank = text.isspace() and state.pending[-1:].isspace()
        if state.holding is not None and state.holding.holds_rest:
            state.held.append(text)
        else:
            state.pending += text
        for call in objects_of(delta.get("tool_calls")):
            _merge_call(state, call)
        if isinstance(delta.get("function_call"), dict):
            state.function = _merged_function(state.function or {}, delta["function_call"])
        state.logprobs += objects_of(object_of(choice.get("logprobs")).get("content"))
        state.finish_reason = choice.get("finish_reason") or state.finish_reason
        if not is_blank:
            yield from self._text_that_may_pass(index, state)

    def _read(self, choice: Json) -> tuple[int, _Choice, Json]:
        """A choice's index, what was read of it before, and what is new.

        Raises:
            BrokenStream: it does not have the form of a chunk's choice.
        """
        index = choice.get("index", 0)
        delta = object_of(choice.get("delta")) if self._is_chat else {"content": choice.get("text")}
        texts = (delta.get("content"), delta.get("reasoning_content"))
        if not isinstance(index, int) or not all(text is None or isinstance(text, str) for text in texts):
            raise BrokenStream(f"malformed choice: {quoted(json.dumps(choice))}")
        if len(self._choices) >= _MOST_CHOICES and index not in self._choices:
            raise BrokenStream(f"more than {_MOST_CHOICES} choices")
        return index, self._choices.setdefault(index, _Choice()), delta

    def _note(self, state: _Choice, delta: Json) -> None:
        state.tokens += bool(delta.get("content") or delta.get("reasoning_content"))
        for name, value in delta.items():
            if name == "reasoning_content":
                state.fields[name] = state.fields.get(name, "") + (value or "")
            elif name not in ("content", "tool_calls", "function_call"):
                state.fields[name] = value

    def _text_that_may_pass(self, index: int, state: _Choice) -> Iterator[bytes]:
        if self._facts.wants_json or state.has_calls or not state.pending:
            return
        if self._facts.thoughts and self._is_chat and not state.sent:
            if state.thinking and not may_end_thoughts(state.pending, state.thinking):
                state.thinking = len(state.pending)
                return
            taken = take_thoughts(state.pending)
            state.thinking = 0 if taken else len(state.pending)
            if taken is None:
                return
            thoughts, state.pending = taken
            if thoughts:
                self._note(state, {"reasoning_content": thoughts})
                yield self._frame(index, {"reasoning_content": thoughts})
        end = len(state.pending)
        if self._may_rescue:
            is_start = not state.sent or state.sent[-1].endswith(THOUGHTS_END)
            state.holding = state.holding or Holding(self._facts.tools)
            end = state.holding.free_end(state.pending, is_start=is_start)
        if end:
            piece, state.pending = state.pending[:end], state.pending[end:]
            state.sent.append(piece)
            yield self._frame(index, {"content": piece})

    # --- the end --------------------------------------------------------------------------------------

    def _finished(self, index: int, state: _Choice) -> Json:
        text = state.text
        if not self._is_chat:
            return {"index": index, "text": text, "finish_reason": state.finish_reason}
        message: Json = {"role": "assistant"} | state.fields
        message["content"] = None if state.has_calls and not text else text
        if state.calls:
            message["tool_calls"] = [call for _, call in sorted(state.calls, key=itemgetter(0))]
        if state.function is not None:
            message["function_call"] = state.function
        return {"index": index, "message": message, "finish_reason": state.finish_reason}

    def _rest(self, choice: Json, state: _Choice) -> Iterator[bytes]:
        index, message = choice["index"], choice.get("message") or {}
        text = (message.get("content") if self._is_chat else choice.get("text")) or ""
        known = state.fields.get("reasoning_content") or ""
        thoughts = message.get("reasoning_content")
        if isinstance(thoughts, str) and len(thoughts) > len(known):
            yield self._frame(index, {"reasoning_content": thoughts[len(known) :].removeprefix("\n")})
        for piece in split_text(text[sum(map(len, state.sent)) :]):
            yield self._frame(index, {"content": piece})
        for position, call in enumerate(message.get("tool_calls") or []):
            for delta in tool_call_deltas(position, call):
                yield self._frame(index, {"tool_calls": [delta]})
        for delta in function_call_deltas(message.get("function_call")):
            yield self._frame(index, {"function_call": delta})
        for logprobs in split_logprobs({"content": state.logprobs}):
            yield self._frame(index, {}, logprobs=logprobs)
        yield self._frame(index, {}, finish_reason=choice["finish_reason"])

    def _frame(self, index: int, delta: Json, **more: object) -> bytes:
        content = {"delta": delta} if self._is_chat else {"text": delta.get("content", "")}
        choice = {"index": index, **content, "finish_reason": None, **more}
        base = self._base() if more.get("finish_reason") is None else self._envelope
        return frame(base | {"choices": [choice]})

    def _note_envelope(self, chunk: Json) -> None:
        """Keeps the fields around the choices; llama-server puts `timings` into its last chunk."""
        self._envelope |= {name: value for name, value in chunk.items() if name not in ("choices", "usage")}

    def _base(self) -> Json:
        return {name: value for name, value in self._envelope.items() if name != "timings"}


_MOST_LOOKED_AT = 16 * 1024
_MOST_VALUES = 100_000  # of one event
_MOST_CHOICES = 1000
_PLAIN = frozenset(("role", "content", "reasoning_content"))


def _merge_call(state: _Choice, delta: Json) -> None:
    """Adds a tool call's delta to the call that it continues, or begins another one."""
    index = delta.get("index")
    if not isinstance(index, int):
        index = len(state.calls) if delta.get("id") else max(len(state.calls) - 1, 0)
    position = state.positions.get(index)
    if position is None or _begins_another(state.calls[position][1], delta):
        position = state.positions[index] = len(state.calls)
        state.calls.append((index, {}))
    known = state.calls[position][1]
    function = _merged_function(known.get("function") or {}, object_of(delta.get("function")))
    known.update({name: value for name, value in delta.items() if name not in ("index", "function")})
    known["function"] = function


def _begins_another(known: Json, delta: Json) -> bool:
    """Whether a delta belongs to another call in spite of its index: some backends number every call 0."""
    if delta.get("id") and known.get("id"):
        return bool(delta["id"] != known["id"])
    arguments = object_of(known.get("function")).get("arguments")
    return bool(object_of(delta.get("function")).get("name")) and _is_whole(arguments)


def _is_whole(arguments: object) -> bool:
    """Whether a call's arguments are complete. Long ones are not checked, because this runs for each delta."""
    if not isinstance(arguments, str) or len(arguments) > _MOST_LOOKED_AT or not arguments.rstrip().endswith("}"):
        return False
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    return True


def _merged_function(known: Json, delta: Json) -> Json:
    merged = known | {name: value for name, value in delta.items() if name != "arguments"}
    arguments = delta.get("arguments")
    if isinstance(arguments, str):
        before = known.get("arguments")
        merged["arguments"] = before + arguments if isinstance(before, str) else arguments
    elif arguments is not None:
        merged["arguments"] = arguments  # an object: some backends send it instead of a string
    return merged
