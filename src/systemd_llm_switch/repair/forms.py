"""The forms in which local models write a tool call as text: one row a form, and nothing else.

`form_reader` reads them, `rescue` decides where a call is believed, and `holding` keeps back what may become one. A new
model is one row here, a case in `tests/corpus/`, and a line in docs/repair.md.
"""

from __future__ import annotations

import re

from .form import Form
from .tagged import ARG_KEY, DECORATED, TAG_PREFIX

NAME = r"(?P<name>[\w./:-]{1,99}+)"
_DSML_BARS = r"[｜|‖]{1,2}DSML[｜|‖]{1,2} ?"
DSML_WRAPPER = rf"<{_DSML_BARS}(?!invoke|parameter)\w{{1,20}}+>|</{_DSML_BARS}(?!parameter)\w{{1,20}}+>"
"""DeepSeek's wrappers and end tags, in any spelling: only `invoke` says that there is a call."""
_CALLS = r"(?:function_calls?|tool_?calls?|calls)"
PREFIXED_WRAPPER = rf"<(?:[a-z]{{2,9}}+[:|_]{_CALLS}{DECORATED[1]}|{_CALLS}:opensource)>"
"""Wrappers with a namespace, whichever it is: models invent some."""
ODD_TOKENS = (
    rf"{DSML_WRAPPER}|{PREFIXED_WRAPPER}|</[a-z]{{2,9}}+:(?:inv(?:oke)?|param(?:eter)?)>"
    rf"|</(?:[a-z]{{2,9}}+[:|_]{_CALLS}{DECORATED[1]}|{_CALLS}:opensource)>"
    r"|</(?:function|parameter|invoke|tool_call|tool)[=:][^<>\n]{1,99}+>"
)
"""Tokens that go with any form, but are not one string: those, and end tags that repeat a name."""
_M3 = "]<]minimax[>["


_HERMES_OPENS = (
    "<tool_call>", "<tool_calls>", "<function_call>", "<function_calls>", "<functioncall>", "<tools>", "<tool>",
    "<tool_use>", "<tool_request>", "<toolcall>", "<tool-call>", "<TOOL_CALL>", "<function>", "<functions>",
    "[tool_call]",
)  # fmt: skip
_HERMES_ENDS = (
    "</function>", "</tool_call>", "</tool_calls>", "</function_call>", "</function_calls>", "</functioncall>",
    "</function_invocation>", "</functions>", "</arguments>", "</parameters>", "</tools>", "</tool>", "</tool_use>",
    "</tool_request>", "</toolcall>", "</tool-call>", "</TOOL_CALL>", "[/tool_call]",
    "<|/tool_call|>", "</|tool_call|>",
)  # fmt: skip

_ARROW_ENDS = ("[/TOOL_CALL]",)
_DEEPSEEK_SEPARATORS = ("▁", "_", " ", "\\_")
_SEP = r"<[｜|]tool(?:▁|_| |\\_)sep[｜|]>"


def _deepseek(*names: str) -> tuple[str, ...]:
    """DeepSeek's tokens in the spellings of its models: llama.cpp, common/chat.cpp, takes the same."""
    return tuple(
        f"<{bar}{name.replace('▁', separator)}{bar}>"
        for name in names
        for bar in ("｜", "|")
        for separator in _DEEPSEEK_SEPARATORS
    )


_DEEPSEEK_OPENS = _deepseek("tool▁calls▁begin", "tool▁call▁begin")
_DEEPSEEK_ENDS = (*_deepseek("tool▁call▁end", "tool▁calls▁end"), "<｜end▁of▁sentence｜>")
_FUNCTIONGEMMA_ENDS = ("<end_function_call>", "<start_function_response>")
_KIMI_ARGUMENT = "<|tool_call_argument_begin|>"
_SHOWN_OPENS = (
    "[Calling tool:", "[Using tool:", "[Tool call:", "[Tool Call:", "[tool_call:", "[Tool use:", "[Tool Use:",
    "[tool_use:", "[Tool:", "[tool:", "[Called tool:", "[Function call:", "[Executing tool:",
)  # fmt: skip
_HARMONY_ENDS = ("<|call|>commentary", "<|call|>assistant", "<|call|>", "<|end|>", "<|return|>")
"""gpt-oss at times begins the next message behind a call."""

FORMS = (
    # gpt-oss. openai/harmony, docs/format.md: the recipient stands in the channel or in the role; llama.cpp,
    # common/parsers/gpt-oss.cpp. Without its special tokens only words remain.
    Form(
        "harmony",
        "json",
        opens=("<|start|>assistant", "<|start|>", "<|channel|>", "assistant<|channel|>"),
        head=r"(?>(?:assistant)?)\s*+(?>(?:<\|channel\|>)?)\s*+(?:commentary|analysis)\s*+"
        rf"(?>(?:<\|constrain\|>\s*+json\s*+)?)to=(?>(?:functions\.)?){NAME}\s*+"
        r"(?>(?:<\|channel\|>\s*+(?:commentary|analysis))?)\s*+(?>(?:code)?)\s*+(?>(?:<\|constrain\|>)?)\s*+(?>(?:json)?)\s*+"
        r"(?>(?:<\|message\|>)?)\s*+(?=\{)",
        ends=_HARMONY_ENDS,
        bare=(r"(?:assistant)?(?:commentary|analysis) {0,3}to=(?:functions\.)?[\w-]",),
    ),
    Form(
        "harmony, recipient first",
        "json",
        opens=("<|start|>assistant", "<|start|>"),
        head=rf"(?>(?:assistant)?)\s*+to=(?>(?:functions\.)?){NAME}\s*+<\|channel\|>\s*+(?:commentary|analysis)\s*+"
        r"(?>(?:<\|constrain\|>)?)\s*+(?>(?:json)?)\s*+(?>(?:<\|message\|>)?)\s*+(?=\{)",
        ends=_HARMONY_ENDS,
        bare=(r"(?:assistant )?to=functions\.[\w-]",),
    ),
    # The same without any token, and with a few stray ones between the name and the object: reports of 2026.
    Form(
        "harmony, recipient alone",
        "json",
        opens=("<|start|>assistant", "<|start|>"),
        head=rf"(?>(?:assistant)?)\s*+to=functions\.{NAME}"
        r"(?>(?:json|code|commentary|analysis|<\|(?:constrain|channel|message)\|>|[^A-Za-z\n{}<>]){0,40})\s*+(?=\{)",
        ends=_HARMONY_ENDS,
        bare=(r"(?:assistant )?to=functions\.[\w-]",),
    ),
    # Kimi K2: docs/tool_call_guidance.md of moonshotai/Kimi-K2-Instruct; vLLM, kimi_k2_tool_parser.py. The id
    # `functions.f:0` is the name.
    Form(
        "Kimi",
        "json",
        opens=("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>", "<|tool_call_begin|>"),
        head=rf"{NAME}\s*+<\|tool_call_argument_begin\|>\s*+(?=\{{)",
        ends=("<|tool_call_end|>", "<|tool_calls_section_end|>", "<|tool_call_section_end|>"),
        behind_name=_KIMI_ARGUMENT,
    ),
    # Kimi K3: encoding_k3.py of moonshotai/Kimi-K3; llama.cpp, common/parsers/kimi-k3.cpp.
    Form(
        "Kimi K3",
        "typed",
        opens=("<|open|>tools<|sep|>",),
        head=r"<\|open\|>call tool=\"(?P<name>[^\"<>\n]{1,99}+)\"[^<>\n]{0,99}+<\|sep\|>",
        ends=(
            "<|close|>response<|sep|>",
            "<|close|>call<|sep|>",
            "<|close|>tools<|sep|>",
            "<|close|>message<|sep|>",
            "<|end_of_msg|>",
        ),
        bare=(r"<\|open\|>call tool=",),
    ),
    # DeepSeek V3 and R1: chat template of deepseek-ai/DeepSeek-R1-0528; vLLM, deepseekv3_tool_parser.py: the type, the
    # name, and a fenced object.
    Form(
        "DeepSeek R1",
        "json",
        opens=_DEEPSEEK_OPENS,
        head=rf"function\s*+{_SEP}\s*+{NAME}\s*+(?>(?:```(?>(?:json)?))?)\s*+(?=\{{)",
        ends=("```", *_DEEPSEEK_ENDS),
        behind_name="<｜tool▁sep｜>",
    ),
    # DeepSeek V3.1: its chat template; vLLM, deepseekv31_tool_parser.py. Older ones lose the type: llama.cpp.
    Form(
        "DeepSeek V3.1",
        "json",
        opens=_DEEPSEEK_OPENS,
        head=rf"{NAME}\s*+{_SEP}\s*+(?>(?:```(?>(?:json)?))?)\s*+(?=\{{)",
        ends=("```", *_DEEPSEEK_ENDS),
        behind_name="<｜tool▁sep｜>",
    ),
    # Qwen3-Coder, Qwen 3.5 to 3.8, Nemotron 3, Step 3.5: chat template of Qwen/Qwen3-Coder-30B-A3B-Instruct; vLLM,
    # qwen3coder_tool_parser.py. Seed-OSS has its own wrapper: vLLM, seed_oss_tool_parser.py. Llama 3 writes JSON
    # between the tags: llama.cpp, common/chat.cpp. MiniCPM5 writes `<param name="p">`: llama.cpp,
    # common/parsers/minicpm5.cpp.
    Form(
        "function tags",
        "parameters",
        opens=(*_HERMES_OPENS, "<seed:tool_call>"),
        head=rf"<?+(?:function_call|function|tool_call|tool_use|tool)(?:\s{{0,3}}+[=:]\s{{0,3}}+|\s{{1,9}}+name=)[\"']?{NAME}[\"']?\s*+"
        r"(?:>|(?=<parameter)|,?+\s*+(?=\{))",
        ends=("</function>", *_HERMES_ENDS, "</seed:tool_call>"),
        bare=(r"<(?:function_call|function|tool_call|tool_use|tool)(?:\s{0,3}[=:]|\s{1,9}name=)",),
        in_any=True,
    ),
    # Qwen 3.8 at times names the tool in a parameter's tag: a report on antirez/ds4; so does DeepSeek V4.1: opencode
    # 50206. The call's start is lost up to the name: q27 24.
    Form(
        "function tags, misspelled",
        "parameters",
        opens=_HERMES_OPENS,
        head=rf"(?:<{TAG_PREFIX}parameter(?:=|\s{{1,9}}+name=)[\"']?{NAME}[\"']?\s*+>\s*+(?=<{TAG_PREFIX}parameter(?:=|\s))"
        rf"|<name>\s*+(?P<other>[\w.:-]{{1,99}}+)\s*+</(?:parameter|name|function)>\s*+(?=<parameter=))",
        ends=("</function>", *_HERMES_ENDS, "</invoke>"),
        bare=(rf"<{_DSML_BARS}parameter\s{{1,9}}name=", r"<name>[\w.:-]{1,99}\s{0,3}</parameter>"),
    ),
    # MiniMax M2: docs/tool_calling_guide.md of MiniMaxAI/MiniMax-M2; vLLM, minimax_m2_tool_parser.py. DeepSeek V3.2's
    # and V4's DSML: encoding_dsv32.py of deepseek-ai/DeepSeek-V3.2; vLLM, deepseekv32_tool_parser.py. Step 3's tags are
    # behind DeepSeek's tokens: vLLM, step3_tool_parser.py. MiniMax M3 puts its token before each tag and names a
    # parameter by its tag: vLLM, minimax_m3_tool_parser.py. The tags without wrapper are Claude's.
    Form(
        "invoke tags",
        "parameters",
        opens=(
            f"{_M3}<tool_call>",
            "<minimax:tool_call>",
            "<steptml:toolcall>",
            "<function_calls>",
            "<tool_call>",
            "<tool_calls>",
            "[TOOL_CALL]",
            *_DEEPSEEK_OPENS,
        ),
        head=rf"(?>(?:function\s*+{_SEP})?)\s*+(?>(?:{re.escape(_M3)})?)< ?+{TAG_PREFIX}invoke(?:=|\s{{1,9}}+name=)"
        rf"[\"']?{NAME}[\"']?\s*+/?>",
        ends=(
            *(f"</{prefix}{word}>" for prefix in ("", "antml:", "steptml:") for word in ("invoke", "inv")),
            f"{_M3}</invoke>",
            f"{_M3}</tool_call>",
            "</minimax:tool_call>",
            "</steptml:toolcall>",
            "</function_calls>",
            "</function_calls>",
            "</tool_call>",
            "</tool_calls>",
            *_ARROW_ENDS,
            *_DEEPSEEK_ENDS,
        ),
        bare=(
            rf"(?:{re.escape(_M3)})?< ?(?:{_DSML_BARS}|[a-z]{{2,9}}:)?invoke(?:=|\s{{1,9}}name=)",
            DSML_WRAPPER,
            PREFIXED_WRAPPER,
        ),
        in_any=True,
    ),
    # GLM 4.5 to 5.2: chat template of zai-org/GLM-4.5; vLLM, glm4_moe_tool_parser.py. A tag of the first pair is often
    # lost, or the wrapper's stands there. Hunyuan 3 has `<tool_sep>` behind the name: vLLM, hy_v3_tool_parser.py.
    # LongCat's tags have a prefix: vLLM, longcat_tool_parser.py.
    Form(
        "GLM",
        "pairs",
        opens=("<tool_call>", "<tool_calls>", "<longcat_tool_call>"),
        head=rf"(?>(?:<tool_name>\s*+)?){NAME}\s*+(?>(?:</tool_name>\s*+)?)(?:<tool_sep{DECORATED[1]}>\s*+|(?=<{ARG_KEY}|</{DECORATED[0]}tool_call{DECORATED[1]}>|</arg_value>|</arg_key>"
        r"|(?:<tool_call>)?[\w.-]{1,99}+\s*+</arg_key>))",
        ends=(
            "</tool_call>",
            "</tool_calls>",
            "</longcat_tool_call>",
            "</arg_value>",
            "<|observation|>",
            "<|user|>",
        ),
        behind_name="<arg_key>",
        in_any=True,
    ),
    # Gemma 4: chat template of google/gemma-4-31B-it; vLLM, gemma4_tool_parser.py. Its tokens are often lost or have a
    # bar too many, and the arguments stand in parentheses: reports of 2026.
    Form(
        "Gemma 4",
        "quoted",
        opens=("<|tool_call>", "<tool_call>", "<|tool_call|>"),
        head=rf"(?>(?:call)?):?+{NAME}\s*+(?=[{{(])",
        ends=("<tool_call|>", "<|tool_call|>", "<|tool_response>", "<turn|>", "<eos>", *_FUNCTIONGEMMA_ENDS),
        bare=(r"call:(?<![\w:.-]call:)[\w.:-]{1,99}\s{0,3}[{(]",),
    ),
    # FunctionGemma: chat template of google/functiongemma-270m-it; vLLM, functiongemma_tool_parser.py.
    Form(
        "FunctionGemma",
        "quoted",
        opens=("<start_function_call>",),
        head=rf"(?>(?:call:)?){NAME}\s*+(?=\{{)",
        ends=_FUNCTIONGEMMA_ENDS,
    ),
    # MiniMax M2 without its template: reports of 2026.
    Form(
        "flags",
        "flags",
        opens=("[TOOL_CALL]",),
        head=r"\{{1,2}\s*+tool\s*+=>\s*+[\"'](?P<name>[\w.:-]{1,99}+)[\"']\s*+,?+\s*+(?>(?:args\s*+=>\s*+)?)",
        ends=_ARROW_ENDS,
    ),
    # Mistral since tokenizer v11, Devstral, Magistral: mistral-common, instruct tokenizer v11 and v13.
    Form(
        "Mistral",
        "json",
        opens=("[TOOL_CALLS]",),
        ends=("[/TOOL_CALLS]", "</s>"),
        head=rf"{NAME}\s*+,?+\s*+(?>(?:\[CALL_ID\][\w-]{{1,99}}+)?)\s*+(?>(?:\[ARGS\])?)\s*+(?=\{{)",
        behind_name="[ARGS]",
    ),
    # A model repeats how a client shows its calls: seen with Gemma 4 and Qwen 3.
    Form(
        "calling tool",
        "json",
        opens=_SHOWN_OPENS,
        head=rf"{NAME}\s*+(?>(?:\(ID:[^()\n]{{0,99}}+\))?)\s*+(?>(?:\(|with arguments:?+|\])?)\s*+(?>(?:Arguments:)?)"
        r"\s*+(?=\{)",
        ends=(")]", ")", "]"),
    ),
    Form("calling tool, as Python", "python", opens=_SHOWN_OPENS, ends=("]",)),
    # A tool's name before its arguments, between Hermes' tags: Qwen 3 and GLM without their template.
    Form(
        "name and JSON",
        "json",
        opens=("<tool_call>",),
        head=rf"{NAME}\s*+(?>(?:```(?>(?:json)?)\s*+)?)(?=\{{)",
        ends=("```", *_HERMES_ENDS),
        in_any=True,
    ),
    # A name before tags of parameters, without a tag of its own.
    Form("name and tags", "parameters", head=rf"{NAME}\s*+(?=<parameter[=\s])", ends=_HERMES_ENDS, in_any=True),
    # Functionary 3.2: its template. The name is a line; the next call comes right behind the object.
    Form(
        "Functionary",
        "json",
        head=rf">>>{NAME}\r?\n\s*+(?=\{{)",
        bare=(r"(?<![^\n}])>>>[\w.-]{1,99}\r?\n\s{0,9}\{",),
    ),
    # The name in an element: small models that saw `<name>` in a prompt.
    Form(
        "name in an element",
        "elements",
        opens=_HERMES_OPENS,
        head=rf"<(?:tool_|function_)?name>\s*+{NAME}\s*+</(?:tool_|function_)?name>\s*+",
        ends=("</arguments>", "</parameters>", "</args>", "</input>", *_HERMES_ENDS),
    ),
    # Solar Open: chat template of upstage/Solar-Open-100B.
    Form(
        "Solar",
        "json",
        opens=("<|tool_calls|>", "<|tool_call:begin|>"),
        head=rf"[\w-]{{0,40}}+\s*+<\|tool_call:name\|>\s*+{NAME}\s*+<\|tool_call:args\|>\s*+(?=\{{)",
        ends=("<|tool_call:end|>", "<|calls|>", "<|end|>"),
    ),
    # ReAct, which Qwen-Agent, LangChain and others ask for in words, and Qwen-Agent's own marks: its fncall_prompts.
    Form(
        "ReAct",
        "json",
        head=rf"\*{{0,2}}+Action:\*{{0,2}}+[^\S\n]*+{NAME}[^\S\n]*+\n\s*+\*{{0,2}}+Action Input:\*{{0,2}}+\s*+(?=\{{)",
        bare=(r"\*{0,2}Action:\*{0,2}[^\S\n]{0,3}[\w.-]{1,99}[^\S\n]{0,3}\n\s{0,9}\*{0,2}Action Input:",),
        followed_by=r"\s*+(?:\Z|Observation|Thought:|Action:|<)",
    ),
    Form(
        "Qwen-Agent",
        "json",
        opens=("✿FUNCTION✿:",),
        head=rf"{NAME}\s*+✿ARGS✿:\s*+(?=\{{)",
        ends=("✿RESULT✿:", "✿RESULT✿"),
    ),
    # Apertus: its chat template; vLLM, apertus_tool_parser.py.
    Form("Apertus", "keyed", opens=("<|tools_prefix|>",), ends=("<|tools_suffix|>", "<|assistant_end|>")),
    # LFM2: chat template of LiquidAI/LFM2-1.2B; Gemma 3 in a fence: its function calling guide; Llama 4 and 3.2 behind
    # <|python_start|>: Meta's prompt format; vLLM, llama4_pythonic_tool_parser.py. OLMo 3 in <function_calls>: vLLM,
    # olmo3_tool_parser.py.
    Form(
        "Python calls",
        "python",
        opens=(
            *_HERMES_OPENS,
            "<tool_code>",
            "<|tool_call_start|>",
            "<|python_start|>",
            "<|python_tag|>",
            "```tool_code",
        ),
        ends=(*_HERMES_ENDS, "</tool_code>", "<|tool_call_end|>", "<|python_end|>", "<|eom|>"),
        in_any=True,
    ),
    # Hermes 2 and 3, Qwen 2.5 and 3, Granite 4: their chat templates; vLLM, hermes_tool_parser.py. Granite 3 and Phi-4
    # have <|tool_call|>: vLLM, granite_tool_parser.py; Nemotron <TOOLCALL>: its template; Mistral before v11 a list;
    # Command R <|START_ACTION|>: Cohere's template; Phi-4-mini functools: vLLM, phi4mini_tool_parser.py; Llama 3
    # <|python_tag|>; LM Studio's own [TOOL_REQUEST]; GigaChat 3 <|function_call|>: vLLM, gigachat3_tool_parser.py;
    # InternLM 2 <|action_start|>: vLLM, internlm2_tool_parser.py; LongCat: vLLM, longcat_tool_parser.py.
    Form(
        "JSON calls",
        "call",
        opens=(
            *_HERMES_OPENS,
            "<|tool_call|>",
            "<|tool_call>",
            "<TOOLCALL>",
            "[TOOL_CALLS]",
            "[TOOL_CALL]",
            "[TOOL_REQUEST]",
            "<|START_ACTION|>",
            "functools",
            "Action: ```json",
            "Action:```json",
            "Action:\n```json",
            "Action:\n```",
            "<|python_tag|>",
            "<|python_start|>",
            "<|tool_call_start|>",
            "```tool_code",
            "```tool_calls",
            "```tool_call",
            "<|tool_calls|>",
            "<minimax:tool_call>",
            "<seed:tool_call>",
            "<longcat_tool_call>",
            "<|function_call|>",
            "function call<|role_sep|>",
            "<|action_start|><|plugin|>",
        ),
        ends=(
            *_HERMES_ENDS,
            "<|/tool_calls|>",
            "</TOOLCALL>",
            "[/TOOL_CALLS]",
            "[END_TOOL_REQUEST]",
            "[TOOL_REQUEST_END]",
            *_ARROW_ENDS,
            "<|END_ACTION|>",
            "<|tool_call|>",
            "<tool_call|>",
            "<|tool_call_end|>",
            "<|python_end|>",
            "<|eom_id|>",
            "<|eom|>",
            "<|action_end|>",
            "</minimax:tool_call>",
            "</seed:tool_call>",
            "</longcat_tool_call>",
        ),
        in_any=True,
    ),
)

TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<|observation|>",
    "<|user|>", "<|call|>", "<|end|>", "<|return|>", "<｜end▁of▁sentence｜>", "<end_of_turn>", "<turn|>",
    "<|eom|>", "<|eot|>", "[e~[", "<|END_RESPONSE|>", "<|tool_response>", "<|END_OF_TURN_TOKEN|>",
    "<|END_TEXT|>", "<|start_header_id|>assistant<|end_header_id|>", "<eos>", "<seed:eos>", "<|turn>model",
    "<|assistant_end|>", "<|close|>message<|sep|>", "<|end_of_msg|>", "<|im_start|>assistant", "<|im_start|>user",
    "[|endofturn|]", "<|role_end|>",
)  # fmt: skip
"""Tokens that end a turn, in every template that the rows above come from."""

TURN_STARTS = (
    "<|im_start|>assistant", "<|start_header_id|>assistant<|end_header_id|>", "<|assistant|>", "<start_of_turn>model",
    "<|start_of_role|>assistant<|end_of_role|>", "<|turn>model",
)  # fmt: skip
TURN_START = re.compile(rf"\ufeff?+(?>(?:\s*+(?:{'|'.join(map(re.escape, TURN_STARTS))})\s*+)?)")
"""What starts a turn in them, and a byte order mark. A model that writes it begins its turn once more."""

_WORDY = ("functools",)
"""Openers that are words: they need a bracket behind them."""


def _escaped(token: str) -> str:
    return re.escape(token) + (r"(?=\s{0,9}\[)" if token in _WORDY else "")


def _longest_first(tokens: set[str]) -> list[str]:
    return sorted(tokens, key=lambda token: (-len(token), token))


OPENS = {token for form in FORMS for token in form.opens}
ENDS = {token for form in FORMS for token in form.ends}
BEHIND_NAMES = {form.behind_name for form in FORMS if form.behind_name}
MARK = "|".join([*map(_escaped, _longest_first(OPENS | BEHIND_NAMES)), *(bare for form in FORMS for bare in form.bare)])
"""A pattern of all that may start a call, or stand behind its name."""
