"""The forms in which local models write a tool call as text: one row a form, and nothing else.

`form_reader` reads them, `rescue` decides where a call is believed, and `holding` keeps back what may become one. A new
model is one row here, a case in `tests/corpus/`, and a line in docs/repair.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Style = Literal["call", "json", "parameters", "pairs", "python", "quoted", "elements"]
"""How the arguments are written.

- `call`: a JSON object, or a list of them, that holds the name, too.
- `json`: a JSON object behind the name.
- `parameters`: `<parameter=p>value</parameter>`, or JSON between the tags.
- `pairs`: `<arg_key>p</arg_key><arg_value>value</arg_value>`.
- `python`: a Python call with keywords, or a list of such calls.
- `quoted`: an object whose strings stand between tokens: `{p:<|"|>value<|"|>}`.
- `elements`: `<p>value</p>` for the declared parameters.
"""

NAME = r"(?P<name>[\w./:-]{1,99}+)"
_DSML = r"(?>(?:[｜|]DSML[｜|]|antml:)?)"
_M3 = "]<]minimax[>["


@dataclass(frozen=True, slots=True)
class Form:
    """One form. The call's name is where `head` says, or in the arguments.

    `opens` are the wrappers and tokens that come before a call, `ends` what comes behind it; both go with the call.
    `bare` are patterns of a start that needs no wrapper.
    """

    name: str
    style: Style
    opens: tuple[str, ...] = ()
    head: str = ""
    ends: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    quote: str = ""


_HERMES_OPENS = (
    "<tool_call>",
    "<tool_calls>",
    "<function_call>",
    "<function_calls>",
    "<functioncall>",
    "<tools>",
    "<tool>",
    "[tool_call]",
)
_HERMES_ENDS = (
    "</function>",
    "</tool_call>",
    "</tool_calls>",
    "</function_call>",
    "</function_calls>",
    "</functioncall>",
    "</tools>",
    "</tool>",
    "[/tool_call]",
    "<|/tool_call|>",
)

_SHOWN_OPENS = ("[Calling tool:", "[Tool call:", "[tool_call:")

FORMS = (
    # gpt-oss. openai/harmony, docs/format.md: the recipient stands in the channel or in the role; llama.cpp,
    # common/chat.cpp, common_chat_params_init_gpt_oss. Without its special tokens only words remain.
    Form(
        "harmony",
        "json",
        opens=("<|start|>assistant", "<|start|>", "<|channel|>"),
        head=rf"(?>(?:assistant)?)\s*+(?>(?:<\|channel\|>)?)\s*+(?:commentary|analysis)\s*+to=(?>(?:functions\.)?){NAME}\s*+"
        r"(?>(?:<\|channel\|>\s*+(?:commentary|analysis))?)\s*+(?>(?:code)?)\s*+(?>(?:<\|constrain\|>)?)\s*+(?>(?:json)?)\s*+"
        r"(?>(?:<\|message\|>)?)\s*+(?=\{)",
        ends=("<|call|>", "<|end|>", "<|return|>"),
        bare=(r"(?:assistant)?(?:commentary|analysis) {0,3}to=(?:functions\.)?[\w-]",),
    ),
    Form(
        "harmony, recipient first",
        "json",
        opens=("<|start|>assistant", "<|start|>"),
        head=rf"(?>(?:assistant)?)\s*+to=(?>(?:functions\.)?){NAME}\s*+<\|channel\|>\s*+(?:commentary|analysis)\s*+"
        r"(?>(?:<\|constrain\|>)?)\s*+(?>(?:json)?)\s*+(?>(?:<\|message\|>)?)\s*+(?=\{)",
        ends=("<|call|>", "<|end|>", "<|return|>"),
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
    ),
    # DeepSeek V3 and R1: chat template of deepseek-ai/DeepSeek-R1-0528, vLLM, deepseekv3_tool_parser.py: the type,
    # the
    # name, and a fenced object.
    Form(
        "DeepSeek R1",
        "json",
        opens=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool_calls_begin｜>", "<｜tool_call_begin｜>"),
        head=rf"function\s*+<｜tool[▁_]sep｜>\s*+{NAME}\s*+(?>(?:```(?>(?:json)?))?)\s*+(?=\{{)",
        ends=(
            "```",
            "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool_call_end｜>",
            "<｜tool_calls_end｜>",
            "<｜end▁of▁sentence｜>",
        ),
    ),
    # DeepSeek V3.1: its chat template; vLLM, deepseekv31_tool_parser.py.
    Form(
        "DeepSeek V3.1",
        "json",
        opens=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool_calls_begin｜>", "<｜tool_call_begin｜>"),
        head=rf"{NAME}\s*+<｜tool[▁_]sep｜>\s*+(?=\{{)",
        ends=(
            "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool_call_end｜>",
            "<｜tool_calls_end｜>",
            "<｜end▁of▁sentence｜>",
        ),
    ),
    # Qwen3-Coder, Qwen 3.5 and 3.6, Nemotron Nano 3, Step 3.5: chat template of Qwen/Qwen3-Coder-30B-A3B-Instruct,
    # vLLM,
    # qwen3coder_tool_parser.py. Seed-OSS has its own wrapper: vLLM, seed_oss_tool_parser.py. Llama 3 writes JSON
    # between the tags: llama.cpp, common/chat.cpp.
    Form(
        "function tags",
        "parameters",
        opens=(*_HERMES_OPENS, "<seed:tool_call>"),
        head=rf"<(?:function|tool_call)(?:=|\s{{1,9}}+name=)[\"']?{NAME}[\"']?\s*+(?:>|(?=<parameter))",
        ends=("</function>", *_HERMES_ENDS, "</seed:tool_call>"),
        bare=(r"<(?:function|tool_call)(?:=|\s{1,9}name=)",),
    ),
    # MiniMax M2: docs/tool_calling_guide.md of MiniMaxAI/MiniMax-M2; vLLM, minimax_m2_tool_parser.py. DeepSeek V3.2's
    # DSML: encoding_dsv32.py of deepseek-ai/DeepSeek-V3.2. MiniMax M3 puts its token before each tag and names a
    # parameter by its tag: vLLM, minimax_m3_tool_parser.py. The tags without wrapper are Claude's.
    Form(
        "invoke tags",
        "parameters",
        opens=(
            f"{_M3}<tool_call>",
            "<minimax:tool_call>",
            "<｜DSML｜function_calls>",
            "<｜DSML｜tool_calls>",
            "<|DSML|function_calls>",
            "<|DSML|tool_calls>",
            "<function_calls>",
            "<tool_call>",
            "<tool_calls>",
        ),
        head=rf"(?>(?:{re.escape(_M3)})?)<{_DSML}invoke(?:=|\s{{1,9}}+name=)[\"']?{NAME}[\"']?\s*+>",
        ends=(
            *(f"</{prefix}invoke>" for prefix in ("", "｜DSML｜", "|DSML|", "antml:")),
            f"{_M3}</invoke>",
            f"{_M3}</tool_call>",
            "</minimax:tool_call>",
            "</｜DSML｜function_calls>",
            "</｜DSML｜tool_calls>",
            "</|DSML|function_calls>",
            "</|DSML|tool_calls>",
            "</function_calls>",
            "</tool_call>",
            "</tool_calls>",
        ),
        bare=(rf"(?:{re.escape(_M3)})?<(?:[｜|]DSML[｜|]|antml:)?invoke(?:=|\s{{1,9}}name=)",),
    ),
    # GLM 4.5 to 5: chat template of zai-org/GLM-4.5; vLLM, glm4_moe_tool_parser.py. A tag of the first pair is often
    # lost.
    Form(
        "GLM",
        "pairs",
        opens=("<tool_call>",),
        head=rf"{NAME}\s*+(?=<arg_key>|</tool_call>|</arg_value>|[\w.-]{{1,99}}+\s*+</arg_key>)",
        ends=("</tool_call>", "</arg_value>", "<|observation|>", "<|user|>"),
    ),
    # Gemma 4: chat template of google/gemma-4-31B-it; vLLM, gemma4_tool_parser.py.
    Form(
        "Gemma 4",
        "quoted",
        opens=("<|tool_call>", "<tool_call>"),
        head=rf"(?>(?:call:)?){NAME}\s*+(?=\{{)",
        quote='<|"|>',
        ends=("<tool_call|>", "<|tool_response>", "<turn|>"),
    ),
    # FunctionGemma: chat template of google/functiongemma-270m-it; vLLM, functiongemma_tool_parser.py.
    Form(
        "FunctionGemma",
        "quoted",
        opens=("<start_function_call>",),
        head=rf"(?>(?:call:)?){NAME}\s*+(?=\{{)",
        quote="<escape>",
        ends=("<end_function_call>", "<start_function_response>"),
    ),
    # Mistral since tokenizer v11, Devstral, Magistral: mistral-common, instruct tokenizer v11 and v13.
    Form(
        "Mistral",
        "json",
        opens=("[TOOL_CALLS]",),
        ends=("</s>",),
        head=rf"{NAME}\s*+(?>(?:\[CALL_ID\][\w-]{{1,99}}+)?)\s*+(?>(?:\[ARGS\])?)\s*+(?=\{{)",
    ),
    # A model repeats how a client shows its calls: seen with Gemma 4 and Qwen 3.
    Form(
        "calling tool",
        "json",
        opens=_SHOWN_OPENS,
        head=rf"{NAME}\s*+(?>(?:\(|with arguments:?+|\])?)\s*+(?=\{{)",
        ends=(")]", ")", "]"),
    ),
    Form("calling tool, as Python", "python", opens=_SHOWN_OPENS, ends=("]",)),
    # A tool's name before its arguments, between Hermes' tags: Qwen 3 and GLM without their template.
    Form("name and JSON", "json", opens=("<tool_call>",), head=rf"{NAME}\s*+(?=\{{)", ends=_HERMES_ENDS),
    # LFM2: chat template of LiquidAI/LFM2-1.2B; Gemma 3 in a fence: its function calling guide; Llama 4 and 3.2
    # behind
    # <|python_start|>: Meta's prompt format, vLLM, llama4_pythonic_tool_parser.py.
    Form(
        "Python calls",
        "python",
        opens=("<|tool_call_start|>", "<|python_start|>", "<|python_tag|>", "```tool_code"),
        ends=("<|tool_call_end|>", "<|python_end|>", "<|eom|>"),
    ),
    # Hermes 2 and 3, Qwen 2.5 and 3, Granite 4: their chat templates; vLLM, hermes_tool_parser.py. Granite 3 and
    # Phi-4 have
    # <|tool_call|>: vLLM, granite_tool_parser.py; Nemotron <TOOLCALL>: its template; Mistral before v11 a list;
    # Command R
    # <|START_ACTION|>: Cohere's template; Phi-4-mini functools: vLLM, phi4mini_tool_parser.py; Llama 3
    # <|python_tag|>.
    Form(
        "JSON calls",
        "call",
        opens=(
            *_HERMES_OPENS,
            "<|tool_call|>",
            "<TOOLCALL>",
            "[TOOL_CALLS]",
            "<|START_ACTION|>",
            "functools",
            "Action: ```json",
            "Action:```json",
            "<|python_tag|>",
            "<|tool_call_start|>",
            "```tool_code",
            "<|tool_calls|>",
            "<minimax:tool_call>",
        ),
        ends=(
            *_HERMES_ENDS,
            "<|/tool_calls|>",
            "</TOOLCALL>",
            "[/TOOL_CALLS]",
            "<|END_ACTION|>",
            "<|tool_call|>",
            "<|tool_call_end|>",
            "<|eom_id|>",
            "</minimax:tool_call>",
        ),
    ),
)

TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "</s>",
    "<|observation|>",
    "<|user|>",
    "<|call|>",
    "<|end|>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
    "<end_of_turn>",
    "<turn|>",
    "<|eom|>",
    "<|eot|>",
    "[e~[",
    "<|END_RESPONSE|>",
    "<|tool_response>",
    "<|END_OF_TURN_TOKEN|>",
    "<|im_start|>assistant",
)
"""Tokens that end a turn, in every template that the rows above come from."""

_WORDY = ("functools",)
"""Openers that are words: they need a bracket behind them."""


def _escaped(token: str) -> str:
    return re.escape(token) + (r"(?=\s{0,9}\[)" if token in _WORDY else "")


def _longest_first(tokens: set[str]) -> list[str]:
    return sorted(tokens, key=lambda token: (-len(token), token))


OPENS = {token for form in FORMS for token in form.opens}
ENDS = {token for form in FORMS for token in form.ends}
MARK = "|".join([*map(_escaped, _longest_first(OPENS)), *(bare for form in FORMS for bare in form.bare)])
"""A pattern of all that may start a call."""
