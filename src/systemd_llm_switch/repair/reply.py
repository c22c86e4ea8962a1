"""Repairs a finished reply: malformed JSON becomes sound JSON, and a sound reply stays the identical object."""

from __future__ import annotations

import re
from typing import TypeVar

from systemd_llm_switch.openai.decoder import TooLarge

from .budget import Budget, BudgetSpent
from .calls import Call, function_of, repair_function, repair_tool_calls
from .content import repair_content
from .lenient import read
from .model import Repair, RequestFacts, UnrepairableReply
from .rescue import rescue_calls
from .second_opinion import second_opinion
from .strings import Unreadable
from .text import decode_body
from .thoughts import split_thoughts

Reply = dict[str, object]
_Part = TypeVar("_Part")
_MOST_VALUES = 2_000_000
"""The log probabilities of a long reply are many."""
_MOST_BYTES = 64_000_000
_NO_OBJECT = "the backend's reply is not a JSON object"
_BODY_START = re.compile(r"[\ufeff\s]*+(?=\{)")
_BODY_END = re.compile(r"[\s}\]]*+\Z")


def parse_reply(raw: bytes, budget: Budget | None = None) -> tuple[Reply, tuple[Repair, ...]]:
    """The JSON object of a backend's body, repaired as a whole if it is malformed (kind `reply_body`).

    A body that ends too early was cut, so its last choice gets the finish_reason "length".

    Raises UnrepairableReply, TooLarge.
    """
    if len(raw) > _MOST_BYTES:
        raise TooLarge(f"it is larger than {_MOST_BYTES // 1_000_000} MB")
    try:
        reply = decode_body(raw, _MOST_VALUES)
        repairs: tuple[Repair, ...] = ()
    except TooLarge:
        raise
    except (ValueError, RecursionError):
        with budget or Budget() as allowance:
            reply = _read_body(raw.decode(errors="replace"), allowance)
        repairs = (Repair("reply_body"),)
    if type(reply) is not dict:
        raise UnrepairableReply(_NO_OBJECT)
    return reply, repairs


def _read_body(text: str, budget: Budget) -> object:
    start = _BODY_START.match(text)
    try:
        if start is None:
            raise Unreadable("no object")
        budget.allow(len(text))
        reading = read(text, start.end(), budget=budget)
        if reading.has_words or not reading.value or not _BODY_END.match(text, reading.end):
            raise Unreadable("something else than one object")
    except BudgetSpent as error:
        raise UnrepairableReply(f"{_NO_OBJECT}, and {error}") from error
    except Unreadable as error:
        value = second_opinion(text)
        if not value:
            raise UnrepairableReply(_NO_OBJECT) from error
        return value
    if type(reading.value) is dict and (reading.open_depths or reading.is_cut):
        _mark_cut(reading.value)
    return reading.value


def _mark_cut(reply: Reply) -> None:
    choices = reply.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[-1], dict):
        choices[-1]["finish_reason"] = "length"


def repair_reply(reply: Reply, facts: RequestFacts, budget: Budget | None = None) -> tuple[Reply, tuple[Repair, ...]]:
    """A chat completion (or a text completion that was to be JSON) as its client needs it.

    The identical object if nothing was to be changed. Never mutates its input, never raises.
    """
    choices = reply.get("choices")
    if not isinstance(choices, list):
        return reply, ()
    with budget or Budget() as allowance:
        attempt = _Attempt(facts, allowance)
        is_full = _used_up(reply, facts)
        repaired = [attempt.choice(choice, is_full) for choice in choices]
    repairs = tuple(attempt.repairs)
    if all(new is old for new, old in zip(repaired, choices, strict=True)):
        return reply, repairs
    return {**reply, "choices": repaired}, repairs


def _text_of(content: object) -> object:
    """The text of a content that is a list of parts with text only, as some backends send it."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    return "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else content


def _used_up(reply: Reply, facts: RequestFacts) -> bool:
    usage = reply.get("usage")
    used = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return facts.max_tokens is not None and isinstance(used, int) and used >= facts.max_tokens


def _finish_reason(finish: object, message: Reply) -> object:
    if finish not in (None, "", "stop"):
        return finish
    if message.get("tool_calls"):
        return "tool_calls"
    return "function_call" if message.get("function_call") else "stop"


class _Attempt:
    """The repair of one reply; `repairs` grows."""

    def __init__(self, facts: RequestFacts, budget: Budget) -> None:
        self.facts = facts
        self.budget = budget
        self.repairs: list[Repair] = []

    def choice(self, choice: object, is_full: bool) -> object:
        if not isinstance(choice, dict):
            return choice
        if isinstance(text := choice.get("text"), str):
            repaired = self.noted(repair_content(text, self.facts, self.budget))
            return choice if repaired is text else {**choice, "text": repaired}
        message = choice.get("message")
        if not isinstance(message, dict):
            return choice
        finish = choice.get("finish_reason")
        repaired_message = self.message(message, is_full or finish == "length")
        changes: Reply = {}
        if repaired_message is not message:
            changes["message"] = repaired_message
        if (right := _finish_reason(finish, repaired_message)) != finish:
            changes["finish_reason"] = right
            self.repairs.append(Repair("finish_reason"))
        return {**choice, **changes} if changes else choice

    def message(self, message: Reply, truncated: bool) -> Reply:
        facts, budget = self.facts, self.budget
        changes: Reply = {}
        if not message.get("role"):
            changes["role"] = "assistant"
            self.repairs.append(Repair("role"))
        calls, legacy = message.get("tool_calls"), message.get("function_call")
        content = _text_of(message.get("content"))
        if isinstance(calls, list) and calls:
            changes["tool_calls"] = self.noted(repair_tool_calls(calls, facts, budget, truncated=truncated))
        if isinstance(legacy, dict):
            changes["function_call"] = self.noted(repair_function(legacy, facts, budget, truncated=truncated))
        if isinstance(content, str) and facts.thoughts:
            content = self.without_thoughts(message, content, changes)
        if calls or legacy:
            if content == "":
                changes["content"] = None
                self.repairs.append(Repair("empty_content"))
        else:
            changes.update(self.from_content(message | changes, content, truncated))
        changes = {name: part for name, part in changes.items() if name not in message or part is not message[name]}
        return {**message, **changes} if changes else message

    def noted(self, outcome: tuple[_Part, tuple[Repair, ...]]) -> _Part:
        self.repairs.extend(outcome[1])
        return outcome[0]

    def without_thoughts(self, message: Reply, content: str, changes: Reply) -> str:
        """The content without the thoughts in it, which go to those that the backend split off itself."""
        thoughts, answer = split_thoughts(content)
        if answer is content:
            return content
        known = message.get("reasoning_content")
        if thoughts:
            changes["reasoning_content"] = f"{known}\n{thoughts}" if isinstance(known, str) and known else thoughts
        changes["content"] = answer
        self.repairs.append(Repair("thoughts"))
        return answer

    def from_content(self, message: Reply, content: object, truncated: bool) -> Reply:
        """What the content becomes: calls and the text around them, or JSON that the client asked for."""
        if isinstance(content, str) and content.strip():
            rest, calls, found = rescue_calls(content, self.facts, self.budget, truncated=truncated)
            self.repairs.extend(found)
            if not calls:
                repaired = self.noted(repair_content(content, self.facts, self.budget))
                return {} if repaired is content else {"content": repaired}
            return {"content": rest, **self.as_calls(calls)}
        thoughts = message.get("reasoning_content")
        if not isinstance(thoughts, str) or not (content is None or isinstance(content, str)):
            return {}
        # An agent stops when a reply holds neither text nor a call: a call that the thoughts end with is meant.
        rest, calls, found = rescue_calls(thoughts, self.facts, self.budget, truncated=truncated, at_end=True)
        self.repairs.extend(found)
        if not calls:
            return {}
        return {"content": None, "reasoning_content": rest or "", **self.as_calls(calls)}

    def as_calls(self, calls: list[Call]) -> Reply:
        return {"function_call": function_of(calls[0])} if self.facts.is_legacy else {"tool_calls": calls}
