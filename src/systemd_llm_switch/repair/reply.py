"""A finished reply: malformed JSON in it becomes sound JSON, and what is sound stays the identical object."""

from __future__ import annotations

import re

from .calls import function_of, repair_function, repair_tool_calls
from .content import repair_content
from .lenient import read
from .model import Repair, RequestFacts, UnrepairableReply
from .rescue import rescue_calls
from .second_opinion import second_opinion
from .strings import Unreadable
from .text import decode

Reply = dict[str, object]
_NO_OBJECT = "the backend's reply is no JSON object"
_BODY_START = re.compile(r"[\ufeff\s]*(?=\{)")
_BODY_END = re.compile(r"[\s}\]]*\Z")


def parse_reply(raw: bytes) -> tuple[Reply, tuple[Repair, ...]]:
    """The JSON object of a backend's body, repaired as a whole if it is malformed (kind `reply_body`).

    A body that ends too early was cut, so its last choice gets the finish_reason "length". Raises UnrepairableReply.
    """
    try:
        reply = decode(raw.decode())
        repairs: tuple[Repair, ...] = ()
    except (ValueError, RecursionError):
        reply = _read_body(raw.decode(errors="replace"))
        repairs = (Repair("reply_body"),)
    if type(reply) is not dict:
        raise UnrepairableReply(_NO_OBJECT)
    return reply, repairs


def _read_body(text: str) -> object:
    start = _BODY_START.match(text)
    try:
        if start is None:
            raise Unreadable("no object")
        reading = read(text, start.end())
        if reading.has_words or not reading.value or not _BODY_END.match(text, reading.end):
            raise Unreadable("something else than one object")
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


def repair_reply(reply: Reply, facts: RequestFacts) -> tuple[Reply, tuple[Repair, ...]]:
    """A chat completion (or a text completion that was to be JSON) as its client needs it.

    The identical object if nothing was to be changed. Never mutates its input, never raises.
    """
    choices = reply.get("choices")
    if not isinstance(choices, list):
        return reply, ()
    repairs: list[Repair] = []
    is_full = _used_up(reply, facts)
    mended = [_mended_choice(choice, facts, is_full, repairs) for choice in choices]
    if all(new is old for new, old in zip(mended, choices, strict=True)):
        return reply, tuple(repairs)
    return {**reply, "choices": mended}, tuple(repairs)


def _used_up(reply: Reply, facts: RequestFacts) -> bool:
    usage = reply.get("usage")
    used = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return facts.max_tokens is not None and isinstance(used, int) and used >= facts.max_tokens


def _mended_choice(choice: object, facts: RequestFacts, is_full: bool, repairs: list[Repair]) -> object:
    if not isinstance(choice, dict):
        return choice
    if isinstance(text := choice.get("text"), str):
        mended, found = repair_content(text, facts)
        repairs.extend(found)
        return choice if mended is text else {**choice, "text": mended}
    message = choice.get("message")
    if not isinstance(message, dict):
        return choice
    finish = choice.get("finish_reason")
    mended_message = _mended_message(message, facts, is_full or finish == "length", repairs)
    changes: Reply = {}
    if mended_message is not message:
        changes["message"] = mended_message
    if (right := _finish_reason(finish, mended_message)) != finish:
        changes["finish_reason"] = right
        repairs.append(Repair("finish_reason"))
    return {**choice, **changes} if changes else choice


def _finish_reason(finish: object, message: Reply) -> object:
    if finish not in (None, "", "stop"):
        return finish
    if message.get("tool_calls"):
        return "tool_calls"
    return "function_call" if message.get("function_call") else "stop"


def _mended_message(message: Reply, facts: RequestFacts, truncated: bool, repairs: list[Repair]) -> Reply:
    changes: Reply = {}
    if not message.get("role"):
        changes["role"] = "assistant"
        repairs.append(Repair("role"))
    calls, legacy = message.get("tool_calls"), message.get("function_call")
    content = message.get("content")
    if isinstance(calls, list) and calls:
        _note(changes, "tool_calls", calls, repair_tool_calls(calls, facts, truncated=truncated), repairs)
    if isinstance(legacy, dict):
        _note(changes, "function_call", legacy, repair_function(legacy, facts, truncated=truncated), repairs)
    if calls or legacy:
        if content == "":
            changes["content"] = None
            repairs.append(Repair("empty_content"))
    elif isinstance(content, str):
        changes.update(_from_content(content, facts, truncated, repairs))
    return {**message, **changes} if changes else message


def _note(changes: Reply, key: str, old: object, outcome: tuple[object, tuple[Repair, ...]],
          repairs: list[Repair]) -> None:  # fmt: skip
    new, found = outcome
    repairs.extend(found)
    if new is not old:
        changes[key] = new


def _from_content(content: str, facts: RequestFacts, truncated: bool, repairs: list[Repair]) -> Reply:
    rest, rescued, found = rescue_calls(content, facts, truncated=truncated)
    if rescued:
        repairs.extend(found)
        if facts.is_legacy:
            return {"content": rest, "function_call": function_of(rescued[0])}
        return {"content": rest, "tool_calls": rescued}
    mended, found = repair_content(content, facts)
    repairs.extend(found)
    return {} if mended is content else {"content": mended}
