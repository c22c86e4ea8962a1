"""What is read out of a preset file of llama.cpp's router."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.found import one, reason
from models.test_llama_swap import KNOWN
from systemd_llm_switch.models.foreign import Found
from systemd_llm_switch.models.presets import read
from systemd_llm_switch.setup.places import SetupError

Reader = Callable[[str], Found]


@pytest.fixture
def found(tmp_path: Path) -> Reader:
    """What a text holds."""

    def read_text(text: str) -> Found:
        file = tmp_path / "models.ini"
        file.write_text(text)
        return read(file, KNOWN)

    return read_text


def test_a_section_becomes_a_model(found: Reader) -> None:
    text = """\
version = 1

; usual settings
[*]
c = 8192
n-gpu-layers = 8

[my-model]   # a comment
model = /m/My Model.gguf ; another
ngl = 99
jinja = true
LLAMA_ARG_CACHE_RAM = 0
"""
    model = one(found(text))
    assert (model.name, model.file) == ("my-model", Path("/m/My Model.gguf"))
    assert model.wishes.flags == ("-c", "8192", "-ngl", "99", "--jinja", "--cache-ram", "0")


def test_a_section_goes_before_the_usual_settings_however_they_are_spelled(found: Reader) -> None:
    model = one(found("[*]\nLLAMA_ARG_CTX_SIZE = 1\n[m]\nmodel = /a.gguf\nctx-size = 2\n"))
    assert model.wishes.flags == ("--ctx-size", "2")


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("jinja = on", ("--jinja",)),
        ("jinja = false", ("--no-jinja",)),
        ("no-jinja = true", ("--no-jinja",)),
        ("no-jinja = 0", ("--jinja",)),
        ("nkvo = 1", ("--no-kv-offload",)),
        ("kv-offload = off", ("--no-kv-offload",)),
        ("mlock = true", ("--load-mode", "mlock")),
        ("mlock = false", ()),
        ("embedding = disabled", ()),
    ],
)
def test_flags_that_are_switched(found: Reader, line: str, flags: tuple[str, ...]) -> None:
    assert one(found(f"[m]\nmodel = /a.gguf\n{line}\n")).wishes.flags == flags


def test_a_section_may_be_named_like_its_repository(found: Reader) -> None:
    model = one(found("[ggml-org/MY-MODEL-GGUF:Q8_0]\nc = 4096\n"))
    assert (model.file, model.repo) == (None, "ggml-org/MY-MODEL-GGUF:Q8_0")


def test_aliases_and_what_has_no_counterpart(found: Reader) -> None:
    text = "[m]\nmodel = /a.gguf\nalias = x, y\ntags = fast\nload-on-startup = true\nstop-timeout = 30\nhost = ::\n"
    model = one(found(text))
    assert model.aliases == ("x", "y")
    assert model.wishes.flags == ()
    lost = "\n".join(model.lost)
    assert "server.preload" in lost
    assert "stop-timeout" in lost
    assert "tags" in lost


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("c = 1", "names no model"),
        ("model = /a.gguf\nno-such-thing = 1", "does not know 'no-such-thing'"),
        ("model = /a.gguf\nctx-sise = 1", "does not know 'ctx-sise'; write ctx-size"),
        ("model = /a.gguf\njinja = perhaps", "neither true nor false"),
        ("hf = a/b\nhf-file = c.gguf", "name the quantisation"),
    ],
)
def test_what_cannot_be_taken_over_says_why(found: Reader, lines: str, expected: str) -> None:
    assert expected in reason(found(f"[m]\n{lines}\n"))


def test_a_later_section_of_the_same_name_begins_anew(found: Reader) -> None:
    model = one(found("[m]\nmodel = /a.gguf\nc = 1\n[m]\nmodel = /b.gguf\n"))
    assert (model.file, model.wishes.flags) == (Path("/b.gguf"), ())


@pytest.mark.parametrize(
    "text",
    ["", "version = 1\n", "[*]\nc = 1\n", "[m\nc = 1\n", "models:\n  a: b\n", "x" * 1_100_000, "\n" * 30_000],
    ids=["empty", "no section", "only usual ones", "half a section", "YAML", "too large", "too long"],
)
def test_a_file_that_is_none_is_refused_as_a_whole(found: Reader, text: str) -> None:
    with pytest.raises(SetupError):
        found(text)
