"""Tool calls that a model left in its text: which of them are meant, and the text without them.

A call is believed only where a model that calls would write it: at the start of a line, outside of code, quotes and
thoughts, not announced as an example; and only if it names a tool of the request and fits its schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .arguments import has_all_needed, mend_arguments
from .calls import Call, known_name, new_call_id
from .leaks import MARKER, Leak, LeakedCall, read_bare, read_marked
from .model import Repair, RequestFacts
from .schema import declared_names

_HINTS = ("<", "[TOOL_CALLS]", "{", "```")
_PLACE = re.compile(rf"```|`|<think>|{MARKER.pattern}")
_END_TOKENS = re.compile(r"(?:\s|<\|(?:im_end|eot_id|eom_id|end_of_text|endoftext)\|>|</s>)+\Z")
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(?P<inside>.*?)\n?[ \t]*(?:```|\Z)", re.DOTALL)
_CUE = re.compile(
    r"\b(?:examples?|e\.g|for instance|such as|looks? like|like (?:this|so)|formats?|formatted|syntax|templates?|samples?"
    r"|(?:would|could|might|should|can|may) (?:be|look|call|use|write|send|emit|output|have)|you (?:can|could|would|should|may|must)"
    r"|demonstrat\w*|illustrat\w*|hypothetical\w*|instead of|suppose|imagine|don't|do not|never)\b",
    re.IGNORECASE,
)
_CUE_AFTER = re.compile(r"\b(?:th(?:is|at)|above|shown|here)\b.*\b(?:is|was|are|shows?|would|example|format|how)\b", re.IGNORECASE)
_SENTENCE_END = (".", "!", "?", ":", "…")
_WRAPPER_NAMES = frozenset({"name", "function", "type", "id", "arguments", "parameters", "args", "input", "toolcalls"})


def rescue_calls(
    content: str, facts: RequestFacts, *, truncated: bool = False
) -> tuple[str | None, list[Call], tuple[Repair, ...]]:
    """The text that stays (None: nothing), the calls that were in it, and what was mended.

    Without any call the text is the identical string. `truncated` says that the model was stopped: a call whose last
    value may not be whole is then not believed. Never raises.
    """
    if not facts.rescue or not facts.tools or not any(hint in content for hint in _HINTS):
        return content, [], ()
    try:
        return _Rescue(content, facts, truncated).outcome()
    except (ValueError, RecursionError):
        return content, [], ()


class _Rescue:
    def __init__(self, content: str, facts: RequestFacts, truncated: bool) -> None:
        self.facts = facts
        self.truncated = truncated
        self.content = content
        ending = _END_TOKENS.search(content)
        self.text = content[: ending.start()] if ending else content
        self.names = _WRAPPER_NAMES.union(*map(declared_names, facts.tools.values()))

    def outcome(self) -> tuple[str | None, list[Call], tuple[Repair, ...]]:
        calls: list[Call] = []
        repairs: list[Repair] = []
        kept: list[str] = []
        at = 0
        for leak in [*self.lone(), *self.marked()]:
            made = [self.call(leaked) for leaked in leak.calls]
            if leak.start < at or not all(made):
                continue
            for call, found in filter(None, made):
                calls.append(call)
                repairs.extend(found)
            kept.append(self.text[at : leak.start].rstrip())
            at = leak.end
        if not calls:
            return self.content, [], ()
        kept.append(self.text[at:].rstrip())
        return "".join(kept).strip("\n") or None, calls, tuple(repairs)

    # -- where ---------------------------------------------------------------------------------------------

    def lone(self) -> Iterator[Leak]:
        """The whole answer is one call, or a fenced block that is."""
        start = self.answer_start()
        start += len(self.text[start:]) - len(self.text[start:].lstrip())
        fence = _FENCE.match(self.text, start)
        if fence and fence.end() == len(self.text):
            inside = fence["inside"].strip()
            marker = MARKER.match(inside)
            leak = read_marked(inside, marker, self.names) if marker else read_bare(inside, 0, self.names)
            if leak and leak.end == len(inside):
                yield Leak(start, len(self.text), leak.calls)
        elif self.text[start : start + 1] in ("{", "["):
            leak = read_bare(self.text, start, self.names)
            if leak and leak.end == len(self.text):
                yield leak

    def marked(self) -> Iterator[Leak]:
        """Leaks with a mark, where they are not quoted."""
        at = self.answer_start()
        last_end = -1
        while place := _PLACE.search(self.text, at):
            if place[0] in ("`", "```", "<think>"):
                at = self.quote_end(place)
                continue
            marker = MARKER.match(self.text, place.start())
            leak = read_marked(self.text, marker, self.names) if marker else None
            if leak is None:
                at = place.end()
                continue
            at = leak.end
            if (not self.text[max(last_end, 0) : leak.start].strip() and last_end >= 0) or not self.is_quoted(leak):
                last_end = leak.end
                yield leak

    def answer_start(self) -> int:
        """Behind the thoughts, where a template began them and the model only ended them."""
        end = self.text.find("</think>")
        return end + len("</think>") if end >= 0 and "<think>" not in self.text[:end] else 0

    def quote_end(self, place: re.Match[str]) -> int:
        """Where the code or the thought that starts here ends."""
        opener = place[0]
        closer = "</think>" if opener == "<think>" else opener
        end = self.text.find(closer, place.end())
        if opener == "`" and (end < 0 or "\n" in self.text[place.end() : end]):
            return place.end()
        return end + len(closer) if end >= 0 else len(self.text)

    def is_quoted(self, leak: Leak) -> bool:
        """Whether the text around presents the call instead of making it."""
        before, after = self.text[: leak.start], self.text[leak.end :]
        same_line = before.rpartition("\\n")[2].rpartition("\n")[2]
        if same_line.strip():
            if after.strip() or not same_line.rstrip().endswith(_SENTENCE_END):
                return True
        elif before.strip() and (len(same_line) >= 4 or "\t" in same_line):
            return True
        last_line = before.rstrip().rpartition("\n")[2]
        next_line = after.lstrip().partition("\n")[0]
        is_directly_followed = bool(after.strip()) and not after.lstrip(" \t").startswith(("\n", "<", "["))
        return bool(_CUE.search(last_line)) or is_directly_followed or bool(_CUE_AFTER.search(next_line))

    # -- which ---------------------------------------------------------------------------------------------

    def call(self, leaked: LeakedCall) -> tuple[Call, tuple[Repair, ...]] | None:
        """The call in the form of the API, if it names a tool and fits it."""
        name = known_name(leaked.name, self.facts.tools)
        if name is None or (self.truncated and leaked.is_cut):
            return None
        schema = self.facts.tools[name]
        mended = mend_arguments(leaked.arguments, schema, truncated=self.truncated)
        if not mended.is_sound or (self.truncated and leaked.is_open and not has_all_needed(mended.text, schema)):
            return None
        call: Call = {
            "id": new_call_id(),
            "type": "function",
            "function": {"name": name, "arguments": mended.text},
        }
        return call, (Repair("rescued_call", name), *(Repair(kind, name) for kind in mended.kinds))
