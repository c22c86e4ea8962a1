"""One request may spend a bounded CPU time on repair, whatever it holds: these inputs once took seconds or minutes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from corpus.cases import load_cases
from support.replies import calling, plenty, saying
from systemd_llm_switch.repair import (
    Budget,
    Repair,
    RequestFacts,
    UnrepairableReply,
    parse_reply,
    repair_history,
    repair_reply,
)
from systemd_llm_switch.repair.budget import BudgetSpent

FILES = next(case for case in load_cases() if case.raw.get("tools") == "files").facts
JSON = RequestFacts(wants_json=True)
BROKEN = "{'path': 'a'}"
RECURSIVE: dict[str, Any] = {
    "anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"type": "string"}],
    "properties": {"a": {"$ref": "#"}},
    "items": {"$ref": "#"},
}


def replayed(arguments: str) -> dict[str, Any]:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [{"role": "assistant", "tool_calls": [call]}]}


def listing(items: dict[str, Any]) -> RequestFacts:
    return RequestFacts(tools={"f": {"properties": {"a": {"type": "array", "items": items}}, "required": ["b"]}})


HOSTILE: dict[str, Callable[[], object]] = {
    "newlines behind an object": lambda: repair_history(replayed('{"a":1}' + "\n" * 100_000 + '"x')),
    "newlines behind a name": lambda: repair_reply(saying("[TOOL_CALLS]f" + "\n" * 100_000 + "x"), FILES),
    "space in a key": lambda: repair_reply(saying("<tool_call>f<arg_key>" + " " * 100_000 + "x"), FILES),
    "newlines behind JSON content": lambda: repair_reply(saying("{'a':1}" + "\n" * 100_000 + '"x'), JSON),
    "space in a name that is cut": lambda: repair_history(replayed('{"a' + " " * 100_000 + '\n"x')),
    "json-repair's worst": lambda: repair_history(replayed(("[*/“'a'" * 3000)[:20_000])),
    "json-repair's worst, short": lambda: repair_history(replayed("{* \\1" * 200)),
    "a recursive reference": lambda: repair_reply(
        calling("f", '{"a":' * 50 + "1" + "}" * 50), RequestFacts(tools={"f": RECURSIVE})
    ),
    "a long reference": lambda: repair_reply(
        calling("f", '{"a":[' + "1," * 3000 + "]}"), listing({"$ref": "#" + "/a" * 64_000})
    ),
    "a long enum": lambda: repair_reply(
        calling("f", '{"a":[' + "'x'," * 3000 + "]}"), listing({"enum": [f"n{i}" for i in range(32_000)]})
    ),
    "an enum at the bound": lambda: repair_reply(
        calling("f", '{"a":[' + "'x'," * 40_000 + "]}"), listing({"enum": [f"n{i}" for i in range(2000)]})
    ),
    "a union at the bound": lambda: repair_reply(
        calling("f", '{"a":[' + "'x'," * 40_000 + "]}"), listing({"anyOf": [{"type": "integer"}] * 1000})
    ),
    "broken calls": lambda: repair_reply(
        {"choices": [{"message": {"tool_calls": [_call('{"a": "' + '"b", ' * 2000) for _ in range(20)]}}]}, FILES
    ),
}


def _call(arguments: str) -> dict[str, Any]:
    return {"id": "", "type": "function", "function": {"name": "write_to_file", "arguments": arguments}}


def cpu_s(work: Callable[[], object]) -> float:
    """CPU time of this thread alone: a busy machine does not count."""
    began_s = time.thread_time()
    work()
    return time.thread_time() - began_s


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_input_ends_within_the_budget(name: str) -> None:
    """Within 250 ms and what its length adds, and a margin for a slow machine."""
    assert min(cpu_s(HOSTILE[name]) for _ in range(2)) < 1.0


def repairs_of(outcome: tuple[object, tuple[Repair, ...]]) -> list[str]:
    return [repair.kind for repair in outcome[1]]


def test_arguments_past_the_budget_stay_and_are_marked() -> None:
    reply = calling("read_file", BROKEN)
    mended, repairs = repair_reply(reply, FILES, Budget(base_s=-1))
    assert mended is reply
    assert repairs == (Repair("repair_budget", "read_file"),)


def test_a_sound_call_needs_no_budget() -> None:
    """It is passed on whatever was spent before."""
    reply = calling("read_file", '{"path": "a"}')
    assert repair_reply(reply, FILES, Budget(base_s=-1)) == (reply, ())


def test_words_past_the_budget_stay_and_are_marked() -> None:
    reply = saying('<tool_call>{"name": "read_file", "arguments": {"path": "a"}}</tool_call>')
    mended, repairs = repair_reply(reply, FILES, Budget(base_s=-1))
    assert (mended, repairs_of((mended, repairs))) == (reply, ["repair_budget"])


def test_json_content_past_the_budget_stays_and_is_marked() -> None:
    reply = saying("{'a': 1}")
    mended, repairs = repair_reply(reply, JSON, Budget(base_s=-1))
    assert (mended, repairs_of((mended, repairs))) == (reply, ["repair_budget"])


def test_a_history_past_the_budget_can_still_be_read_by_a_backend() -> None:
    mended, repairs = repair_history(replayed(BROKEN), Budget(base_s=-1))
    call = mended["messages"][0]["tool_calls"][0]  # type: ignore[index]
    assert call["function"]["arguments"] == "{\"malformed_arguments\":\"{'path': 'a'}\"}"
    assert repairs_of((mended, repairs)) == ["history_arguments", "repair_budget"]


def test_a_text_that_is_too_long_is_not_repaired() -> None:
    """One pass over it would hold up every other request."""
    reply = calling("write_to_file", f"{{'path': 'a', 'content': '{'x' * 2_000_000}'}}")
    assert repairs_of(repair_reply(reply, FILES)) == ["repair_budget"]


def test_repair_ends_when_the_client_is_gone() -> None:
    """The check is made after 20 ms of work, as it costs a system call."""
    reply = calling("write_to_file", '{"path": "a", "content": "' + '"b", ' * 150_000)
    asked = []

    def is_gone() -> bool:
        asked.append(True)
        return True

    mended, repairs = repair_reply(reply, FILES, Budget(is_gone, base_s=60))
    assert mended is reply
    assert repairs_of((mended, repairs)) == ["repair_budget"]
    assert len(asked) >= 1


def test_the_budget_is_one_for_a_request() -> None:
    """What its history took is missing for its reply: to repair 13 characters takes longer than their 13 µs."""
    budget = Budget(base_s=0)
    assert repairs_of(repair_history(replayed(BROKEN), budget)) == ["history_arguments"]
    assert repairs_of(repair_reply(calling("read_file", BROKEN), FILES, budget)) == ["repair_budget"]


def test_a_malformed_body_has_the_budget_too() -> None:
    body = b'{"choices": [' + b"{'a': 'b'}, " * 40_000 + b"]}"

    def refused() -> None:
        with pytest.raises(UnrepairableReply):
            parse_reply(body)

    assert cpu_s(refused) < 2


def test_a_recursive_schema_does_not_use_up_the_budget() -> None:
    """Each pair of a value and a part of the schema is judged once."""
    reply = calling("f", '{"a":' * 50 + '"x"' + "}" * 50)
    assert repair_reply(reply, RequestFacts(tools={"f": RECURSIVE})) == (reply, ())


def work(budget: Budget, cpu_time_s: float) -> None:
    """Some CPU time of this thread, with a check every little while."""
    end_s = time.thread_time() + cpu_time_s
    while time.thread_time() < end_s:
        sum(range(1000))
        budget.check()


def test_one_repair_at_a_time_is_a_long_one() -> None:
    """Several would keep the interpreter from every other request for longer."""
    working = threading.Lock()
    overlaps: list[int] = []

    def repair(number: int) -> None:
        with plenty() as budget:
            work(budget, 0.05)
            if not working.acquire(blocking=False):
                overlaps.append(number)
                return
            work(budget, 0.05)
            working.release()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(repair, range(6)))
    assert overlaps == []


def test_a_short_repair_does_not_wait_for_a_long_one() -> None:
    with plenty() as long, ThreadPoolExecutor(1) as pool:
        work(long, 0.05)
        assert pool.submit(repair_history, replayed(BROKEN), plenty()).result(60)[1]


def test_a_repair_that_waits_for_its_turn_ends_when_its_client_is_gone() -> None:
    is_gone = threading.Event()

    def wait() -> None:
        with Budget(is_gone.is_set, base_s=60) as budget:
            work(budget, 3600)

    with plenty() as long, ThreadPoolExecutor(1) as pool:
        work(long, 0.05)
        waiting = pool.submit(wait)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        is_gone.set()
        with pytest.raises(BudgetSpent, match="the client is gone"):
            waiting.result(60)


def test_the_turn_is_given_back_after_an_error() -> None:
    with pytest.raises(BudgetSpent), Budget(base_s=0.05) as budget:
        work(budget, 3600)
    with plenty() as another:
        work(another, 0.05)
