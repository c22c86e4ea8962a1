"""Replies name the model by its id, whatever its unit calls it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.stack import Proxy, Stack

MODELS: dict[str, dict[str, Any]] = {"org/coder": {}, "live": {"streaming": "live"}}


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    """Its one unit calls itself by a path, as llama-server does without `--alias`."""
    unit = stack.standin("coder", "--name", "/srv/models/coder.gguf")
    return stack.run({name: {"unit": unit, **more} for name, more in MODELS.items()})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_a_whole_reply_names_the_model_by_its_id(proxy: Proxy, model: str, path: str) -> None:
    answer = proxy.post(path, {"model": model, "messages": [], "prompt": "x", "input": "x"})
    assert (answer.status, answer.json["model"]) == (200, model)


@pytest.mark.parametrize("model", MODELS)
def test_each_chunk_of_a_stream_names_the_model_by_its_id(proxy: Proxy, model: str) -> None:
    answer = proxy.chat(model, stream=True, stream_options={"include_usage": True})
    chunks = [event for event in answer.events if event != "[DONE]"]
    assert len(chunks) > 3
    assert {chunk["model"] for chunk in chunks} == {model}


def test_a_reply_that_names_the_id_stays_byte_for_byte(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")})
    message = {"role": "assistant", "content": "hello"}
    raw = json.dumps({"model": "a", "choices": [{"message": message, "finish_reason": "stop"}]}, indent=1)
    assert proxy.chat("a", standin={"raw": raw}).body == raw.encode()
