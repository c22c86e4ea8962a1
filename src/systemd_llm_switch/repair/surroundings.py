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
    r"|(?:format|form|syntax)(?: \w+){0,3} is|beispiel|z\.\s?b|sieht so aus|(?:par|voici un|un) exemple|exemple d"
    r"|comme ceci|ressemble à|(?:por|un) ejemplo|se ve así|(?:por|um) exemplo|(?:per|un) esempio|(?:bij)?voorbeeld"
    r"|(?:is|was|are|as) (?:only|just|merely|purely) an? (?:\w+ )?(?:illustration|example|sample|demonstration|sketch)"
    r"|not an? (?:real|actual|genuine) (?:tool |function )?call)\b"
    r"|例如|比如|示例|如下",
    re.I,
)
_EXAMPLE = re.compile(r"\W*(?:(?:only|just) )?(?:an? )?(?:example|sample|illustration)\b[^:]{0,60}+:\Z", re.I)
_TELLS_HOW = re.compile(r"\W*(?:(?:if|when|whenever) you\b|to call\b)", re.I)
_REPORTS = re.compile(
    r"\b(?:models?|parsers?|templates?|logs?|issues?|reply|replies|servers?|it|docs?|documentation|manuals?|readme|guides?"
    r"|specs?|reports?|tests?|users?|he|she|they|colleagues?|customers?)\b(?: \S+){0,2}?"
    r" (?:writes?|wrote|says?|said|shows?|prints?|printed|answers?|answered|emits?|emitted|outputs?|produce[sd]?"
    r"|return(?:s|ed)|generate[sd]|has|had|contain(?:s|ed)|expects?|expected|got|gets|sent|sends|gave|lists?|reads?|quotes?"
    r"|posted|pasted|reports?)"
    r"(?:(?: \w+){0,2}? (?:this|the following|such)\b[^:]{0,60})?:\Z",
    re.I,
)
"""What somebody else wrote comes next."""
_WRITTEN = r"(?:output|response|reply|replies|answer|message|text|completion)s?"
_SPOILT = r"(?:faulty|broken|failed|failing|malformed|invalid|wrong|offending|original|raw|leaked|erroneous)"
_TEXT = r"(?:calls?|requests?|texts?|tags?|json|xml|markup|blocks?|messages?)"
_SOURCE = (
    r"(?:logs?|docs|documentation|manual|readme|issue|report|transcript|trace|history|prompt|template|spec|ticket)"
)
_THE = r"(?:the|this|that|an?|its|my|your|our|his|her|their)"
_HERE = r"(?:here (?:is|are|was) )?"
_QUOTES = re.compile(
    rf"\b{_WRITTEN} (?:of|from|by) (?:(?:the|this|that|your|my|our|an?) )?(?:\S+ )?"
    r"(?:model|server|backend|parser|assistant|llm|agent|bot)s?\b[^:]{0,40}:\Z"
    r"|\b(?:raw|literal|verbatim|logged|printed|previous|earlier|model['’]s)\b"
    rf"(?: \S+){{0,3}}? {_WRITTEN}\b[^:]{{0,40}}:\Z"
    rf"|\b(?:{_WRITTEN}|log(?: line| entry)?|trace|transcript|dump) (?:was|were|reads?|said|had|contained|showed)\b"
    r"[^:]{0,40}:\Z"
    r"|\A\W*(?:(?:earlier|above|here|what|this is what|in your [^:]{1,40}),? )?you(?:['’]ve| have)? "
    r"(?:wrote|written|sent|pasted|posted|quoted|shared|typed)\b[^:]{0,60}:\Z"
    rf"|\A\W*(?:{_THE} )?(?!here|let|that|it|there|what|he|she)\w{{1,40}}['’]s(?: \S+){{0,3}}? {_WRITTEN}\b"
    r"[^:]{0,40}:\Z"
    r"|\b(?:would|should|could) have (?:been|looked|written|said)\b[^:]{0,40}:\Z"
    r"|\byou (?:should|would|might) (?:have )?(?:see|seen|get|got|find|found)\b[^:]{0,40}:\Z"
    r"|\b(?:parser|template|server|model|client|proxy|grammar)s?\b(?: \S+){0,2}? (?:choke|fail|stumble|break|crash"
    r"|reject|refuse|accept)\w{0,3} (?:on |at |for |with )?(?:this|the following|such|these)\b[^:]{0,40}:\Z"
    r"|\b(?:das modell|le modèle|el modelo|il modello|o modelo)\b[^:]{0,40}\b(?:schr[ei]|geschr|gab|gibt|sagt|antwort"
    r"|écri|répond|produi|escrib|respond|scri|escrev)\w{0,12}\b[^:]{0,20}:\Z"
    r"|\A\W*compare\b[^:]{0,40}:\Z"
    rf"|\A\W*{_HERE}{_THE} (?:\S+ ){{0,2}}?{_SPOILT} (?:\S+ ){{0,2}}?{_TEXT}\b[^:]{{0,40}}:\Z"
    rf"|\A\W*{_HERE}{_THE} (?:\S+ ){{0,2}}?{_TEXT} (?:that|which) (?!i\b|we\b|will\b)[^:]{{1,60}}:\Z"
    r"|\A\W*(?:(?:copy|copied|quoted?|excerpt|taken|pasted|here (?:is|are|was) [^:]{1,40}) )?(?:from|of|out of) "
    rf"{_THE} (?:\S+ )?{_SOURCE}\b[^:]{{0,20}}:\Z"
    r"|\A\W*(?:(?:then|and|now|please|just) )?(?:add|put|save|paste|copy|insert|append|include)\b[^:]{0,60}"
    r"\b(?:this|the following|these)\b[^:]{0,60}"
    r"\b(?:prompt|template|system message|settings|fixture|readme|issue|chat)\b[^:]{0,40}:\Z",
    re.I,
)
"""What was written before comes next."""
_LABEL = re.compile(
    r"\W*(?:(?:option|variant|alternative|version|choice|case|form|style) (?:\d{1,2}|[a-z])|before|after|wrong|correct"
    r"|incorrect|bad|old|new|expected|actual|instead of|rather than)"
    r"(?: \([^()]{0,40}\)| (?:format|form|call|version|text|output|reply|style))?\W*:\W*\Z",
    re.I,
)
"""One of several that are compared comes next."""
_BETWEEN = re.compile(r"\W*(?:versus|vs|or|compared (?:to|with))\W*\Z", re.I)
_REFUSES = re.compile(
    r"\b(?:i|we) (?:did not|didn['’]t|will not|won['’]t|would not|wouldn['’]t|cannot|can['’]t|must not|refuse to) "
    r"(?:actually )?(?:run|execute|call|make|send|perform|use)\b[^:]{0,60}:\Z"
    r"|\bif\b[^:]{1,80}\b(?:i|we) (?:would|could|might) (?:\w+ ){0,2}?(?:run|execute|call|make|send|use|write|do)\b"
    r"[^:]{0,60}:\Z",
    re.I,
)
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
_WAS_WRITTEN = re.compile(rf"\b(?:this|that) (?:is|was) (?:all|what|its|{_THE})\b.{{0,40}}\b{_WRITTEN}\b", re.I)
_EXPLAINED = re.compile(r"\b(?:this|that|above|shown)\b.{0,80}\b(?:is|was|are|shows?|would|example|format|how)\b", re.I)
_IT = r"(?: (?:this|that|it|them|these|those|one of|the (?:call|command|following|above))\b)"
_DO = r"(?:run|execute|call|make|send|do|proceed with|go ahead with)"
_WHICH = r"which (?:(?:one|of|option|version|variant|call|form)\b|[^?]{0,40}do you (?:prefer|want))"
_ASKS = re.compile(
    rf"\b(?:(?:should|shall|may|can) (?:i|we) {_DO}{_IT}|want me to {_DO}{_IT}|{_WHICH}"
    r"|is (?:this|that) (?:what|the (?:call|command|one)|ok|okay|right|correct)\b)[^?]{0,120}+\?"
    r"|\b(?:should|shall) (?:i|we) (?:proceed|go ahead)\?",
    re.I,
)
"""The reader is asked whether the call should be made, or which."""
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
    if _BETWEEN.match(sentence):
        return True
    if leads and (_REFUSES.search(sentence) or _LABEL.match(sentence) or _quotes(sentence)):
        return True
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


def _quotes(sentence: str) -> bool:
    return _QUOTES.search(sentence) is not None and _INTENDS.search(sentence) is None


def intends(line: str) -> bool:
    """Whether an unfinished sentence on the call's own line says that somebody is about to act."""
    sentences = [found[0].strip() for found in _SENTENCE.finditer(line[-_MAX_WORDS:]) if found[0].strip()]
    if _INTERJECTION.fullmatch(line):
        return True
    return bool(sentences) and _verdict(sentences[-1]) is False and _INTENDS.search(sentences[-1]) is not None


def explains(after: str) -> bool:
    """Whether the words behind a call explain it."""
    line = after.lstrip().partition("\n")[0][:_MAX_AFTER]
    if _GOES_ON.match(line) or _ASKS.search(line):
        return True
    if not _EXPLAINED.search(line) or _INTENDS.search(line) or _WILL.search(line):
        return False
    is_about = _ABOUT_CALLS.search(line) or _ABOUT_FORMS.search(line) or _EXPLAINS.search(line)
    return bool(is_about or _WAS_WRITTEN.search(line))
