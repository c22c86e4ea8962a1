"""A request of OpenAI's responses API, as a chat request (https://platform.openai.com/docs/api-reference/responses)."""

from __future__ import annotations

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
from systemd_llm_switch.dialects.responses_tools import Tools, arguments_of_free_text, flat_name
from systemd_llm_switch.errors import InvalidRequest
from systemd_llm_switch.openai.shapes import Json, object_of, objects_of

# What has another name in a chat, or no meaning for llama-server. Other fields are passed on, its own among them.
_CONSUMED = frozenset(
    ("input", "instructions", "tools", "tool_choice", "text", "max_output_tokens", "reasoning", "background",
     "client_metadata", "context_management", "conversation", "include", "max_tool_calls", "metadata",
     "previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
     "service_tier", "store", "top_logprobs", "truncation", "user", "stream_options")
)  # fmt: skip
_NEEDS_STORE = ("previous_response_id", "conversation", "prompt")
_NO_STORE = "this proxy stores no responses and no prompts; send the whole conversation as `input`"
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def chat_of_responses(body: Json) -> Json:
    """The chat request that asks the same.

    Raises:
        InvalidRequest: it is not a request of this API, or needs what was stored.
    """
    for name in _NEEDS_STORE:
        if body.get(name):
            raise InvalidRequest(f"`{name}` is not supported: {_NO_STORE}", param=name)
    chat = {name: value for name, value in body.items() if name not in _CONSUMED}
    chat["messages"] = _conversation(body)
    tools = Tools(body).functions
    chat |= _tool_choice(body.get("tool_choice"), tools)
    if tools:
        chat.setdefault("tools", tools)
    if body.get("max_output_tokens") is not None:
        chat["max_tokens"] = body["max_output_tokens"]
    if effort := object_of(body.get("reasoning")).get("effort"):
        chat["reasoning_effort"] = effort
        chat = with_thinking(chat, effort=effort)
    return chat | _response_format(object_of(object_of(body.get("text")).get("format")))


def _conversation(body: Json) -> list[Json]:
    conversation = ChatBuilder()
    if isinstance(instructions := body.get("instructions"), str):
        conversation.add_system(instructions)
    given = body.get("input")
    if isinstance(given, str):
        conversation.add_user(given)
    else:
        for item in list_at(body, "input"):
            _add(conversation, item)
    messages = conversation.messages()
    if not messages:
        raise InvalidRequest("the request has no `input`: a string or a list of items", param="input")
    return messages


def _add(conversation: ChatBuilder, item: Json) -> None:
    match item.get("type", "message"):
        case "message":
            _add_message(conversation, item.get("role"), _content(item.get("content")))
        case "function_call":
            name = flat_name(item.get("name"), item.get("namespace"))
            conversation.add_call(item.get("call_id"), name, item.get("arguments"))
        case "custom_tool_call":
            name = flat_name(item.get("name"), item.get("namespace"))
            conversation.add_call(item.get("call_id"), name, arguments_of_free_text(item.get("input")))
        case "function_call_output" | "custom_tool_call_output":
            conversation.add_result(item.get("call_id"), _content(item.get("output")))
        case "reasoning":
            texts = objects_of(item.get("content")) or objects_of(item.get("summary"))
            conversation.add_thought("\n".join(str(it.get("text") or "") for it in texts))
        case "item_reference":
            raise InvalidRequest(f"an `item_reference` is not supported: {_NO_STORE}", param="input")


def _add_message(conversation: ChatBuilder, role: object, content: Content) -> None:
    match role:
        case "assistant":
            conversation.add_text(content)
        case "system" | "developer":
            conversation.add_system(content)
        case _:
            conversation.add_user(content)


def _content(content: object) -> Content:
    return content if isinstance(content, str) else content_of([*map(_part, objects_of(content))])


def _part(part: Json) -> Json:
    kind = part.get("type")
    if kind in _TEXTS:
        return text_part(part.get("text"))
    if kind == "refusal":
        return text_part(part.get("refusal"))
    if kind == "input_image" and isinstance(url := part.get("image_url"), str):
        return image_part(url)
    return left_out(kind)


def _tool_choice(choice: object, tools: list[Json]) -> Json:
    if not isinstance(choice, dict):
        return {} if choice is None else {"tool_choice": choice}
    if choice.get("type") == "allowed_tools":
        allowed = {flat_name(it.get("name"), it.get("namespace")) for it in objects_of(choice.get("tools"))}
        some = [tool for tool in tools if tool["function"]["name"] in allowed]
        return {"tool_choice": choice.get("mode") or "auto"} | ({"tools": some} if some else {})
    if choice.get("type") in ("function", "custom"):
        name = flat_name(choice.get("name"), choice.get("namespace"))
        return {"tool_choice": {"type": "function", "function": {"name": name}}}
    return {}


def _response_format(wanted: Json) -> Json:
    match wanted.get("type"):
        case "json_schema":
            fields = {name: value for name, value in wanted.items() if name != "type"}
            return {"response_format": {"type": "json_schema", "json_schema": fields}}
        case "json_object":
            return {"response_format": {"type": "json_object"}}
        case _:
            return {}
