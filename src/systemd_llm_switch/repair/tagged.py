"""Reads the arguments of a leaked call that stand in tags: one reader for each kind of tag."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from .stray_tags import has_stray_tags
from .strings import SPACE
from .text import decode, encode
from .written import NOTHING, Found, LeakedCall, Source, json_behind_name

TAG_PREFIX = r"(?>(?:[｜|‖]{1,2}+DSML[｜|‖]{1,2}+ ?+|[a-z]{2,9}+:)?)"
"""What may stand before the names of tags: DeepSeek's token, also misspelled, or a namespace (`antml:`, `steptml:`)."""
DECORATED = r"(?>(?:(?!arg_|tool_)[a-z]{2,9}[_|:])?)", r"(?>(?::opensource)?)"
"""What models put before and behind the names of their tags: `longcat_`, `ifm|`, `:opensource`."""
_TAG = rf"< ?+{TAG_PREFIX}"
_END_TAG = rf"</{TAG_PREFIX}"
_M3_TOKEN = "]<]minimax[>["
_SPACE_TAG = r"(?>(?:\]<\]minimax\[>\[)?)"
_CALL_END = r"</(?:invoke|function)>"
_PARAMETER = re.compile(
    rf"\s*+{_TAG}param(?>(?:eter)?)(?:\s{{0,3}}+=\s{{0,3}}+|(?P<attribute>\s{{1,9}}+name=))[\"']?(?P<name>[^\s\"'<>]{{1,99}}+)[\"']?"
    r"(?>(?:\s++string=[\"'](?P<string>true|false)[\"'])?)(?>(?:\s++type=[\"'][^\"'<>\n]{0,40}+[\"'])?)\s*+>"
)
_END_OF_PARAMETER = rf"{_END_TAG}param(?>(?:eter)?)(?>(?:=[^<>\n]{{1,99}}+)?)>"
_PARAMETER_START = rf"{_TAG}param(?:eter)?(?:=|\s)"
_PARAMETER_END = re.compile(
    rf"{_END_OF_PARAMETER}(?=\s*+(?:{_END_TAG}param(?:eter)?[=>]|{_PARAMETER_START}"
    rf"|{_TAG}(?:invoke|function)(?:=|\s)|{_END_TAG}(?:function|inv(?:oke)?|parameters|tool|tool_use)[=>]|</?(?:[\w.-]{{1,20}}+:)?tool_calls?>|<[|｜‖]|</[|｜‖]"
    r"|(?:</[\w:]{0,20})?\Z))"
    rf"|(?=\n{_PARAMETER_START}|\n{_END_TAG}function[=>]|\n{_END_TAG}inv(?:oke)?>|\n</tool_call>)"
)
_PARAMETER_ENDS = re.compile(rf"(?>(?:\s*+{_END_OF_PARAMETER})*)")
_TAGS = re.compile(
    rf"(?P<opening>{_TAG}(?:(?:function|invoke)(?>(?:(?:=|\s{{1,9}}+name=)[^<>\n]{{1,120}}+)?)>|tool_call>"
    r"|(?P<started>param(?>(?:eter)?))"
    r"(?>(?:(?:=|\s{1,9}+name=)[\"']?(?P<name>[^\s\"'<>]{1,99}+)[^<>\n]{0,60}+)?)>))"
    rf"|{_END_TAG}(?:function|inv(?>(?:oke)?)|tool_call|(?P<ended>param(?>(?:eter)?)))(?>(?:=[^<>\n]{{1,99}}+)?)>"
)
_CUT_END = r"(?:</[\w.-]{0,99}+)?\Z"
"""The text's end, maybe within an end tag."""
_CDATA = "<![CDATA[", "]]>"
_CUT_TAG = re.compile(
    r"(?>(?:\n</(?:[a-z]{2,9}:|[｜|‖]{1,2}DSML[｜|‖]{1,2} ?)?(?:tool_calls?|function_calls?|function|invoke)>)*)"
    r"(?>(?:\n</[a-z]{0,20})?)\s*+\Z"
)
"""End tags of the call behind a value without its own, the last one maybe cut."""
_LONGEST_ENDS = 200
ARG_KEY, ARG_VALUE = (f"{DECORATED[0]}{name}{DECORATED[1]}>" for name in ("arg_key", "arg_value"))
_PAIR = re.compile(
    rf"\s*+(?>(?:<(?:{ARG_KEY}|tool_call>)\s*+)*)(?P<name>[^<\n]{{1,99}}+)\s*+(?>(?:</{ARG_KEY}\s*+)+)"
    rf"(?>(?:<{DECORATED[0]}arg_type[^<>]{{0,20}}+>[^<]{{0,40}}+</[^<>]{{0,40}}+>\s*+)?)(?>(?:<{ARG_VALUE}(?>(?:\s*+(?=<{ARG_VALUE}))?))*)(?P<value>.*?)"
    rf"(?:</{ARG_VALUE}(?>(?:\s*+</{ARG_VALUE})*)|</{ARG_KEY}\s*+(?=<{ARG_KEY}|</tool_call>\s*+\Z)"
    rf"|(?=(?>(?:</{DECORATED[0]}tool_call{DECORATED[1]}>\s*+)+)\Z))", re.S
)  # fmt: skip
_PAIR_WITHOUT_KEY_END = re.compile(
    rf"\s*+<{ARG_KEY}\s*+(?P<name>[^<\n]{{1,99}}+)\s*+(?>(?:<{ARG_VALUE}(?>(?:\s*+(?=<{ARG_VALUE}))?))+)(?P<value>.*?)</{ARG_VALUE}",
    re.S,
)
_NEXT_PAIR = re.compile(rf"\n?<{ARG_KEY}\s*+(?P<name>[\w.-]{{1,99}}+)\s*+</{ARG_KEY}\s*+<{ARG_VALUE}")
_NEXT_CALL = re.compile(rf"</tool_call>\s*+(?=<tool_call>\s*+(?P<tool>[\w.:-]{{1,99}}+)\s*+<{ARG_KEY})")
_END_OF_VALUE_OR_CALL = re.compile(rf"</(?:{ARG_VALUE}|{DECORATED[0]}tool_call{DECORATED[1]}>)")
_VALUE_OPEN = re.compile(f"<{ARG_VALUE}")
_VALUE_END = re.compile(f"</{ARG_VALUE}")
_PAIR_OPEN = re.compile(rf"\s*+<{DECORATED[0]}arg_")
_TYPED = re.compile(
    r"\s*+<\|open\|>argument key=\"(?P<name>[^\"<>\n]{1,99}+)\"(?>(?:\s++type=\"(?P<type>\w{1,20}+)\")?)[^<>\n]{0,99}+"
    r"<\|sep\|>(?P<value>.*?)<\|close\|>argument<\|sep\|>", re.S
)  # fmt: skip
_TYPED_OPEN = re.compile(r"\s*+<\|open\|>argument ")
_WRAPPER = re.compile(r"\s*+<(args|arguments|parameters|params|input|file)>")
_MAX_DEPTH = 64
"""Tags that are open at once. No document needs more, and each value of a model in a loop would be read to the end."""


# -- <parameter=p>value</parameter> ------------------------------------------------------------------------


def parameters(source: Source, name: str, start: int) -> Found:
    """Parameters in tags, or JSON between the call's own tags."""
    text = source.text
    start, _ = _behind_wrappers(source, name, start)
    json_start = source.skip(start)
    if text[json_start : json_start + 1] == "{":
        calls, end = json_behind_name(source, name, json_start)
        return calls, end + text.startswith(">", end)  # the call's own tag, if it ends behind the object
    declared = source.members(name)
    within, at = _elements(source, name, start, _CALL_END)
    if within:
        return [LeakedCall(name, encode(within), is_open=True)], at
    values: dict[str, object] = {}
    at, is_cut, own = start, False, "="
    while not is_cut and (parameter := _PARAMETER.match(text, at)):
        source.budget.check()
        raw, at, is_cut = _parameter_value(text, parameter, declared, values)
        values[parameter["name"]] = _as_declared(raw, parameter["string"])
        own = " " if parameter["attribute"] else "="
    if text.startswith("<param", source.skip(at)) and ">" not in text[at:]:
        at, is_cut = len(text), True
    if not is_cut and has_stray_tags(values.values(), own):  # a cut value may be all the rest of a long text
        return NOTHING
    return [LeakedCall(name, encode(values), is_open=True, is_cut=is_cut)], at


def _parameter_value(
    text: str, opening: re.Match[str], declared: Collection[str], given: Collection[str]
) -> tuple[str, int, bool]:
    """A value, where reading goes on, and whether the text ends within it.

    Templates with `name=` put no newlines around a value: one at its end is then its own, unless the end tag is
    doubled, or models put one at each end. Where DeepSeek says that a value is a string, all of it is the value.
    """
    start = opening.end()
    end = _nested_end(text, start, declared, given)
    if end < 0:
        plain = _PARAMETER_END.search(text, start)
        if plain is None:
            ends = _CUT_TAG.search(text, max(start, len(text) - _LONGEST_ENDS))
            return _value(text[start : ends.start() if ends else len(text)]), len(text), True
        end = plain.start()
    behind = _behind_ends(text, end)
    raw = text[start:end]
    if behind == end:
        raw = _without_wrong_end(_within_itself(raw, opening["name"]), opening["name"])
    is_bare = opening["string"] or not raw.startswith(("\n", _CDATA[0]))
    is_own = opening["attribute"] and is_bare and text.count("</", end, behind) < 2
    return raw if is_own else _value(raw), behind, False


def _within_itself(raw: str, name: str) -> str:
    """The value within a parameter of the same name: the start tag was doubled, and the end tag is the outer one's."""
    inner = _PARAMETER.match(raw)
    body = raw.rstrip()
    end = body.rfind("</")
    if inner and inner["name"] == name and re.fullmatch(_END_OF_PARAMETER, body[max(end, 0) :]):
        return body[inner.end() : end]
    return raw


def _without_wrong_end(raw: str, name: str) -> str:
    """A value without the end tag of an element with the parameter's name, which stands there for its own."""
    body, closing = raw.rstrip(), f"</{name}>"
    return body.removesuffix(closing) if body.endswith(closing) and f"<{name}" not in raw else raw


def _nested_end(text: str, start: int, declared: Collection[str], given: Collection[str]) -> int:
    """Where a value ends that may be a document about this very form: what is opened in it, is closed in it.

    A parameter that the tool does not declare, or that the call has already, is such a document's. An end tag that
    another one follows ends the value. -1 if the tags do not pair.
    """
    depths = {"parameter": 0, "call": 0}
    inner_end = inner_next = -1
    for tag in _TAGS.finditer(text, start):
        kind = "parameter" if tag["started"] or tag["ended"] else "call"
        if tag["opening"]:
            starts_line = text.startswith("\n", tag.start() - 1)
            is_next = bool(tag["name"]) and starts_line and not any(depths.values())
            if is_next and tag["name"] not in given and (not declared or tag["name"] in declared):
                return tag.start() - 1
            depths[kind] += 1
            if depths[kind] > _MAX_DEPTH:
                return -1
        elif depths[kind]:
            depths[kind] -= 1
            if kind == "parameter" and not any(depths.values()):
                inner_end = tag.start()
                inner_next = SPACE.match(text, _behind_ends(text, inner_end)).end()  # type: ignore[union-attr]
        elif kind == "parameter" and _PARAMETER_END.match(text, tag.start()):
            return tag.start()
        elif kind == "call":
            if inner_next == tag.start():
                return inner_end
            if text.startswith("\n", tag.start() - 1) and not _is_within_value(text, tag.end()):
                return tag.start() - 1
    return -1


def _is_within_value(text: str, at: int) -> bool:
    """Whether the next tag behind a call's end tag ends a parameter: then the end tag is part of the value."""
    tag = _TAGS.search(text, at)
    return tag is not None and bool(tag["ended"]) and _PARAMETER_END.match(text, tag.start()) is not None


def _behind_ends(text: str, at: int) -> int:
    """Behind the end tags of parameters that start here."""
    return _PARAMETER_ENDS.match(text, at).end()  # type: ignore[union-attr]


def _value(raw: str) -> str:
    """A value without the one newline on each side that the template adds, or the brackets that protect it."""
    newline = "\r\n" if raw.startswith("\r\n") else "\n"
    value = raw.removeprefix(newline).removesuffix(newline)
    if value.startswith(_CDATA[0]) and value.endswith(_CDATA[1]):
        return value.removeprefix(_CDATA[0]).removesuffix(_CDATA[1])
    return value


def _as_declared(raw: str, is_string: str | None) -> object:
    """DSML says of each parameter whether it is a string or JSON."""
    if is_string != "false":
        return raw
    try:
        value: object = decode(raw)
    except (ValueError, RecursionError):
        return raw
    return value


# -- <arg_key>p</arg_key><arg_value>value</arg_value> ------------------------------------------------------


def pairs(source: Source, name: str, start: int) -> Found:
    values: dict[str, object] = {}
    at = start
    if source.text.startswith("</arg_key>", start):
        name, key = _name_and_key(source, name)
        at = start - len(key)
    while pair := _PAIR.match(source.text, at) or _PAIR_WITHOUT_KEY_END.match(source.text, at):
        source.budget.check()
        value, at = _pair_value(source, name, pair, values)
        values[pair["name"].strip()] = value
    is_cut = _PAIR_OPEN.match(source.text, at) is not None
    if has_stray_tags(values.values(), "") or (is_cut and _END_OF_VALUE_OR_CALL.search(source.text, at)):
        return NOTHING
    end = len(source.text) if is_cut else at
    return [LeakedCall(name, encode(values), is_open=True, is_cut=is_cut)], end


def _pair_value(source: Source, tool: str, pair: re.Match[str], given: Collection[str]) -> tuple[str, int]:
    """A value, and where reading goes on: at the next pair, if the end tag before that was lost."""
    value, ends = pair["value"], _own_ends(source.text, pair)
    following = None if ends else _NEXT_CALL.search(value)
    if following and following["tool"] in source.tools:
        return value[: following.start()].rstrip("\n"), pair.start("value") + following.start()
    following = None if ends else _NEXT_PAIR.search(value)
    if following and following["name"] in source.members(tool) and following["name"] not in given:
        return value[: following.start()], pair.start("value") + following.start()
    return value + ends, pair.end()


def _own_ends(text: str, pair: re.Match[str]) -> str:
    """The end tags behind a value that belong to it, since it opens them: a document about this form."""
    opened = len(_VALUE_OPEN.findall(pair["value"]))
    ends = [end.start() for end in _VALUE_END.finditer(text, pair.end("value"), pair.end())]
    return text[pair.end("value") : ends[opened]] if 0 < opened < len(ends) else ""


def _name_and_key(source: Source, written: str) -> tuple[str, str]:
    """A tool's name and the name of its parameter, from both in one word: their tags were lost."""
    fits = [
        (tool, written[len(tool) :])
        for tool in source.tools
        if written.startswith(tool) and written[len(tool) :] in source.members(tool)
    ]
    return fits[0] if len(fits) == 1 else (written, "")


# -- <|open|>argument key="p" type="string"<|sep|>value<|close|>argument<|sep|> ----------------------------


def typed(source: Source, name: str, start: int) -> Found:
    values: dict[str, object] = {}
    at = start
    while argument := _TYPED.match(source.text, at):
        source.budget.check()
        is_string = "true" if argument["type"] in (None, "string") else "false"
        values[argument["name"]] = _as_declared(argument["value"], is_string)
        at = argument.end()
    is_cut = _TYPED_OPEN.match(source.text, at) is not None
    end = len(source.text) if is_cut else at
    return [LeakedCall(name, encode(values), is_open=True, is_cut=is_cut)], end


# -- <p>value</p> ------------------------------------------------------------------------------------------


def elements(source: Source, name: str, start: int) -> Found:
    """A tool as an element, with an element for each of its parameters, up to the tool's own end tag."""
    if _PARAMETER.match(source.text, start):
        return _parameters_up_to(source, name, start)
    first, wrappers = _behind_wrappers(source, name, start)
    closing = "".join(rf"</{wrapper}>\s*+" for wrapper in reversed(wrappers)) + rf"</{re.escape(name)}>"
    values, at = _elements(source, name, first, closing)
    if values is None:
        return NOTHING
    if end := re.compile(rf"\s*+{closing}").match(source.text, at):
        return [LeakedCall(name, encode(values))], end.end()
    if values and re.compile(rf"\s*+{_CUT_END}").match(source.text, at):
        return [LeakedCall(name, encode(values), is_open=True)], len(source.text)
    return NOTHING


def _parameters_up_to(source: Source, name: str, start: int) -> Found:
    """Parameters in tags between the tags of a tool as an element."""
    closing = source.text.find(f"</{name}>", start)
    if closing < 0:
        return NOTHING
    inside = replace(source, text=source.text[:closing])
    calls, end = parameters(inside, name, start)
    if not calls or calls[-1].is_cut or inside.text[end:].strip():
        return NOTHING
    return [LeakedCall(name, calls[-1].arguments)], closing + len(name) + 3


def named_elements(source: Source, name: str, start: int) -> Found:
    """The arguments of a call whose name stood in an element, too: as JSON, or an element each."""
    at, _ = _behind_wrappers(source, name, start)
    json_start = source.skip(at)
    if source.text.startswith("{", json_start):
        return json_behind_name(source, name, json_start)
    values, end = _elements(
        source, name, at, r"</(?:arguments|parameters|args|input|tool|tool_use|tool_call|function)>"
    )
    return NOTHING if values is None else ([LeakedCall(name, encode(values), is_open=True)], end)


def _behind_wrappers(source: Source, name: str, at: int) -> tuple[int, list[str]]:
    """Behind elements around all arguments, which the tool does not declare, and their names."""
    names: list[str] = []
    while (wrapper := _WRAPPER.match(source.text, at)) and wrapper[1] not in source.members(name):
        names.append(wrapper[1])
        at = wrapper.end()
    return at, names[:_MAX_DEPTH]


def _ends_call(raw: str, name: str) -> bool:
    """Whether the tool's own end tag stands in a value before its start tag: a parameter's end tag was lost."""
    end = raw.find(f"</{name}>")
    return end >= 0 and not 0 <= raw.find(f"<{name}>") < end


def _element_value(raw: str, name: str) -> str:
    """A value without the newline on each side, a token of MiniMax M3 behind it, or its start tag once more."""
    value = raw
    while value.rstrip().endswith(_M3_TOKEN):
        value = value.rstrip().removesuffix(_M3_TOKEN)
    opening, closing = f"<{name}>", f"</{name}>"
    if closing not in value and (body := value.lstrip().removeprefix(_M3_TOKEN)).startswith(opening):
        value = body.removeprefix(opening)
    elif opening not in value and value.rstrip().endswith(closing):
        value = value.rstrip().removesuffix(closing)
    return _value(value) if value.startswith(("\n", "\r\n")) else value


def _elements(source: Source, name: str, start: int, closing: str) -> tuple[dict[str, object] | None, int]:
    """The values of declared parameters that are written as elements, and where they end.

    A value ends where another parameter, or the call's own end tag, comes behind its end tag.
    """
    declared = "|".join(map(re.escape, sorted(source.members(name), key=len, reverse=True))) or "(?!)"
    opening = re.compile(rf"\s*+{_SPACE_TAG}<({declared})>")
    values: dict[str, object] = {}
    at = source.skip(start)
    while tag := opening.match(source.text, at):
        source.budget.check()
        ending = rf"{_SPACE_TAG}</{re.escape(tag[1])}>(?=\s*+(?:{_SPACE_TAG}(?:<(?:{declared})>|{closing})|{_CUT_END}))"
        end = re.compile(ending).search(source.text, tag.end())
        if end is None:
            return None, at
        raw = _element_value(source.text[tag.end() : end.start()], tag[1])
        if has_stray_tags([raw], "") or _ends_call(raw, name):
            return None, at
        values[tag[1]] = raw
        at = end.end()
    return values, at
