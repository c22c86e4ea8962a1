"""The rest of a paused answer, as the model writes it: nothing repeated, nothing lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systemd_llm_switch.forward.recovery import (
    Continuation,
    PartialReply,
    chat_reply,
    completion_message,
    thinks_in_tags,
)


def event(text: str, **fields: object) -> bytes:
    return json.dumps({"content": text, "stop": False, **fields}).encode()


def written(begun: str, *pieces: str) -> str:
    """What a client gets after `begun`."""
    text = Continuation(PartialReply(text=begun))
    return "".join(text.take(event(piece)) for piece in pieces)


def test_text_goes_on_as_it_comes() -> None:
    assert written("One two", " three", " four") == " three four"


@pytest.mark.parametrize("pieces", [(" three", " four"), (" ", "three four"), ("", " three four"), ("three four",)])
def test_a_space_that_the_client_has_is_not_sent_again(pieces: tuple[str, ...]) -> None:
    assert written("One two ", *pieces) == "three four"


def test_space_beyond_the_repeated_one_stays() -> None:
    assert written("One\n", "\n", "\n", "two") == "\ntwo"


@given(st.text(alphabet="a \n", max_size=12), st.lists(st.text(alphabet="a \n", max_size=4), max_size=6))
def test_pieces_add_up_to_what_the_whole_would_be(begun: str, pieces: list[str]) -> None:
    """The same as `chat_reply` makes of a completion that came in one piece, but for space before nothing."""
    whole = chat_reply(event("".join(pieces)), "m", PartialReply(text=begun), 0)
    assert whole is not None
    assert written(begun, *pieces).rstrip() == whole["choices"][0]["message"]["content"].rstrip()


def test_the_last_event_says_how_it_ended() -> None:
    text = Continuation(PartialReply(text="One two", tokens=2))
    last = event("!", stop=True, stop_type="limit", tokens_predicted=5, tokens_evaluated=12, timings={"cache_n": 1})
    assert text.take(last) == "!"
    reply = chat_reply(text.end, "m", PartialReply(text="One two", tokens=2), 0)
    assert reply is not None
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["choices"][0]["message"]["content"] == ""
    assert reply["usage"] == {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}
    assert text.timings == {"cache_n": 1}


def test_a_stream_without_a_last_event_is_not_whole() -> None:
    text = Continuation(PartialReply(text="One two"))
    text.take(event(" three"))
    assert chat_reply(text.end, "m", PartialReply(), 0) is None


@pytest.mark.parametrize("data", [b"[]", b"{}", b'"x"', b"nonsense", b'{"error": {}}', b'{"content": 1}', b"[" * 9999])
def test_what_is_not_an_event_of_a_completion_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"completion|Expecting|nested"):
        Continuation(PartialReply()).take(data)


THINKING = PartialReply(thoughts="First, the river", goes_on_thinking=True)


def test_unfinished_thoughts_stay_open_in_the_prompt() -> None:
    sent = completion_message(b'{"messages": []}', b'{"prompt": "<|assistant|>"}', THINKING)
    assert sent is not None
    assert json.loads(sent)["prompt"] == "<|assistant|><think>\nFirst, the river"


def test_finished_thoughts_are_closed_in_the_prompt() -> None:
    begun = PartialReply(thoughts="First, the river", text="It is")
    sent = completion_message(b'{"messages": []}', b'{"prompt": "<|assistant|><think>\\n"}', begun)
    assert sent is not None
    assert json.loads(sent)["prompt"] == "<|assistant|><think>\nFirst, the river\n</think>\n\nIt is"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",\nthen it.\n</think>\n\nIt is.", {"reasoning_content": ",\nthen it.\n", "content": "It is."}),
        ("\nand so on", {"reasoning_content": "\nand so on"}),
    ],
)
def test_thoughts_that_go_on_are_thoughts(text: str, message: dict[str, str]) -> None:
    reply = chat_reply(event(text), "m", THINKING, 0)
    assert reply is not None
    assert reply["choices"][0]["message"] == {"role": "assistant", **message}


@pytest.mark.parametrize(
    ("props", "is_known"),
    [(b'{"chat_template": "<think>...</think>"}', True), (b'{"chat_template": "<|channel|>analysis"}', False),
     (b"{}", False), (b'{"chat_template": 1}', False), (b"nonsense", False), (b"[" * 99999, False)],
)  # fmt: skip
def test_a_template_shows_the_form_of_thoughts(props: bytes, is_known: bool) -> None:
    assert thinks_in_tags(props) is is_known
