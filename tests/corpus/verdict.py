"""Runs repair on one case of the corpus and says what became of it, and whether that is what a human expects."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from corpus.cases import Case
from support.replies import plenty
from systemd_llm_switch.repair import Repair, UnrepairableReply, parse_reply, repair_history, repair_reply

IDENTICAL, REPAIRED, MARKED = "left identical", "repaired", "not repaired, and said so"
_FRESH_ID = re.compile(r"call_[0-9a-f]{24}\Z")


@dataclass(frozen=True)
class Verdict:
    """`outcome` is one of the words above, by what was expected; `problems` is empty where it came so."""

    outcome: str
    problems: tuple[str, ...]


def judge(case: Case) -> Verdict:
    """Never raises for a wrong result: that is a problem to report."""
    if "body" in case.raw:
        return _judge_body(case)
    if "history" in case.raw or "messages" in case.raw:
        return _judge_history(case)
    reply = case.reply
    before = deepcopy(reply)
    mended, repairs = repair_reply(reply, case.facts, budget=plenty())
    problems = [] if reply == before else ["the input was changed"]
    return _verdict(case, mended, mended is reply, repairs, problems)


def exact(value: object) -> str:
    """A value as text that tells 3 from 3.0 and 1 from true; the order of members does not count."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _judge_body(case: Case) -> Verdict:
    try:
        reply, repairs = parse_reply(case.body, budget=plenty())
    except UnrepairableReply:
        return Verdict(MARKED, () if case.raw.get("unrepairable") else ("the body was refused",))
    if case.raw.get("unrepairable"):
        return Verdict(MARKED, (f"the body became {exact(reply)}",))
    mended, more = repair_reply(reply, case.facts, budget=plenty())
    return _verdict(case, mended, mended is reply and not repairs, repairs + more, [])


def _judge_history(case: Case) -> Verdict:
    body = case.replayed
    before = deepcopy(body)
    mended, repairs = repair_history(body, budget=plenty())
    problems = [] if body == before else ["the input was changed"]
    if case.is_sound:
        return _verdict(case, mended, mended is body, repairs, problems)
    if "history_becomes" in case.raw:
        text = mended["messages"][1]["tool_calls"][0]["function"].pop("arguments")  # type: ignore[index]
        problems += _compared(json.loads(text), case.raw["history_becomes"])
        before["messages"][1]["tool_calls"][0]["function"].pop("arguments")
        problems += _compared(mended, before)
    else:
        problems += _compared(mended["messages"], case.raw["messages_become"])
    return Verdict(REPAIRED, (*problems, *_compared_repairs(case, repairs)))


def _verdict(
    case: Case, mended: dict[str, Any], is_identical: bool, repairs: tuple[Repair, ...], problems: list[str]
) -> Verdict:
    if case.is_sound or "marked" in case.raw:
        kinds = [case.raw["marked"]] if "marked" in case.raw else []
        problems += [] if is_identical else [f"not the identical object, but {exact(mended)}"]
        problems += _compared(sorted(repair.kind for repair in repairs), kinds)
        return Verdict(MARKED if kinds else IDENTICAL, tuple(problems))
    problems += [] if repairs else ["nothing was noted"]
    problems += _compared_repairs(case, repairs)
    problems += _compared_parts(case, mended)
    is_kept = "keeps" in case.raw
    return Verdict(MARKED if is_kept else REPAIRED, tuple(problems))


def _compared_parts(case: Case, mended: dict[str, Any]) -> list[str]:
    raw = case.raw
    if "body_becomes" in raw:
        return _compared(mended, raw["body_becomes"])
    if "choices_become" in raw:
        return _compared(mended["choices"], raw["choices_become"])
    choice = mended["choices"][0]
    if "text_becomes" in raw:
        return _compared(json.loads(choice["text"]), raw["text_becomes"])
    message = choice["message"]
    problems = _compared(choice["finish_reason"], _expected_finish(case))
    if "message_becomes" in raw:
        return problems + _compared(_with_placeholders(message), raw["message_becomes"])
    if "content_becomes" in raw:
        return problems + _compared(json.loads(message["content"]), raw["content_becomes"])
    if "content" in raw:
        problems += _compared(message["content"], raw.get("text"))
    return problems + _compared_calls(message.get("tool_calls") or [], _expected_calls(case))


def _expected_finish(case: Case) -> object:
    if "finish_becomes" in case.raw:
        return case.raw["finish_becomes"]
    return case.raw.get("finish_reason", "stop" if "content_becomes" in case.raw else "tool_calls")


def _expected_calls(case: Case) -> list[dict[str, Any]]:
    raw = case.raw
    if "calls" in raw:
        return list(raw["calls"])
    wanted = {"keeps": raw["keeps"]} if "keeps" in raw else {"arguments": raw["becomes"]}
    return [{"tool": raw.get("tool_becomes", raw["tool"]), **wanted}]


def _compared_calls(calls: list[dict[str, Any]], expected: list[dict[str, Any]]) -> list[str]:
    if len(calls) != len(expected):
        return [f"{len(calls)} calls instead of {len(expected)}"]
    ids = [call.get("id") for call in calls]
    problems = [] if len(set(ids)) == len(ids) and all(isinstance(it, str) and it for it in ids) else ["wrong ids"]
    for call, wanted in zip(calls, expected, strict=True):
        problems += _compared(call.get("type"), "function")
        problems += _compared(call["function"]["name"], wanted["tool"])
        text = call["function"].get("arguments")
        if "keeps" in wanted:
            problems += _compared(text, wanted["keeps"])
        elif not isinstance(text, str):
            problems.append("arguments are no string")
        else:
            problems += _compared_json(text, wanted["arguments"])
    return problems


def _compared_json(text: str, expected: object) -> list[str]:
    try:
        return _compared(json.loads(text), expected)
    except ValueError:
        return [f"no JSON: {text}"]


def _compared(value: object, expected: object) -> list[str]:
    return [] if exact(value) == exact(expected) else [f"{exact(value)} instead of {exact(expected)}"]


def _compared_repairs(case: Case, repairs: tuple[Repair, ...]) -> list[str]:
    if "repairs" not in case.raw:
        return []
    return _compared(sorted(repair.kind for repair in repairs), case.raw["repairs"])


def _with_placeholders(message: dict[str, Any]) -> dict[str, Any]:
    """The message with NEW for each id that repair made."""
    copy = deepcopy(message)
    for call in copy.get("tool_calls") or []:
        if _FRESH_ID.match(call.get("id") or ""):
            call["id"] = "NEW"
    return copy
