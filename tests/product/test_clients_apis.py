"""Clients of the APIs beside chat: Anthropic's SDKs, OpenAI's responses and Agents SDK, pydantic-ai on both routes.

Each runs a tool that the model called in its text, and none takes half an answer for a whole one.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest
from agents import Agent as OpenAIAgent
from agents import OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from anthropic import Anthropic
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import AgentRunResultEvent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from support.clients import CALL_PROMPT, TEMPLATE
from support.stack import Proxy, Stack, chat, free_port

NODE = Path(__file__).parents[1] / "clients" / "anthropic-node.mjs"
MODES = ("whole", "live")
LEAK = 'I look it up.\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": "2"}}\n</tool_call>'
RAIN = "2 days of rain in Oslo."
FENCED = "```json\n{'city': 'Oslo', 'days': '2',}\n```"
HALF = 'data: {"choices": [{"index": 0, "delta": {"content": "Half an"}}]}\n\n'
COLD = {"temperature": 0}  # a field that Anthropic's SDK no longer knows
Json = dict[str, Any]


class Weather(BaseModel):
    """What the tests ask for."""

    city: Literal["Paris", "Oslo"]
    days: int


SCHEMA = Weather.model_json_schema()
TOOL: Any = {"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA}
FUNCTION: Any = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": False}


def weather_of(city: str, days: int) -> str:
    return f"{days} days of rain in {city}."


def _says(text: str) -> Json:
    deltas = [{"role": "assistant"}, *({"content": text[at : at + 4]} for at in range(0, len(text), 4))]
    return {"message": {"role": "assistant", "content": text}, "deltas": deltas}


@pytest.fixture(scope="module")
def proxy(module_stack: Stack, module_real_unit: Callable[..., str]) -> Proxy:
    """Of each model one that streams `live` and one that does not; the stand-in's ones fit beside the real one."""
    port = free_port()
    real = module_real_unit("real", "--chat-template-file", str(TEMPLATE))
    standin: Json = {
        "unit": module_stack.standin("standin", port=port), "llama_url": f"http://127.0.0.1:{port}", "vram": 0,
    }  # fmt: skip
    orders: dict[str, Json] = {
        "leaking": _says(LEAK) | {"then": _says("It rains.")},
        "fencing": _says(FENCED),
        "dying": {"events": [HALF], "cut": True},
    }
    models: dict[str, Any] = {}
    for mode, streaming in (("whole", "buffered"), ("live", "live")):
        models[f"real-{mode}"] = {"unit": real, "streaming": streaming}
        for name, order in orders.items():
            models[f"{name}-{mode}"] = standin | {"streaming": streaming, "force": {"standin": order}}
    proxy = module_stack.run(models)
    assert proxy.chat("leaking-whole").status == 200
    return proxy


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def claude(proxy: Proxy) -> Anthropic:
    return Anthropic(base_url=proxy.url, api_key="none", max_retries=0, timeout=60)


@pytest.fixture
def client(proxy: Proxy) -> OpenAI:
    return OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0, timeout=60)


def message_of(claude: Anthropic, streamed: bool, **fields: Any) -> Any:
    """A message, as the SDK has it in the end."""
    if not streamed:
        return claude.messages.create(**fields)
    with claude.messages.stream(**fields) as stream:
        return stream.get_final_message()


def response_of(client: OpenAI, streamed: bool, **fields: Any) -> Any:
    """A response, as the SDK has it in the end (`get_final_response` takes none that was cut)."""
    if not streamed:
        return client.responses.create(**fields)
    with client.responses.stream(**fields) as stream:
        *_, last = stream
    assert last.type in ("response.completed", "response.incomplete")
    return last.response


# --- Anthropic's SDK --------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_anthropics_sdk_gets_a_leaked_call_and_answers_it(claude: Anthropic, mode: str, streamed: bool) -> None:
    asked: list[Any] = [{"role": "user", "content": "Rain in Oslo?"}]
    fields: Json = {"model": f"leaking-{mode}", "max_tokens": 99, "tools": [TOOL]}
    message = message_of(claude, streamed, messages=asked, **fields)
    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 5)
    call = message.content[1]
    assert call.input == {"city": "Oslo", "days": 2}
    asked += [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": RAIN}]},
    ]
    assert message_of(claude, streamed, messages=asked, **fields).content[0].text == "It rains."


def test_anthropics_sdk_raises_what_a_dying_model_leaves(claude: Anthropic) -> None:
    """It would return "Half an" as the message if the error had no name."""
    with pytest.raises(anthropic.APIStatusError, match="ended early"):
        message_of(claude, True, model="dying-live", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])


def test_anthropics_sdk_raises_errors_by_their_kind(claude: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="'nope' does not exist") as caught:
        claude.messages.create(model="nope", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]


def node(proxy: Proxy, case: str, **order: Any) -> Any:
    command = ["node", str(NODE), case, json.dumps({"url": proxy.url, "tool": TOOL, **order})]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize("streamed", [False, True])
def test_anthropics_node_sdk_gets_a_leaked_call_and_answers_it(proxy: Proxy, mode: str, streamed: bool) -> None:
    told = node(proxy, "round", model=f"leaking-{mode}", stream=streamed)
    assert told == {"input": {"city": "Oslo", "days": 2}, "stop": "tool_use", "answer": "It rains."}


def test_anthropics_node_sdk_raises_what_a_dying_model_leaves(proxy: Proxy) -> None:
    assert "ended early" in node(proxy, "fail", model="dying-live", stream=True)["message"]


# --- OpenAI's responses -----------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_responses_have_a_leaked_call_and_take_its_result(client: OpenAI, mode: str, streamed: bool) -> None:
    asked: list[Any] = [{"role": "user", "content": "Rain in Oslo?"}]
    fields: Json = {"model": f"leaking-{mode}", "tools": [FUNCTION]}
    response = response_of(client, streamed, input=asked, **fields)
    assert [item.type for item in response.output] == ["message", "function_call"]
    assert (response.status, response.output_text) == ("completed", "I look it up.")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (3, 5)
    call = response.output[1]
    assert json.loads(call.arguments) == {"city": "Oslo", "days": 2}
    asked += [*response.output, {"type": "function_call_output", "call_id": call.call_id, "output": RAIN}]
    assert response_of(client, streamed, input=asked, **fields).output_text == "It rains."


@pytest.mark.parametrize("streamed", [False, True])
def test_a_parsed_response_is_what_was_asked_for(client: OpenAI, mode: str, streamed: bool) -> None:
    fields: Json = {"model": f"fencing-{mode}", "input": "Rain?", "text_format": Weather}
    if streamed:
        with client.responses.stream(**fields) as stream:
            parsed = stream.get_final_response().output_parsed
    else:
        parsed = client.responses.parse(**fields).output_parsed
    assert parsed == Weather(city="Oslo", days=2)


def test_responses_raise_what_a_dying_model_leaves(client: OpenAI) -> None:
    with pytest.raises(openai.APIError, match="ended early"):
        response_of(client, True, model="dying-live", input="Hi")


# --- agents -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_openais_agent_runs_the_leaked_call(proxy: Proxy, mode: str, streamed: bool) -> None:
    set_tracing_disabled(True)
    model = OpenAIResponsesModel(f"leaking-{mode}", AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none"))
    results: list[str] = []

    @function_tool
    def get_weather(city: str, days: int) -> str:
        """The weather of the next days."""
        results.append(weather_of(city, days))
        return results[-1]

    agent = OpenAIAgent(name="a", model=model, tools=[get_weather])

    async def run() -> object:
        if not streamed:
            return (await Runner.run(agent, "Rain in Oslo?")).final_output
        running = Runner.run_streamed(agent, "Rain in Oslo?")
        async for _ in running.stream_events():
            continue
        return running.final_output

    assert asyncio.run(run()) == "It rains."
    assert results == [RAIN]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("route", ["messages", "responses"])
def test_pydantics_agent_runs_the_leaked_call(proxy: Proxy, route: str, mode: str, streamed: bool) -> None:
    results: list[str] = []

    def get_weather(city: str, days: int) -> str:
        """The weather of the next days."""
        results.append(weather_of(city, days))
        return results[-1]

    async def run() -> str:
        agent = PydanticAgent(pydantics_model(proxy, route, f"leaking-{mode}"), tools=[get_weather])
        if not streamed:
            return (await agent.run("Rain in Oslo?")).output
        async with agent.run_stream_events("Rain in Oslo?") as events:
            async for event in events:
                if isinstance(event, AgentRunResultEvent):
                    return str(event.result.output)
        return ""

    assert asyncio.run(run()) == "It rains."
    assert results == [RAIN]


def pydantics_model(proxy: Proxy, route: str, name: str) -> Any:
    if route == "messages":
        return AnthropicModel(name, provider=AnthropicProvider(api_key="none", base_url=proxy.url))
    return PydanticResponsesModel(name, provider=OpenAIProvider(api_key="none", base_url=f"{proxy.url}/v1"))


# --- the real model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_both_apis_say_what_the_real_model_says_in_a_chat(
    proxy: Proxy, claude: Anthropic, client: OpenAI, mode: str, streamed: bool
) -> None:
    asked: Any = chat(f"real-{mode}", temperature=0)
    meant = proxy.post("/v1/chat/completions", asked).json
    text, usage = meant["choices"][0]["message"]["content"], meant["usage"]
    message = message_of(claude, streamed, **chat(f"real-{mode}"), extra_body=COLD)
    response = response_of(client, streamed, model=asked["model"], input="Say hi.", max_output_tokens=8, temperature=0)
    assert (message.content[0].text, response.output_text) == (text, text)
    assert (message.stop_reason, response.status) == ("max_tokens", "incomplete")
    counts = (usage["prompt_tokens"], usage["completion_tokens"])
    read = message.usage.input_tokens + message.usage.cache_read_input_tokens
    assert (read, message.usage.output_tokens) == counts
    assert (response.usage.input_tokens, response.usage.output_tokens) == counts


@pytest.mark.parametrize("streamed", [False, True])
def test_the_real_model_calls_the_tool_that_is_required(
    claude: Anthropic, client: OpenAI, mode: str, streamed: bool
) -> None:
    prompt, model = CALL_PROMPT.replace("NAME", "get_weather"), f"real-{mode}"
    other = {"name": "get_news", "description": "News.", "input_schema": SCHEMA}
    message = message_of(
        claude, streamed, model=model, max_tokens=64, extra_body=COLD, messages=[{"role": "user", "content": prompt}],
        tools=[other, TOOL], tool_choice={"type": "tool", "name": "get_weather"},
    )  # fmt: skip
    response = response_of(
        client, streamed, model=model, max_output_tokens=64, temperature=0, input=prompt, tools=[FUNCTION],
        tool_choice={"type": "function", "name": "get_weather"},
    )  # fmt: skip
    assert Weather.model_validate(message.content[-1].input)
    assert Weather.model_validate_json(response.output[-1].arguments)
