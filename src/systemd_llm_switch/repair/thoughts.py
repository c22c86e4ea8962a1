"""Separates the thoughts that a backend left in the content from the answer.

Owns the tokens around thoughts. A backend whose template is another one than the model's does not split them off, and a
template that starts the thought itself leaves an end tag without a start.
"""

from __future__ import annotations

import re

THOUGHTS_START = "<think>"
THOUGHTS_END = "</think>"
_PAIRS = (
    (THOUGHTS_START, THOUGHTS_END),  # Qwen 3, DeepSeek R1, GLM 4.5, MiniMax M2, Nemotron
    ("<thinking>", "</thinking>"),
    ("<mm:think>", "</mm:think>"),  # MiniMax M3
    ("<think:opensource>", "</think:opensource>"),  # Hunyuan 3
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
)
_START_OF = {end: start for start, end in _PAIRS}
_ENDS = tuple(_START_OF)
_ANSWER_TAGS = ("<|open|>response<|sep|>", "<|close|>response<|sep|>")
"""Around the answer, in Kimi K3's replies."""
_STARTS = (*(start for start, _ in _PAIRS), _ANSWER_TAGS[0], "<|channel|>", "<|start|>")
_MARKS = (*_STARTS, *_ENDS)
_SENTENCE_START = r"[^\sa-z\d.,:;!?<>()\[\]_/-]"
_WORD_START = re.compile(rf"analysis(?:{_SENTENCE_START}|\Z)")
_STRAY_END = re.compile(r"</(?:seed:|mm:)?think(?:ing|:opensource)?>|<\|close\|>think<\|sep\|>")
_NAMED = re.compile(
    r"[ \t]*+(?:[,.;:)](?=\s)|(?:is|are|was|were|and|or|tags?|tokens?|blocks?|starts?|begins?|ends?|opens?|closes?"
    r"|marks?|means|stands?|must|should|can|may|in|at|as|of)(?=[\s,.]))"
)
"""What follows on a tag in a sentence about it. Thoughts do not start so."""
_END_AND_A_WORD = re.compile(rf"(?:{_STRAY_END.pattern})[ \t]*+(?:[a-z]{{0,8}}+|[,.;:)])\Z")
_CALL_START = re.compile(
    r"\A\s*+[{\[]|\[TOOL_CALLS\]|(?:(?<=\n)|\A)[ \t]*+"
    r"<(?:tool_call|function[= ]|invoke |param|(?>[a-z]{2,9}+:)(?:tool_call|param|invoke)|arg_|[|｜]"
    r"|(?P<element>[A-Za-z][\w-]{0,98}+)>\s*+<[A-Za-z])"
    r"|(?:(?<=\n)|\A)[ \t]*+call:[\w.:-]{1,99}+[ \t]*+[{(]|\A\s*+[\w.-]{1,99}+\{"
    r"|\nAction Input:|<\|tool_call_argument_begin\|>|\[ARGS\]"
)
_CALL_END = re.compile(
    r"</(?:tool_call|function|invoke|(?>[a-z]{2,9}+:)tool_call)>|<\|(?:call|end|tool_call_end)\|>|<tool_call\|>"
)
_CHANNEL = re.compile(
    r"(?>(?:<\|start\|>)?)(?>(?:assistant)?)<\|channel\|>(?P<name>[a-z]{1,20}+)(?P<header>[^<\n]{0,80}+"
    r"(?>(?:<\|constrain\|>[a-z]{0,20}+)?))<\|message\|>"
)
_CHANNEL_END = re.compile(r"<\|(?:end|return|call)\|>|(?=<\|(?:start|channel)\|>)")
_STRIPPED = re.compile(
    rf"analysis(?P<thought>{_SENTENCE_START}.*?)assistant(?=final|commentary to=)(?:final)?", re.DOTALL
)
# One of these is in everything that ends thoughts, at most so many characters before its end.
_IN_END = re.compile(r"[<\[]|assistant")
_LONGEST_END = 64
# All that thoughts can begin with; "" is a content without a word. Nearly all contents begin with something else.
_FIRST = ("<", "[", "a", "")
_MAX_BLOCKS = 64


def may_be_thoughts(begun: str) -> bool:
    """Whether an answer that begins so may begin with thoughts."""
    body = begun.lstrip()
    if not body or "analysis".startswith(body) or _WORD_START.match(body):
        return True
    return any(mark.startswith(body[: len(mark)]) for mark in _MARKS)


def may_end_thoughts(text: str, since: int) -> bool:
    """Whether thoughts that went on at length `since` of the text may have ended by now. Much cheaper than to split."""
    return _IN_END.search(text, max(0, since - _LONGEST_END)) is not None


def is_thoughts_start(begun: str) -> bool:
    """Whether a text is only a prefix of what starts thoughts (also gpt-oss's, without its special tokens)."""
    body = begun.lstrip()
    is_prefix = any(mark.startswith(body) for mark in (*_MARKS, "analysis"))
    return is_prefix or _WORD_START.match(body) is not None


def is_end_unsettled(begun: str) -> bool:
    """Whether a text is an end tag, and at most a word that may begin a sentence about the tag."""
    return _END_AND_A_WORD.match(begun.lstrip()) is not None


def split_thoughts(content: str) -> tuple[str, str]:
    """The thoughts in a content (empty: none), and the answer; the identical content if there are none."""
    if "think" not in content and content.lstrip()[:1] not in _FIRST:
        return "", content
    blocks: list[str] = []
    answer = content
    for _ in range(_MAX_BLOCKS):
        split = _block(answer)
        if split is None:
            break
        blocks.append(split[0].strip())
        answer = split[1].lstrip()
    if not blocks and (stray := _stray_end(content)) is not None:
        blocks, answer = [content[: stray.start()].strip()], _without_answer_tags(content[stray.end() :].lstrip())
    return "\n".join(filter(None, blocks)), answer


def _block(text: str) -> tuple[str, str] | None:
    """A block of thoughts that a text starts with, and the rest; without an end all of it is one."""
    body = text.lstrip()
    for start, end in _PAIRS:
        if body.startswith(start) and not _NAMED.match(body, len(start)):
            thought, _, rest = body.removeprefix(start).partition(end)
            return thought, rest
    if stripped := _STRIPPED.match(body):
        return stripped["thought"], body[stripped.end() :]
    if body.startswith(_ANSWER_TAGS[0]):
        return "", _without_answer_tags(body)
    return _channels(body)


def split_channels(text: str) -> str:
    """What is behind a call, without the marks and the thoughts of a channel."""
    found = _channels(text.lstrip())
    return text if found is None else found[1]


def _without_answer_tags(text: str) -> str:
    opening, closing = _ANSWER_TAGS
    if not text.startswith(opening):
        return text
    answer, _, rest = text.removeprefix(opening).partition(closing)
    return answer + rest


def _channels(text: str) -> tuple[str, str] | None:
    """The messages of gpt-oss: `analysis` is a thought, `final` and a preamble are text; a call stays as it is."""
    thoughts: list[str] = []
    answer: list[str] = []
    at = 0
    while (channel := _CHANNEL.match(text, at)) and "to=" not in channel["header"]:
        if _NAMED.match(text, channel.end()):
            break
        end = _CHANNEL_END.search(text, channel.end())
        body = text[channel.end() : end.start() if end else len(text)]
        (thoughts if channel["name"] == "analysis" else answer).append(body)
        at = end.end() if end else len(text)
    if at == 0:
        return None
    return "\n".join(thoughts), "\n".join(filter(None, [*answer, text[at:]]))


def is_in_call(before: str) -> bool:
    """Whether a text ends within a tool call: an end tag that follows belongs to the call, such as a file's."""
    at = 0
    while call := _CALL_START.search(before, at):
        if call["element"]:
            closing = f"</{call['element']}>"
            end = before.find(closing, call.end())
            at = end + len(closing)
        else:
            closed = _CALL_END.search(before, call.end())
            end, at = (closed.start(), closed.end()) if closed else (-1, -1)
        if end < 0:
            return True
    return False


def _stray_end(content: str) -> re.Match[str] | None:
    """The end tag of a thought that the template began: at a line's start or end, outside of code and calls."""
    end = _STRAY_END.search(content)
    if end is None:
        return None
    before = content[: end.start()]
    if (
        _NAMED.match(content, end.end())
        or THOUGHTS_START in before
        or _START_OF.get(end[0], THOUGHTS_START) in before
        or is_in_call(before)
    ):
        return None
    line = before[before.rfind("\n") + 1 :]
    is_at_line_start = not line.strip()
    is_at_line_end = content[end.end() : end.end() + 1] in ("", "\n")
    is_in_code = before.count("```") % 2 == 1 or before.count("~~~") % 2 == 1 or line.count("`") % 2 == 1
    return end if (is_at_line_start or is_at_line_end) and not is_in_code else None
