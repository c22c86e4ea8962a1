"""A llama-server that asks for a key gets the one that the config names for its model, and nobody else learns it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.stack import Stack, wait_for
from systemd_llm_switch.config.file import LiveConfig, load
from systemd_llm_switch.config.parse import parse
from systemd_llm_switch.config.records import ConfigError

KEY = "sk-backend-31415"


def authorizations(stack: Stack) -> list[str | None]:
    return [headers.get("Authorization") for headers in stack.seen()["headers"]]


@pytest.mark.parametrize("stream", [False, True])
def test_the_key_goes_with_each_request_and_the_clients_does_not(stack: Stack, stream: bool) -> None:
    models = {"a": {"unit": stack.standin("a"), "backend_key": KEY}}
    proxy = stack.run(models, api_keys=["sk-client"])
    headers = {"Authorization": "Bearer sk-client"}
    body = {"model": "a", "messages": [], "stream": stream}
    assert proxy.post("/v1/chat/completions", body, headers=headers).status == 200
    assert proxy.post("/upstream/a/slots", {}, headers=headers).status == 200
    assert authorizations(stack) == [f"Bearer {KEY}"] * 2


def test_a_backend_without_a_key_gets_none(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")}, api_keys=["sk-client"])
    assert proxy.post("/v1/chat/completions", {"model": "a"}, headers={"Authorization": "Bearer sk-client"}).status
    assert authorizations(stack) == [None]


def test_models_at_one_url_have_their_own_keys(stack: Stack) -> None:
    models = {name: {"unit": stack.standin(name), "backend_key": f"sk-{name}"} for name in ("a", "b")}
    proxy = stack.run(models)
    for name in ("a", "b", "a"):
        assert proxy.chat(name).status == 200
        assert authorizations(stack)[-1] == f"Bearer sk-{name}"


def test_a_real_llama_server_takes_the_key(stack: Stack, real_unit: Callable[..., str]) -> None:
    unit = real_unit("a", "--api-key", KEY)
    proxy = stack.run({"a": {"unit": unit, "backend_key": KEY}})
    assert proxy.chat("a", max_tokens=1).status == 200
    assert proxy.get("/upstream/a/props").status == 200
    assert proxy.get("/v1/models/a").json["meta"]["n_ctx"] > 0
    assert KEY not in proxy.log


@pytest.mark.parametrize("given", [None, "sk-wrong"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_that_refuses_the_key_is_a_502_that_names_the_setting(
    stack: Stack, given: str | None, stream: bool
) -> None:
    """A 401 would send the client to look for its own key."""
    unit = stack.standin("a")
    proxy = stack.run({"a": {"unit": unit} | ({"backend_key": given} if given else {})})
    answer = proxy.chat("a", stream=stream, standin={"status": 401})
    assert (answer.status, answer.error["code"]) == (502, "backend_error")
    assert "`backend_key`" in answer.error["message"]
    upstream = proxy.post("/upstream/a/props", {"standin": {"status": 401}})
    assert (upstream.status, upstream.error["code"]) == (502, "backend_error")


def test_a_real_llama_server_that_refuses_the_key(stack: Stack, real_unit: Callable[..., str]) -> None:
    proxy = stack.run({"a": {"unit": real_unit("a", "--api-key", KEY), "backend_key": "sk-wrong"}})
    answer = proxy.chat("a", max_tokens=1)
    assert (answer.status, answer.error["code"]) == (502, "backend_error")
    assert "`backend_key`" in answer.error["message"]


def test_a_changed_key_takes_effect_when_the_model_is_loaded_again(stack: Stack) -> None:
    unit = stack.standin("a")
    proxy = stack.run({"a": {"unit": unit, "backend_key": "sk-one"}})
    proxy.chat("a")
    stack.write_config({"a": {"unit": unit, "backend_key": "sk-two"}})
    proxy.chat("a")
    assert authorizations(stack) == ["Bearer sk-one"] * 2
    proxy.post("/api/unload", {"model": "a"})
    proxy.chat("a")
    assert authorizations(stack) == ["Bearer sk-two"]


def test_the_key_is_shown_nowhere(stack: Stack) -> None:
    proxy = stack.run({"a": {"unit": stack.standin("a"), "backend_key": KEY}})
    shown = [proxy.chat("a").body, proxy.chat("a", standin={"status": 401}).body]
    shown += [proxy.get(path).body for path in ("/api/status", "/v1/models", "/props?model=a")]
    proxy.chat("a", standin={"crash": 3})
    wait_for(lambda: "backend_crashed" in proxy.log)
    assert KEY.encode() not in b"".join([*shown, proxy.log.encode()])


# --- the config -----------------------------------------------------------------------------------------


def write(folder: Path, model: str, key: str | None = None) -> Path:
    if key is not None:
        (folder / "key").write_text(key)
    path = folder / "config.yaml"
    path.write_text(f"models: {{a: {{unit: a.service, {model}}}}}")
    return path


def test_the_key_may_be_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "backend_key_file: key, aliases: [x]", "# ours\n\n  sk-one \nsk-two\n")
    live = LiveConfig(path)
    config = live.current()
    assert {model.backend_key for model in (config.models["a"], config.names["x"], config.folded["x"])} == {"sk-one"}
    (tmp_path / "key").write_text("sk-three")
    assert live.current().models["a"].backend_key == "sk-three"


@pytest.mark.parametrize(
    ("model", "key", "words"),
    [
        ("backend_key: a b", None, "models.a.backend_key: must be one word of ASCII characters"),
        ('backend_key: "a\\r\\nb"', None, "models.a.backend_key: must not hold the control character"),
        ("backend_key: ä", None, "must be one word of ASCII"),
        ("backend_key: 5", None, "must be a string"),
        ("backend_key_file: key", "# none\n", "models.a.backend_key_file: .* holds no key"),
        ("backend_key_file: key", "two words", "models.a.backend_key_file: its first key must be one word"),
        ("backend_key_file: none", None, "models.a.backend_key_file: cannot read"),
        ("backend_key: k, backend_key_file: key", "k", "set either backend_key or backend_key_file, not both"),
    ],
)
def test_a_wrong_key_is_refused(tmp_path: Path, model: str, key: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(write(tmp_path, model, key))


def test_two_models_of_a_unit_have_one_key() -> None:
    models: dict[str, Any] = {"a": {"unit": "x.service", "backend_key": "k"}, "b": "x.service"}
    with pytest.raises(ConfigError, match="has another backend_key than 'a', which has the same unit"):
        parse({"models": models})


def test_no_message_and_no_record_shows_a_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "backend_key: [sk-secret]"))
    assert "sk-secret" not in str(caught.value)
    assert "sk-secret" not in repr(load(write(tmp_path, "backend_key: sk-secret")))
