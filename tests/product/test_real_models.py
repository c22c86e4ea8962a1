"""The main path on the real thing: real llama-server units, a real model, a real systemd, a real journal."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from support.stack import Proxy, Stack, run_all, threads_of, wait_for

RealUnit = Callable[..., str]


@pytest.fixture
def units(real_unit: RealUnit) -> dict[str, Any]:
    """Two chat models and an embedder, on one port."""
    return {
        "coder": {"unit": real_unit("coder"), "aliases": ["gpt-4o"]},
        "thinker": real_unit("thinker"),
        "embedder": real_unit("embedder", "--embedding", "--pooling", "mean"),
    }


@pytest.fixture
def proxy(stack: Stack, units: dict[str, Any]) -> Proxy:
    return stack.run(units)


def sdk(proxy: Proxy, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0, timeout=60, **options)


def ask(proxy: Proxy, model: str, **fields: Any) -> Any:
    usual: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 8, "temperature": 0}
    fields = usual | fields
    return sdk(proxy).chat.completions.create(model=model, **fields)


def test_models_are_switched_back_and_forth(proxy: Proxy, stack: Stack, units: dict[str, Any]) -> None:
    """Each answer is the asked-for model's own, and only its unit runs."""
    for model in ("coder", "thinker", "coder"):
        reply = ask(proxy, model)
        assert reply.model == model  # llama-server's --alias: whose answer it is
        assert reply.choices[0].message.content
        running = {name for name in ("coder", "thinker") if stack.active_state(_unit(units, name)) == "active"}
        assert running == {model}


def test_embeddings_switch_too(proxy: Proxy) -> None:
    """An embedding model is switched to, keeps the order, and honours encoding_format."""
    client = sdk(proxy)
    ask(proxy, "coder")
    plain = client.embeddings.create(model="embedder", input=["one", "two"], encoding_format="float")
    packed = client.embeddings.create(model="embedder", input=["one", "two"])  # the SDK asks for base64
    assert [item.index for item in plain.data] == [0, 1]
    assert len(plain.data[0].embedding) == len(packed.data[0].embedding) > 100
    assert plain.data[0].embedding == pytest.approx(packed.data[0].embedding, rel=1e-3, abs=1e-5)
    assert plain.data[0].embedding != pytest.approx(plain.data[1].embedding, rel=1e-3)


def test_an_alias_is_the_model(proxy: Proxy) -> None:
    """`gpt-4o`, an alias, is served by the coder."""
    assert ask(proxy, "gpt-4o").model == "coder"


def test_a_streamed_answer_is_the_same_as_a_plain_one(proxy: Proxy) -> None:
    """What an SDK puts together from the stream equals the non-streamed answer; usage comes when asked for."""
    plain = ask(proxy, "coder")
    chunks = list(ask(proxy, "coder", stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert text == plain.choices[0].message.content
    assert [reason for reason in reasons if reason] == [plain.choices[0].finish_reason]
    assert chunks[-1].usage.total_tokens == plain.usage.total_tokens
    assert chunks[-1].choices == []


def test_the_backend_is_never_asked_to_stream(proxy: Proxy) -> None:
    """Towards llama-server `stream` is off: its reply comes whole, with `timings` of a finished completion."""
    events = proxy.chat("coder", stream=True).events
    assert events[-1] == "[DONE]"
    final = [event for event in events[:-1] if event["choices"] and event["choices"][0]["finish_reason"]]
    assert "timings" in final[0]


def test_an_unknown_model_is_a_404_that_names_the_known_ones(proxy: Proxy) -> None:
    with pytest.raises(NotFoundError) as caught:
        ask(proxy, "nope")
    assert caught.value.code == "model_not_found"
    assert caught.value.type == "invalid_request_error"
    assert "coder" in caught.value.message
    assert proxy.status()["switches"] == []


def test_a_unit_stopped_by_hand_is_started_by_the_next_request(
    proxy: Proxy, stack: Stack, units: dict[str, Any]
) -> None:
    """`systemctl --user stop` is seen without any fork, and the request is served."""
    ask(proxy, "coder")
    stack.systemctl("stop", _unit(units, "coder"))
    assert proxy.state("coder") == "stopped"
    assert ask(proxy, "coder").model == "coder"


def test_a_model_started_by_hand_is_used_not_reloaded(proxy: Proxy, stack: Stack, units: dict[str, Any]) -> None:
    """Somebody stops the coder and starts the thinker at the shell: the next request finds the right model."""
    ask(proxy, "coder")
    stack.systemctl("stop", _unit(units, "coder"))
    stack.systemctl("start", _unit(units, "thinker"))
    pid = stack.main_pid(_unit(units, "thinker"))
    assert ask(proxy, "thinker").model == "thinker"
    assert stack.main_pid(_unit(units, "thinker")) == pid
    assert ask(proxy, "coder").model == "coder"


def test_a_killed_backend_is_restarted_by_the_next_request(proxy: Proxy, stack: Stack, units: dict[str, Any]) -> None:
    ask(proxy, "coder")
    stack.kill_main(_unit(units, "coder"))
    assert ask(proxy, "coder").model == "coder"


def test_a_restarted_proxy_adopts_the_loaded_model(stack: Stack, proxy: Proxy, units: dict[str, Any]) -> None:
    """Stopping the proxy leaves the model running; the next one neither stops nor reloads it."""
    ask(proxy, "coder")
    pid = stack.main_pid(_unit(units, "coder"))
    assert proxy.stop() == 0
    assert stack.active_state(_unit(units, "coder")) == "active"
    second = stack.start_proxy()
    wait_for(lambda: second.state("coder") == "ready")
    assert ask(second, "coder").model == "coder"
    assert stack.main_pid(_unit(units, "coder")) == pid
    assert second.status()["switches"] == []


def test_a_missing_model_file_is_reported_in_llama_servers_own_words(stack: Stack, real_unit: RealUnit) -> None:
    """The reason of a failed start is in the answer, not only in the journal."""
    unit = real_unit("lost", model="/nonexistent/model.gguf")
    answer = stack.run({"lost": unit}).chat("lost")
    assert answer.status == 503
    assert answer.error["code"] == "model_start_failed"
    assert "failed to load model" in answer.error["message"]
    assert "The model file '/nonexistent/model.gguf' is missing" in answer.error["message"]
    assert "./setup.sh --check" in answer.error["message"]


def test_a_missing_binary_is_reported(stack: Stack) -> None:
    """systemd's exit status 203 in words, and no retry that cannot help."""
    answer = stack.run({"m": stack.unit("m", "/nonexistent/llama-server --port 1")}).chat("m")
    assert answer.status == 503
    assert "203" in answer.error["message"]
    assert "cannot execute the binary" in answer.error["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_requests_for_the_loaded_model_run_side_by_side(proxy: Proxy, stack: Stack) -> None:
    """Four requests at once, one load, all answered by the coder."""
    answers = run_all(*[lambda: proxy.chat("coder", temperature=0) for _ in range(4)])
    assert [answer.status for answer in answers] == [200] * 4
    assert {answer.json["model"] for answer in answers} == {"coder"}
    assert len(proxy.status()["switches"]) == 1


def test_the_hot_path_starts_no_process(proxy: Proxy) -> None:
    """For the loaded model a request forks nothing and keeps no thread: strace's count of clone and fork is 0."""
    ask(proxy, "coder")
    wait_for(lambda: _quiet(proxy))
    threads = threads_of(proxy.process.pid)
    with subprocess.Popen(
        ["strace", "-f", "-q", "-e", "trace=clone,clone3,fork,vfork,execve", "-p", str(proxy.process.pid)],
        stderr=subprocess.PIPE, text=True,
    ) as strace:  # fmt: skip
        wait_for(lambda: "TracerPid:\t0" not in _status_of(proxy), what="strace is attached")
        for _ in range(20):
            assert proxy.chat("coder", max_tokens=1).status == 200
        strace.send_signal(signal.SIGINT)
        _, traced = strace.communicate(timeout=10)
    calls = [line for line in traced.splitlines() if re.search(r"\b(clone3?|v?fork|execve)\(", line)]
    assert calls == []
    assert threads_of(proxy.process.pid) <= threads  # one that was idle for long may end


def test_the_journal_line_of_a_request_has_its_figures_and_no_prompt(proxy: Proxy) -> None:
    secret = "the quick brown fox 4711"
    answer = proxy.chat("coder", secret)
    proxy.stop()
    line = next(line for line in proxy.log.splitlines() if " request model=coder" in line)
    assert "status=200" in line
    assert re.search(r"queue_ms=\d+\.\d switch_ms=\d+\.\d backend_ms=\d+\.\d", line)
    assert f"completion_tokens={answer.json['usage']['completion_tokens']}" in line
    assert secret not in proxy.log
    assert answer.text not in proxy.log


def test_server_timing_shows_where_the_time_went(proxy: Proxy) -> None:
    """The first request pays the switch, the second does not."""
    first, second = proxy.chat("coder"), proxy.chat("coder")
    assert first.timing("switch") > 100
    assert second.timing("switch") == 0
    assert second.timing("backend") > 0


def test_load_and_unload_by_hand(proxy: Proxy, stack: Stack, units: dict[str, Any]) -> None:
    """/api/load answers when the model is ready, /api/unload when the VRAM is free."""
    loaded = proxy.post("/api/load", {"model": "thinker"})
    assert loaded.status == 200
    assert loaded.json["state"] == "ready"
    assert stack.active_state(_unit(units, "thinker")) == "active"
    assert proxy.post("/api/unload", b"").status == 200
    assert stack.active_state(_unit(units, "thinker")) == "inactive"
    assert proxy.state("thinker") == "stopped"


def test_a_dropped_request_frees_the_backend(proxy: Proxy, stack: Stack) -> None:
    """Cancelled generation stops: another request on the only slot does not wait for it to end."""
    ask(proxy, "coder")
    client = sdk(proxy).with_options(timeout=1.0)
    with pytest.raises(Exception, match="timed out"):
        client.chat.completions.create(
            model="coder", messages=[{"role": "user", "content": "Count to 5000."}], max_tokens=3000,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
    wait_for(lambda: "status=499" in proxy.log, what="the disconnect is in the journal")
    assert proxy.status()["models"]["coder"]["in_flight"] == 0
    began = time.monotonic()
    run_all(*[lambda: proxy.chat("coder", max_tokens=1) for _ in range(2)])  # both slots
    assert time.monotonic() - began < 20  # 3000 tokens would take 60 s and more


def _unit(units: dict[str, Any], name: str) -> str:
    entry = units[name]
    return str(entry["unit"] if isinstance(entry, dict) else entry)


def _status_of(proxy: Proxy) -> str:
    return Path(f"/proc/{proxy.process.pid}/status").read_text()


def _quiet(proxy: Proxy) -> bool:
    return all(model["in_flight"] == 0 for model in proxy.status()["models"].values())
