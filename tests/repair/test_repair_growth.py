"""No pattern and no form takes time that grows faster than the text.

Every pattern of `repair/` is found by looking into the modules, so a new one is tested without a line here. Each is
run on texts that repeat a token of its own, or one that it shares with others, at lengths n and 4n. CPU time of this
thread is measured, so that a busy machine does not count, and only a text that is slow at all is compared.
"""

from __future__ import annotations

import ast
import importlib
import math
import pkgutil
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import systemd_llm_switch.repair as package
from corpus.cases import load_cases
from support.replies import calling, saying
from systemd_llm_switch.repair import Budget, RequestFacts, repair_history, repair_reply

pytestmark = pytest.mark.slow  # a hunt: a minute of CPU time in all

LENGTHS = (200, 2_000, 10_000)
"""From short to long, so that a cubic pattern fails the test instead of hanging it."""
SLOW_S = 0.02
"""A linear pattern takes less than this for 4n characters, by a factor of ten or more."""
MAX_RATIO = 8
CLEARLY_LINEAR = 6
"""Quadratic time gives 16, so with less than this no further run is needed."""
MANY_TOKENS = 60
"""A pattern with more tokens has hundreds of texts, and takes a minute with the longest ones: those are left out."""
BOUNDED = {"_ESCAPED_LAST_QUOTE", "_LAST_CLOSERS", "_END_MARK", "_EXPLAINED", "_EXAMPLE", "_EXPLAINS", "_ABOUT_CALLS",
           "_INTENDS", "_CONDITION", "_SHOWS", "_OF_FORM", "_PRESENTS", "_TELLS_HOW", "_FORBIDS", "_ABOUT_FORMS",
           "_SPEAKS_OF_ITSELF", "_WILL", "_SENTENCE", "_THOUGHT_LINE", "_CUT_TAG",
           "_REPORTS", "_GOES_ON", "_INTERJECTION",
           "_SUPPOSES", "_LEADS_TO_TEXT", "_ACTS"}  # fmt: skip
"""These are used on a few hundred characters alone."""
BOUNDED_LENGTHS = (100,)
COMMON = (" ", "\n", "\t", "a", "1", '"', "'", "\\", "{", "}", "[", "]", ":", ",", "<", ">", "/", "|", "`", "```", "#",
          "//", "/*", "*/", "=", ".", "(", ")", "-", "</", "<|", "_", "é", "“", "<a>",
          "\n\n", " \n", '"a"', "a b", "x ")  # fmt: skip
FILES = next(case for case in load_cases() if case.raw.get("tools") == "files").facts
JSON = RequestFacts(wants_json=True)


def modules() -> Iterator[object]:
    for info in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{info.name}")


def methods_of(module: object) -> dict[str, set[str]]:
    """With which methods a module uses each of its names, as `_TAIL.match(…)`."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(Path(str(getattr(module, "__file__", ""))).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.setdefault(node.value.id, set()).add(node.attr)
    return found


def patterns() -> dict[str, re.Pattern[str]]:
    return {
        f"{str(getattr(module, '__name__', '')).rpartition('.')[2]}.{name}": value
        for module in modules()
        for name, value in vars(module).items()
        if isinstance(value, re.Pattern)
    }


PATTERNS = patterns()
SEARCHED = {
    f"{str(getattr(module, '__name__', '')).rpartition('.')[2]}.{name}"
    for module in modules()
    for name, methods in methods_of(module).items()
    if methods & {"search", "finditer", "sub", "split", "findall"}
}


def tokens_of(pattern: re.Pattern[str]) -> list[str]:
    """The literal words in a pattern, and whole tags of them."""
    words = re.findall(r"[A-Za-z_]{2,}|[<\[/|]+[A-Za-z_|:]+[>\]|]*", pattern.pattern.replace("\\", ""))
    return sorted(set(words))


def texts_for(pattern: re.Pattern[str], seed: int) -> Iterator[tuple[str, str, str]]:
    """Starts, repeated units and ends: each token alone, and random pairs."""
    chance = random.Random(seed)
    own = tokens_of(pattern)
    pool = [*COMMON, *own]
    for unit in pool:
        yield from (("", unit, end) for end in ("\x00", '"x', "\n\x00"))
        yield chance.choice(["", *own, '"', "{", "<"]), unit, chance.choice(["", "x", *own])
    for _ in range(150):
        unit = "".join(chance.choices(pool, k=chance.randint(1, 3)))
        start = "".join(chance.choices(pool, k=chance.randint(0, 3)))
        yield start, unit, "".join(chance.choices([*pool, "\x00"], k=chance.randint(0, 2)))


def made(parts: tuple[str, str, str], length: int) -> str:
    start, unit, end = parts
    return start + unit * (length // len(unit) + 1) + end


def cpu_s(work: Callable[[], object]) -> float:
    began_s = time.thread_time()
    work()
    return time.thread_time() - began_s


def worst_growth(work: Callable[[str], object], parts: tuple[str, str, str], lengths: tuple[int, ...]) -> float:
    """The growth at the first length where it is too much; else at the last."""
    ratio = 0.0
    for length in lengths:
        ratio = growth(work, parts, length, SLOW_S)
        if ratio > MAX_RATIO:
            break
    return ratio


def growth(work: Callable[[str], object], parts: tuple[str, str, str], length: int, slow_s: float) -> float:
    """How many times longer four times the text takes; 0 where it is fast anyway. The best of up to five counts."""
    large, small = made(parts, 4 * length), made(parts, length)
    large_s, small_s = cpu_s(lambda: work(large)), math.inf
    if large_s < slow_s:
        return 0.0
    for _ in range(5):
        small_s = min(small_s, cpu_s(lambda: work(small)))
        if large_s < CLEARLY_LINEAR * small_s:
            break
        large_s = min(large_s, cpu_s(lambda: work(large)))
    return 0.0 if large_s < slow_s else large_s / small_s


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_linear(name: str) -> None:
    """As it is used: matched at a place, or searched for."""
    pattern = PATTERNS[name]
    short = name.rpartition(".")[2]
    work = (lambda text: sum(1 for _ in pattern.finditer(text))) if name in SEARCHED else pattern.match
    lengths: tuple[int, ...] = BOUNDED_LENGTHS if short in BOUNDED else LENGTHS
    if len(tokens_of(pattern)) > MANY_TOKENS:
        lengths = lengths[:2]
    slow = {
        parts: ratio
        for parts in texts_for(pattern, seed=len(name))
        if (ratio := worst_growth(work, parts, lengths)) > MAX_RATIO
    }
    assert slow == {}


def test_a_pattern_that_backtracks_is_found() -> None:
    """This test's own check: the hunt finds the pattern that once stalled the proxy."""
    tail = re.compile(r"(?:\s|```|[}\];])*(?:(?:\n|//|#)[^{}\[\]\"]*)?\Z")
    assert any(worst_growth(tail.match, parts, LENGTHS[:2]) > MAX_RATIO for parts in texts_for(tail, seed=1))


# -- whole forms -------------------------------------------------------------------------------------------

FORM_TOKENS = (
    *COMMON, "<|channel|>commentary to=functions.read_file",
    "<|message|>", "<|tool_call_begin|>", "<minimax:tool_call>", '<｜DSML｜invoke name="read_file">',
    "<read_file>", "<path>",
    "</path>", "read_file(", "path=", "<|tool_call>call:read_file{", '<|"|>', "[Calling tool: ", "<|tool_call_start|>[",
    "<TOOLCALL>[", "functools[", "<｜tool▁sep｜>", "```tool_code\n", "assistant", "analysis", "<|start|>", "</invoke>",
    "<tool_call>", "</tool_call>", "<function=read_file>", "</function>", "<parameter=path>", "</parameter>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "[TOOL_CALLS]", "[ARGS]", "read_file",
    '{"name": "read_file"',     '"arguments": {', '"path": ',
    "<|im_end|>", "<think>", "</think>", "~~~\n", "<|python_tag|>", "For example: ",
    '<invoke name="read_file">', '<parameter name="path">', "'a': 'b', ", '"b", ', "True", "None", "\\n", '\\"', "/* ",
)  # fmt: skip
USES: dict[str, Callable[[str, Budget], object]] = {
    "words": lambda text, budget: repair_reply(saying(text), FILES, budget),
    "arguments": lambda text, budget: repair_reply(calling("write_to_file", text), FILES, budget),
    "content": lambda text, budget: repair_reply(saying(text), JSON, budget),
    "history": lambda text, budget: repair_history({"messages": [calling("f", text)["choices"][0]["message"]]}, budget),
}
FORM_LENGTH = 10_000
FORM_SLOW_S = 0.5


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("seed", range(8))
def test_a_form_is_linear_even_without_a_budget(use: str, seed: int) -> None:
    """The budget would hide it, so there is plenty. 40 kB of anything take less than half a second, or four times as
    long as 10 kB."""
    chance = random.Random(seed)

    def work(text: str) -> object:
        return USES[use](text, Budget(base_s=60))

    for _ in range(25):
        parts = tuple("".join(chance.choices(FORM_TOKENS, k=chance.randint(1, 3))) for _ in range(3))
        assert growth(work, (parts[0], parts[1], parts[2]), FORM_LENGTH, FORM_SLOW_S) < MAX_RATIO, parts
