"""What is passed on to a loaded model's backend, its own web page and its streams included."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
from collections.abc import Callable

import pytest

from support.stack import Proxy, Stack, chat

GZIP = {"Accept-Encoding": "gzip, deflate, br", "Accept": "text/html"}
KEY = {"Authorization": "Bearer sk-mine"}


@pytest.fixture
def proxy(stack: Stack) -> Proxy:
    proxy = stack.run({"a": stack.standin("a"), "org/a": stack.standin("slash")}, max_reply_mb=1)
    proxy.chat("a")
    return proxy


def test_llama_servers_own_page_comes_compressed(stack: Stack, real_unit: Callable[..., str]) -> None:
    proxy = stack.run({"a": real_unit("a")})
    proxy.chat("a")
    answer = proxy.get("/upstream/a/", headers=GZIP)
    assert (answer.status, answer.headers["content-encoding"]) == (200, "gzip")
    assert b"<!doctype html>" in gzip.decompress(answer.body)
    plain = proxy.get("/upstream/a/")  # a client that takes no gzip, as curl
    assert (plain.status, plain.headers.get("content-encoding")) == (200, None)
    assert plain.body == gzip.decompress(answer.body)


ZIPPED = gzip.compress(b'{"a": 1}')


@pytest.mark.parametrize(
    ("zipped", "words"),
    [
        (ZIPPED[:-4], "is not valid gzip: its end is missing"),
        (b"no gzip", "is not valid gzip"),
        (ZIPPED * 2, "something follows its end"),
        (gzip.compress(bytes(2_000_000)), "is larger than 1 MB (server.max_reply_mb)"),
    ],
    ids=["cut", "other", "two", "bomb"],
)
def test_what_is_unpacked_for_a_client_is_bounded_and_sound(proxy: Proxy, zipped: bytes, words: str) -> None:
    answer = proxy.post("/upstream/a/v1/chat/completions", chat("a", standin={"zipped": zipped.hex()}))
    assert (answer.status, answer.error["code"]) == (502, "backend_error")
    assert words in answer.error["message"]


def test_a_compressed_reply_is_unpacked_for_a_client_that_takes_none(proxy: Proxy) -> None:
    answer = proxy.post("/upstream/a/v1/chat/completions", chat("a", standin={"zipped": ZIPPED.hex()}))
    assert (answer.status, answer.json, answer.headers.get("content-encoding")) == (200, {"a": 1}, None)


def test_the_page_without_its_slash_leads_to_the_one_with_it(proxy: Proxy) -> None:
    """Its own paths are relative."""
    answer = proxy.get("/upstream/a", headers=GZIP)
    assert (answer.status, answer.headers["location"]) == (308, "./a/")
    assert proxy.get("//upstream/a", headers=GZIP).headers["location"] == "./a/"
    assert proxy.get("/upstream/a").json["path"] == "/"


def test_a_stream_is_passed_on_while_it_is_written(proxy: Proxy, stack: Stack) -> None:
    """The first event is here long before the stream ends."""
    orders = {"events": ["data: one\n\n"], "linger_s": 60}
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    with contextlib.closing(connection):
        body = json.dumps({**chat("a", stream=True), "standin": orders})
        connection.request("POST", "/upstream/a/v1/chat/completions", body)
        reply = connection.getresponse()
        assert reply.getheader("Content-Type") == "text/event-stream"
        assert reply.readline() == b"data: one\n"


def test_a_stream_that_breaks_ends_its_connection(proxy: Proxy) -> None:
    orders = {"events": ["data: one\n\n"], "cut_stream": True}
    with pytest.raises(http.client.IncompleteRead):
        proxy.post("/upstream/a/v1/chat/completions", chat("a", stream=True, standin=orders))


def test_a_place_is_free_again_after_each_stream(proxy: Proxy) -> None:
    for _ in range(20):
        answer = proxy.post("/upstream/a/v1/chat/completions", chat("a", stream=True))
        assert answer.events[-1] == "[DONE]"


def test_a_conversations_field_reaches_the_backend_and_no_other_does(proxy: Proxy, stack: Stack) -> None:
    headers = {"X-Conversation-Id": "c-1::x", "X-Other": "x", "Cookie": "a=b", **KEY}
    proxy.post("/upstream/a/x", {}, headers=headers)
    assert not {"X-Conversation-Id", "X-Other", "Cookie", "Authorization"} & set(stack.seen()["headers"][-1])
    proxy.post("/upstream/a/x", {}, headers={**headers, "X-Conversation-Id": "c-1"})
    assert stack.seen()["headers"][-1]["X-Conversation-Id"] == "c-1"


def test_a_pass_opens_the_models_pages_and_nothing_else(stack: Stack) -> None:
    proxy = stack.run({"a": stack.standin("a")}, api_keys=["sk-mine"])
    assert proxy.post("/api/upstream-pass", {}).status == 401
    cookie = proxy.post("/api/upstream-pass", {}, headers=KEY).headers["set-cookie"]
    assert {"Path=/upstream/", "HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    shown = {"Cookie": f"x=y; {cookie.partition(';')[0]}"}
    assert proxy.get("/upstream/a/x", headers=shown).error["code"] == "model_not_loaded"
    assert {proxy.get(path, headers=shown).status for path in ("/api/status", "/v1/models", "/upstream")} == {401}
    wrong = {"Cookie": "llm_switch_upstream=" + "0" * 64}
    assert proxy.get("/upstream/a/x", headers=wrong).status == 401
    stack.write_config({"a": stack.standin("a")}, api_keys=["sk-other"])
    proxy.get("/api/status", headers={"Authorization": "Bearer sk-other"})
    assert proxy.get("/upstream/a/x", headers=shown).status == 401
