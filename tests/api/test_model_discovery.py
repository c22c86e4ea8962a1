"""Where the set-up finds model files: each place that llama.cpp, a browser or a person puts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from systemd_llm_switch.setup.model_files import Folders, WantedModel, find, find_incomplete, missing_parts

NEXT = WantedModel("unsloth/Qwen3-Coder-Next-GGUF", "UD-Q4_K_XL")
BGE = WantedModel("ggml-org/bge-m3-Q8_0-GGUF")
FLAT = "unsloth_Qwen3-Coder-Next-GGUF_"
FILE = "Qwen3-Coder-Next-UD-Q4_K_XL"
HUB = "models--unsloth--Qwen3-Coder-Next-GGUF/snapshots/0123abc"


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF")
    return path


def folders(home: Path, given: str = "given", **environ: str) -> Folders:
    return Folders.of(home / given, home, environ)


@pytest.mark.parametrize(
    "place",
    [
        f"given/{FLAT}{FILE}.gguf",
        f"given/{FLAT}UD-Q4_K_XL_{FILE}-00001-of-00001.gguf",
        f"given/{FILE}.gguf",
        f"given/{FILE.lower()}.gguf",
        f"given/{FILE}-00001-of-00001.gguf",
        f"given/unsloth/Qwen3-Coder-Next-GGUF/{FILE}.gguf",
        f"given/{HUB}/{FILE}.gguf",
        f".cache/llama.cpp/{FLAT}{FILE}.gguf",
        f".cache/huggingface/hub/{HUB}/{FILE}.gguf",
        f".cache/huggingface/hub/{HUB}/UD-Q4_K_XL/{FILE}-00001-of-00001.gguf",
    ],
)
def test_is_found(tmp_path: Path, place: str) -> None:
    path = put(tmp_path / place)
    assert find(NEXT, folders(tmp_path)) == path


@pytest.mark.parametrize(
    "place",
    [
        f"given/{FLAT}Qwen3-Coder-Next-Q4_K_XS.gguf",  # another quantisation
        f"given/{FLAT}mmproj-{FILE}.gguf",
        f"given/{HUB}/imatrix-{FILE}.gguf",
        f"given/other_Qwen3-Coder-Next-GGUF_{FILE}.gguf",  # another publisher's
        f"given/{FILE}.gguf.downloadInProgress",
        f"given/{FILE}2.gguf",
        f"given/{FLAT}{FILE}2.gguf",
        f"given/{HUB}/{FILE}2.gguf",
    ],
)
def test_is_not_taken_for_it(tmp_path: Path, place: str) -> None:
    put(tmp_path / place)
    assert find(NEXT, folders(tmp_path)) is None


@pytest.mark.parametrize(
    ("place", "variable", "value"),
    [
        (f"a/{HUB}/{FILE}.gguf", "LLAMA_CACHE", "a"),
        (f"a/{FLAT}{FILE}.gguf", "LLAMA_CACHE", "a"),
        (f"a/{HUB}/{FILE}.gguf", "HF_HUB_CACHE", "a"),
        (f"a/hub/{HUB}/{FILE}.gguf", "HF_HOME", "a"),
        (f"a/huggingface/hub/{HUB}/{FILE}.gguf", "XDG_CACHE_HOME", "a"),
        (f"a/llama.cpp/{FLAT}{FILE}.gguf", "XDG_CACHE_HOME", "a"),
    ],
)
def test_the_environment_moves_the_caches(tmp_path: Path, place: str, variable: str, value: str) -> None:
    path = put(tmp_path / place)
    assert find(NEXT, folders(tmp_path, **{variable: str(tmp_path / value)})) == path


def test_the_given_folder_comes_first(tmp_path: Path) -> None:
    put(tmp_path / f".cache/huggingface/hub/{HUB}/{FILE}.gguf")
    put(tmp_path / f".cache/llama.cpp/{FLAT}{FILE}.gguf")
    given = put(tmp_path / f"given/{FILE}.gguf")
    assert find(NEXT, folders(tmp_path)) == given


def test_a_split_model_is_its_first_part(tmp_path: Path) -> None:
    for number in (2, 1, 3):
        put(tmp_path / f"given/{FILE}-0000{number}-of-00003.gguf")
    assert find(NEXT, folders(tmp_path)) == tmp_path / f"given/{FILE}-00001-of-00003.gguf"


def test_an_incomplete_split_model_is_not_used_but_reported(tmp_path: Path) -> None:
    first = put(tmp_path / f"given/{FILE}-00001-of-00003.gguf")
    put(tmp_path / f"given/{FILE}-00003-of-00003.gguf")
    assert find(NEXT, folders(tmp_path)) is None
    assert find_incomplete(NEXT, folders(tmp_path)) == first
    assert missing_parts(first) == [tmp_path / f"given/{FILE}-00002-of-00003.gguf"]


def test_a_complete_model_elsewhere_beats_an_incomplete_one(tmp_path: Path) -> None:
    put(tmp_path / f"given/{FILE}-00001-of-00002.gguf")
    whole = put(tmp_path / f".cache/llama.cpp/{FLAT}{FILE}.gguf")
    assert find(NEXT, folders(tmp_path)) == whole


def test_a_dangling_link_is_not_a_model(tmp_path: Path) -> None:
    """An interrupted download leaves a snapshot's link without its blob."""
    link = tmp_path / f".cache/huggingface/hub/{HUB}/{FILE}.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../blobs/missing")
    assert find(NEXT, folders(tmp_path)) is None


def test_the_current_revision_comes_first(tmp_path: Path) -> None:
    hub = tmp_path / ".cache/huggingface/hub/models--unsloth--Qwen3-Coder-Next-GGUF"
    put(hub / f"snapshots/aaa/{FILE}.gguf")
    put(hub / f"snapshots/ccc/{FILE}.gguf")
    current = put(hub / f"snapshots/bbb/{FILE}.gguf")
    put(hub / "refs/main").write_text("bbb\n")
    assert find(NEXT, folders(tmp_path)) == current


@pytest.mark.parametrize(
    "place",
    [
        "given/bge-m3-q8_0.gguf",
        "given/ggml-org_bge-m3-Q8_0-GGUF_bge-m3-q8_0.gguf",
        ".cache/huggingface/hub/models--ggml-org--bge-m3-Q8_0-GGUF/snapshots/1/bge-m3-q8_0.gguf",
    ],
)
def test_a_model_without_a_named_quantisation_is_found(tmp_path: Path, place: str) -> None:
    path = put(tmp_path / place)
    assert find(BGE, folders(tmp_path)) == path


def test_without_a_named_quantisation_llama_cpps_default_comes_first(tmp_path: Path) -> None:
    hub = tmp_path / ".cache/huggingface/hub/models--ggml-org--bge-m3-Q8_0-GGUF/snapshots/1"
    put(hub / "bge-m3-bf16.gguf")
    default = put(hub / "bge-m3-q8_0.gguf")
    assert find(BGE, folders(tmp_path)) == default
