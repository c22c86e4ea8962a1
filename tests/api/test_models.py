"""What programs learn of the models, and the forms of a request that are taken for the usual one."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.made import layers, make, model
from support.stack import Proxy, Stack, free_port, wait_for

CHAT = "/v1/chat/completions"


# --- /v1/models ---------------------------------------------------------------------------------------


def test_aliases_are_listed_if_the_config_says_so(stack: Stack) -> None:
    models = {"a": {"unit": stack.standin("a"), "aliases": ["x", "y"]}, "b": stack.standin("b")}
    proxy = stack.run(models, list_aliases=True)
    listed = proxy.get("/v1/models").json["data"]
    assert [entry["id"] for entry in listed] == ["a", "x", "y", "b"]
    assert [entry["aliases"] for entry in listed] == [["x", "y"]] * 3 + [[]]
    assert proxy.chat("x").status == 200
    stack.write_config(models)
    assert [entry["id"] for entry in proxy.get("/v1/models").json["data"]] == ["a", "b"]


def test_a_model_that_was_loaded_has_meta(stack: Stack) -> None:
    """Only what is known: `n_embd` is not a number here, and what nobody needs is left out."""
    proxy = stack.run({"a": stack.standin("a", "--n-ctx", "4096"), "b": stack.standin("b")})
    assert [entry.get("meta") for entry in proxy.get("/v1/models").json["data"]] == [None, None]
    proxy.chat("a")
    meta = {"n_ctx": 4096, "n_ctx_train": 131072, "n_params": 134515008, "size": 144810432}
    assert [entry.get("meta") for entry in proxy.get("/v1/models").json["data"]] == [meta, None]
    assert proxy.get("/v1/models/a").json["meta"] == meta
    proxy.chat("b")
    assert proxy.get("/v1/models/a").json["meta"] == meta  # as it was when it was loaded last
    assert "meta" not in proxy.get("/v1/models/b").json


def test_a_fact_beyond_all_numbers_is_left_out(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a", "--n-ctx", str(10**30))})
    proxy.chat("a")
    (entry,) = proxy.get("/v1/models").json["data"]
    assert "n_ctx" not in entry["meta"]
    assert entry["meta"]["n_params"] == 134515008


def test_a_backend_is_asked_once_for_each_load(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a", "--n-ctx", "4096")})
    for _ in range(2):
        proxy.chat("a")
        for _ in range(3):
            assert proxy.get("/v1/models/a").json["meta"]["n_ctx"] == 4096
        assert stack.seen()["described"] == 2  # /v1/models and /props; the stand-in counts from its own start
        proxy.post("/api/unload", {"model": "a"})


def test_a_model_without_meta_is_asked_once_too(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")})
    proxy.chat("a")
    connections = stack.seen()["connections"]
    for _ in range(5):
        assert "meta" not in proxy.get("/v1/models/a").json
    assert stack.seen()["connections"] <= connections + 2


def test_a_real_llama_server_has_meta(stack: Stack, real_unit: Callable[..., str]) -> None:
    proxy = stack.run({"a": real_unit("a")})
    assert proxy.chat("a", max_tokens=1).status == 200
    meta = proxy.get("/v1/models/a").json["meta"]
    assert meta["n_ctx"] > 0
    assert meta["n_ctx_train"] == 2048 * 4
    assert meta["n_params"] == 134515008
    assert meta["size"] > 50_000_000


def test_a_model_that_was_never_loaded_has_the_meta_of_its_file(stack: Stack, real_unit: Callable[..., str]) -> None:
    """The same as its llama-server says afterwards."""
    proxy = stack.run({"a": real_unit("a"), "b": stack.standin("b")})
    before = wait_for(lambda: proxy.get("/v1/models").json["data"][0].get("meta"))
    assert proxy.state("a") == "stopped"
    assert "meta" not in proxy.get("/v1/models/b").json
    assert proxy.chat("a", max_tokens=1).status == 200
    after = proxy.get("/v1/models/a").json["meta"]
    assert {name: before[name] for name in ("n_ctx_train", "n_params", "size")} == {
        name: after[name] for name in ("n_ctx_train", "n_params", "size")
    }
    assert before.get("n_ctx") in (None, after["n_ctx"])


def test_the_file_of_a_model_that_comes_later_is_read_too(stack: Stack, real_unit: Callable[..., str]) -> None:
    proxy = stack.run({"a": real_unit("a")})
    wait_for(lambda: proxy.get("/v1/models/a").json.get("meta"))
    stack.write_config({"a": real_unit("a"), "b": real_unit("b")})
    wait_for(lambda: proxy.get("/v1/models/b").json.get("meta"))


@pytest.mark.parametrize(
    ("words", "n_ctx"),
    [
        ("-c 8192", 8192),
        ("--ctx-size 8192 --parallel 1", 8192),
        ("--ctx-size 8192 -np 2", None),
        ("-c 0", None),
        ("-c x", None),
        ("", None),
    ],
)
def test_the_context_is_what_the_unit_says(stack: Stack, tmp_path: Path, words: str, n_ctx: int | None) -> None:
    path = make(tmp_path / "a b.gguf", model(), layers(2, 256))
    proxy = stack.run({"a": stack.unit("a", f'/bin/false --model "{path}" {words}')})
    meta = wait_for(lambda: proxy.get("/v1/models/a").json.get("meta"))
    assert meta == {"n_ctx_train": 4096, "n_params": 2176, "size": 8704} | ({"n_ctx": n_ctx} if n_ctx else {})


def test_a_file_that_is_not_a_model_gives_no_meta(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    os.mkfifo(path)
    proxy = stack.run({"a": stack.unit("a", f"/bin/false --model {path}")})
    assert "meta" not in proxy.get("/v1/models/a").json
    wait_for(lambda: "file_not_understood" in proxy.log)


# --- /props -------------------------------------------------------------------------------------------


def test_props_without_a_model_are_those_of_a_router(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")})
    props = proxy.get("/props").json
    assert props["role"] == "router"
    assert props["models_autoload"] is True
    assert props["default_generation_settings"]["n_ctx"] == 0
    assert proxy.get("/props?model=").json == props


def test_props_of_a_model_are_its_llama_servers(stack: Stack) -> None:
    models = {"org/a": {"unit": stack.standin("a", "--n-ctx", "4096"), "aliases": ["x y"]}}
    proxy = stack.run(models)
    proxy.chat("org/a")
    for name in ("org/a", "org%2Fa", "x%20y", "x+y", "ORG/A&autoload=true"):
        answer = proxy.get(f"/props?model={name}")
        assert (answer.status, answer.json["default_generation_settings"]["n_ctx"]) == (200, 4096), name


def test_props_load_no_model(stack: Stack) -> None:
    unit = stack.standin("a")
    proxy = stack.run({"a": unit})
    answer = proxy.get("/props?model=a&autoload=true")
    assert (answer.status, answer.error["code"]) == (404, "model_not_loaded")
    assert stack.active_state(unit) == "inactive"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [("model=nope", 404, "model_not_found"), ("&".join(["a=1"] * 100), 400, "invalid_request")],
)
def test_wrong_props_are_refused(stack: Stack, query: str, status: int, code: str) -> None:
    proxy = stack.run({"a": stack.standin("a")})
    answer = proxy.get(f"/props?{query}")
    assert (answer.status, answer.error["code"]) == (status, code)


# --- forms of a request -------------------------------------------------------------------------------


SAYING_X: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
WITHOUT_V1: dict[str, dict[str, Any]] = {
    "/chat/completions": SAYING_X,
    "/completions": {"prompt": "x"},
    "/embeddings": {"input": "x"},
    "/responses": {"input": "x"},
    "/messages": {**SAYING_X, "max_tokens": 8},
}


@pytest.mark.parametrize("path", WITHOUT_V1)
def test_a_route_without_its_v1_is_the_one_with_it(stack: Stack, path: str) -> None:
    """llama-server's own /completions is another one: the backend must be asked for the route with /v1."""
    proxy = stack.run({"a": stack.standin("a")})
    assert proxy.post(path, {"model": "a", **WITHOUT_V1[path]}).status == 200
    is_translated = path in ("/responses", "/messages")  # they go to the backend as chats
    assert stack.seen()["paths"] == ["/v1/chat/completions" if is_translated else f"/v1{path}"]
    wait_for(lambda: f"path=/v1{path} status=200" in proxy.log)
    assert (proxy.get(path).status, proxy.get(path).headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("name", ["openai/a", "a:latest", "A", "openai/X:latest"])
def test_a_name_is_taken_in_another_form(stack: Stack, name: str) -> None:
    models = {"a": {"unit": stack.standin("a"), "aliases": ["x"]}}
    proxy = stack.run(models)
    assert proxy.chat(name).status == 200
    wait_for(lambda: "request model=a " in proxy.log)
    stack.write_config(models, strict_names=True)
    assert proxy.chat(name).error["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/infill", "/tokenize", "/detokenize", "/apply-template"])
def test_llama_servers_own_routes_go_to_the_only_loaded_model(stack: Stack, path: str) -> None:
    proxy = stack.run({"a": stack.standin("a"), "b": stack.standin("b")})
    answer = proxy.post(path, {"content": "x"})
    assert (answer.status, answer.error["code"]) == (400, "missing_model")
    proxy.chat("b")
    assert proxy.post(path, {"content": "x"}).status == 200
    wait_for(lambda: f"request model=b path={path} status=200" in proxy.log)
    assert proxy.post(CHAT, {"messages": []}).error["code"] == "missing_model"


def test_a_model_must_be_named_where_two_are_loaded(stack: Stack) -> None:
    port = free_port()
    beside = {"unit": stack.standin("b", port=port), "vram": 0, "llama_url": f"http://127.0.0.1:{port}"}
    proxy = stack.run({"a": stack.standin("a"), "b": beside})
    assert (proxy.chat("a").status, proxy.chat("b").status) == (200, 200)
    assert proxy.post("/tokenize", {"content": "x"}).error["code"] == "missing_model"
    proxy.post("/api/unload", {"model": "a"})
    assert proxy.post("/tokenize", {"content": "x"}).status == 200


# --- /models/sse --------------------------------------------------------------------------------------


class Watcher:
    """A client of /models/sse."""

    def __init__(self, proxy: Proxy) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
        self._connection.request("GET", "/models/sse")
        self.reply = self._connection.getresponse()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.reply.close()
        self._connection.close()

    def lines(self) -> Iterator[str]:
        """What comes, until the stream ends. Fails after a minute, since comments would keep it waiting for ever."""
        deadline = time.monotonic() + 60
        while line := self.reply.readline():
            assert time.monotonic() < deadline, "the event did not come"
            yield line.decode().strip()

    def events(self) -> Iterator[dict[str, Any]]:
        return (json.loads(line[6:]) for line in self.lines() if line.startswith("data: "))


def test_each_change_of_a_models_status_is_an_event(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a", "--load-s", "1"), "b": stack.standin("b", "--load-s", "1")})
    with Watcher(proxy) as watcher:
        assert watcher.reply.headers["Content-Type"].startswith("text/event-stream")
        assert next(watcher.lines()).startswith(":")  # the head came at once, and the watch has begun
        events = watcher.events()

        def expect(*changes: tuple[str, str]) -> None:
            """These, in any order: two that happen between two looks are sent together."""
            got = [next(events) for _ in changes]
            assert {(event["model"], event["data"]["status"]) for event in got} == set(changes)
            assert {event["event"] for event in got} == {"status_change"}

        proxy.chat("a")
        expect(("a", "loading"), ("a", "loaded"))
        proxy.chat("b")
        expect(("a", "unloaded"), ("b", "loading"), ("b", "loaded"))
        proxy.post("/api/unload", {"model": "b"})
        expect(("b", "unloaded"))


def test_the_watchers_are_bounded_and_leave_their_places(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")})
    watchers = [Watcher(proxy) for _ in range(4)]
    refused = proxy.get("/models/sse")
    assert (refused.status, refused.error["code"]) == (429, "queue_full")
    for watcher in watchers:
        watcher.__exit__()

    def has_place() -> bool:
        with Watcher(proxy) as watcher:
            return watcher.reply.status == 200

    wait_for(has_place)


def test_a_watcher_does_not_delay_the_end(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")})
    with Watcher(proxy) as watcher:
        next(watcher.lines())
        proxy.process.terminate()
        assert [line for line in watcher.lines() if line.startswith("data")] == []
        assert proxy.process.wait(20) == 0
