"""A request of Anthropic's messages API, as a chat request (https://docs.claude.com/en/api/messages)."""

from __future__ import annotations

import re

from systemd_llm_switch.dialects.chat_builder import (
    ChatBuilder,
    Content,
    content_of,
    image_part,
    left_out,
    list_at,
    text_part,
)
from systemd_llm_switch.dialects.effort import with_thinking
from systemd_llm_switch.openai.shapes import Json, dump, object_of, objects_of

# What has another name in a chat, or no meaning for llama-server. Other fields are passed on, its own among them.
_CONSUMED = frozenset(
    ("system", "messages", "tools", "tool_choice", "stop_sequences", "thinking", "output_config", "output_format",
     "metadata", "service_tier", "container", "context_management", "mcp_servers", "betas", "cache_control")
)  # fmt: skip
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Tools that Anthropic's servers run themselves. Here, a call of one would never be answered.
_SERVER_TOOLS = ("web_search_", "web_fetch_", "code_execution_", "tool_search_", "advisor_", "mcp_toolset")
# Claude Code's first line of instructions differs from request to request: no context would be found again.
_BILLING = re.compile(r"\Ax-anthropic-billing-header:(?>(?: ?[a-z_]{1,30}=[^;\s]{0,100};)*)\s*+")
_SILENT = ("redacted_thinking",)


def chat_of_messages(body: Json) -> Json:
    """The chat request that asks the same.

    Raises:
        InvalidRequest: it is not a request of this API.
    """
    chat = {name: value for name, value in body.items() if name not in _CONSUMED}
    chat["messages"] = _conversation(body)
    if tools := [_tool(tool) for tool in list_at(body, "tools") if not _is_server_tool(tool)]:
        chat["tools"] = tools
    chat |= _tool_choice(object_of(body.get("tool_choice")))
    if "stop_sequences" in body:
        chat["stop"] = body["stop_sequences"]
    thinking = object_of(body.get("thinking"))
    if thinking.get("type") == "enabled" and "budget_tokens" in thinking:
        chat["thinking_budget_tokens"] = thinking["budget_tokens"]  # llama-server's name for it
    output = object_of(body.get("output_config"))
    chat = with_thinking(chat, effort=output.get("effort"), is_off=thinking.get("type") == "disabled")
    wanted = object_of(output.get("format") or body.get("output_format"))
    if wanted.get("type") == "json_schema":
        chat["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": wanted.get("schema")},
        }
    return chat


def _conversation(body: Json) -> list[Json]:
    conversation = ChatBuilder()
    system = body.get("system")
    texts = [system] if isinstance(system, str) else [block.get("text") for block in objects_of(system)]
    for text in texts:
        conversation.add_system(_BILLING.sub("", text) if isinstance(text, str) else "")
    for message in list_at(body, "messages"):
        content = message.get("content")
        blocks = [text_part(content)] if isinstance(content, str) else list_at(message, "content")
        match message.get("role"):
            case "assistant":
                _add_assistant(conversation, blocks)
            case "system":
                conversation.add_system(content_of([*map(_part, blocks)]))
            case _:
                _add_user(conversation, blocks)
    return conversation.messages()


def _add_assistant(conversation: ChatBuilder, blocks: list[Json]) -> None:
    for block in blocks:
        match block.get("type"):
            case "thinking":
                conversation.add_thought(str(block.get("thinking") or ""))
            case "tool_use":
                written = block.get("input", {})
                arguments = written if isinstance(written, str) else dump(written).decode()
                conversation.add_call(block.get("id"), block.get("name"), arguments)
            case kind if kind not in _SILENT:
                conversation.add_text(content_of([_part(block)]))


def _add_user(conversation: ChatBuilder, blocks: list[Json]) -> None:
    """Results first: they belong to the calls before them."""
    for block in blocks:
        if block.get("type") == "tool_result":
            conversation.add_result(block.get("tool_use_id"), _result(block))
    conversation.add_user(content_of([_part(block) for block in blocks if block.get("type") != "tool_result"]))


def _result(block: Json) -> Content:
    content = block.get("content")
    return content if isinstance(content, str) else content_of([*map(_part, objects_of(content))])


def _part(block: Json) -> Json:
    kind, source = block.get("type"), object_of(block.get("source"))
    match kind, source.get("type"):
        case "text", _:
            return text_part(block.get("text"))
        case "image", "base64":
            return image_part(f"data:{source.get('media_type') or 'image/jpeg'};base64,{source.get('data')}")
        case "image", "url":
            return image_part(source.get("url"))
        case "document", "text":
            return text_part(source.get("data"))
        case _:
            return left_out(kind)


def _tool(tool: Json) -> Json:
    function = {name: tool[name] for name in ("name", "description") if name in tool}
    return {"type": "function", "function": function | {"parameters": object_of(tool.get("input_schema"))}}


def _is_server_tool(tool: Json) -> bool:
    return str(tool.get("type") or "").startswith(_SERVER_TOOLS)


def _tool_choice(choice: Json) -> Json:
    kind = choice.get("type")
    chat: Json = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(kind, str) and kind in _TOOL_CHOICES:
        chat["tool_choice"] = _TOOL_CHOICES[kind]
    return chat
