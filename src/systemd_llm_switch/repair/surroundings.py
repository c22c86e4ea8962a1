"""Judges the words around a call in the text: do they make the call, or show it to a reader?

Owns the phrases that tell one from the other. The words of a model that acts ("Let me check the format:") and of one
that explains ("The format is:") share their nouns, so it is the verb that decides, sentence by sentence.
"""

from __future__ import annotations

import re

_MAX_WORDS = 500
_MAX_AFTER = 400
_MAX_SENTENCES = 8
_SENTENCE = re.compile(r"[^.!?。！？]*+(?>(?:[.!?。！？]++(?!\s|\Z)[^.!?。！？]*+)*)[.!?。！？]*+")
_NOT_YET = r"(?!would|could|might|do not|don't|never)"
_INTENDS = re.compile(
    r"\b(?:let me|let's|let us|going to|(?:i|we)(?:'ll|’ll|'m|’m|'re|’re| am| are| will| need to| should| must| have to"
    r"| want to| would need to| can now)(?! (?:not|never)\b))\b"
    rf"|\b(?:so|and|then|first|next|now|therefore|,) i (?:now |will )?{_NOT_YET}[a-z]+\b"
    rf"|\A\W*(?:now )?i {_NOT_YET}[a-z]+\b",
    re.I,
)
"""What somebody says who is about to act."""
_CONDITION = re.compile(r"\A\W*(?:if|when|whenever|as soon as|to call)\b", re.I)
_SHOWS = re.compile(
    r"\b(?:show|explain|illustrat|demonstrat|looks? (?:like|as)|like (?:this|so)\b|quote|cite|such as\b"
    r"|(?:an?|the|one|following) example (?:of|call)|(?:example|sample) (?:tool |function )?call)",
    re.I,
)
_OF_FORM = re.compile(r"\b(?:calls?|formats?|syntax|tags?|xml)\b", re.I)
_PRESENTS = re.compile(
    r"\b(?:for (?:example|instance)|e\.g|such as|like (?:this|so)|looks? as follows|(?:an?|following) example"
    r"|(?:format|form|syntax)(?: \w+){0,3} is|beispiel|z\.\s?b|par exemple|por ejemplo)\b|例如|比如|示例|如下",
    re.I,
)
_EXAMPLE = re.compile(r"\W*(?:an? )?(?:example|sample)\b[^:]{0,60}+:\Z", re.I)
_TELLS_HOW = re.compile(r"\W*(?:(?:if|when|whenever) you\b|to call\b)", re.I)
_REPORTS = re.compile(
    r"\b(?:models?|parsers?|templates?|logs?|issues?|reply|replies|servers?|it)\b(?: \S+){0,2}?"
    r" (?:writes?|wrote|says?|said|shows?|prints?|printed|answers?|answered|emits?|emitted|outputs?|produce[sd]?"
    r"|return(?:s|ed)|generate[sd]|has|had|contain(?:s|ed))"
    r"(?:(?: \w+){0,2}? (?:this|the following|such)\b[^:]{0,60})?:\Z",
    re.I,
)
"""What somebody else wrote comes next."""
_GOES_ON = re.compile(r"(?:which|is|are|was|as (?:the|in|shown)|so (?:the|that))\b|[,;.](?=\s|\Z)")
"""The sentence that the call is part of goes on behind it."""
_FORBIDS = re.compile(r"\b(?:never|do not|don't|must not|avoid)\b", re.I)
_ABOUT_CALLS = re.compile(r"\b(?:tool|function)s?\b|\bcalls?\b|\b(?:xml|json|tag|block)\b", re.I)
_ABOUT_FORMS = re.compile(r"\b(?:parsers?|templates?|models?|prompts?|formats?|syntax|texts?|traces?|logs?)\b", re.I)
"""Nouns of an explanation, too, but only where a colon leads to what it explains."""
_EXPLAINS = re.compile(
    r"\b(?:looks? like|format(?:ted)?|syntax|form of|written as|as follows|in this form|example|sample|placeholder)\b",
    re.I,
)
_SUPPOSES = re.compile(r"\b(?:would|could|might|should|can|may|must|instead of|you (?:can|must|may|need))\b", re.I)
_LEADS_TO_TEXT = re.compile(
    r"\b(?<!be )(?:as|like|with|be|is|so|say|write|emit|output|send|produce|generate|look|read|accept|take):?\Z"
    r"|\bfollowing\b"
    r"|\b(?:this|the|an?) (?:text|call|form|format|line|block|tag)(?: \w+){0,2}:?\Z",
    re.I,
)
_ACTS = re.compile(r"\W*(?!(?:during|nothing|something|everything|string|following)\b)[a-z]{2,}+(?<=ing)\b", re.I)
"""The sentence of somebody who reports what is being done: "Checking the format"."""
_SPEAKS_OF_ITSELF = re.compile(r"\b(?:i|my|me|sorry|apolog\w+)\b", re.I)
_EXPLAINED = re.compile(r"\b(?:this|that|above|shown)\b.{0,80}\b(?:is|was|are|shows?|would|example|format|how)\b", re.I)
_INTERJECTION = re.compile(
    r"\W*(?:okay|ok|sure|alright|all right|great|right|yes|well|perfect|understood|got it)\W*", re.I
)
_WILL = re.compile(r"\bwill (?!be\b)", re.I)
_THOUGHT_LINE = re.compile(r"(?:\n|\A)Thought:[^\n]*+\Z")


def presents(before: str) -> bool:
    """Whether the words before a call present it as an example, or explain its form."""
    line = _last_line(before)
    if _THOUGHT_LINE.match(line):  # part of the trace that is shown or made
        line = _last_line(before.rstrip().removesuffix(line))
    sentences = [found[0].strip() for found in _SENTENCE.finditer(line) if found[0].strip()]
    for sentence in reversed(sentences[-_MAX_SENTENCES:]):
        verdict = _verdict(sentence)
        if verdict is not None:
            return verdict
    return False


def _last_line(before: str) -> str:
    return before[-_MAX_WORDS:].rstrip().rpartition("\n")[2]


def _verdict(sentence: str) -> bool | None:
    """Whether a sentence presents what follows; None if it says nothing of that."""
    is_about = _ABOUT_CALLS.search(sentence) is not None
    leads = sentence.endswith((":", "："))
    speaks_of_itself = _SPEAKS_OF_ITSELF.search(sentence) is not None
    if _INTENDS.search(sentence) and not _CONDITION.match(sentence):
        if _SHOWS.search(sentence):
            return True if _OF_FORM.search(sentence) or _PRESENTS.search(sentence) else None
        return bool((is_about or leads) and _PRESENTS.search(sentence))
    if _PRESENTS.search(sentence) or _EXAMPLE.match(sentence) or _REPORTS.search(sentence):
        return True
    if leads and ((_FORBIDS.search(sentence) and not speaks_of_itself) or (is_about and _TELLS_HOW.match(sentence))):
        return True
    if (is_about or (leads and _ABOUT_FORMS.search(sentence))) and not _ACTS.match(sentence):
        is_supposed = _SUPPOSES.search(sentence) or _FORBIDS.search(sentence)
        if (is_supposed and _LEADS_TO_TEXT.search(sentence)) or _EXPLAINS.search(sentence):
            return True
    return False if speaks_of_itself else None


def intends(line: str) -> bool:
    """Whether an unfinished sentence on the call's own line says that somebody is about to act."""
    sentences = [found[0].strip() for found in _SENTENCE.finditer(line[-_MAX_WORDS:]) if found[0].strip()]
    if _INTERJECTION.fullmatch(line):
        return True
    return bool(sentences) and _verdict(sentences[-1]) is False and _INTENDS.search(sentences[-1]) is not None


def explains(after: str) -> bool:
    """Whether the words behind a call explain it."""
    line = after.lstrip().partition("\n")[0][:_MAX_AFTER]
    if _GOES_ON.match(line):
        return True
    if not _EXPLAINED.search(line) or _INTENDS.search(line) or _WILL.search(line):
        return False
    return bool(_ABOUT_CALLS.search(line) or _ABOUT_FORMS.search(line) or _EXPLAINS.search(line))
