"""The head of a GGUF file is read within bounds, whatever the file holds."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.made import ARRAY, STRING, UINT32, header, layers, make, model, split, text
from systemd_llm_switch.gguf import NotGguf, read_header
from systemd_llm_switch.models.facts import NotAModel, Purpose, read_facts


def test_the_values_and_the_tensors_are_read(tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf", {"a": 5, "b": "x", "c": True, "d": [1, 2]}, {"one": 64, "two": 128})
    read = read_header(path)
    assert read.values == {"a": 5, "b": "x", "c": True, "d": (1, 2)}
    assert [(tensor.name, tensor.size) for tensor in read.tensors] == [("one", 64), ("two", 128)]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "it is empty"),
        (b"GGU", "does not begin with GGUF"),
        (b"PK\x03\x04 and so on", "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 99), "version 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), r"has \d+ keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), r"has \d+ tensors"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "bytes in the name of a key"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IQ", STRING, 500), "bytes in a value"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", ARRAY, UINT32, 900), "ends before"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 77), "unknown type 77"),
        (
            b"GGUF"
            + struct.pack("<IQQ", 3, 0, 1)
            + text("k")
            + struct.pack("<I", ARRAY)
            + struct.pack("<IQ", ARRAY, 1) * 9,
            "too large",
        ),
        (header({"general.alignment": 0}, {"t": 64}) + bytes(64), "alignment"),
    ],
)
def test_what_is_not_a_model_is_named(tmp_path: Path, raw: bytes, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with pytest.raises(NotGguf, match=reason) as caught:
        read_header(path)
    assert "m.gguf" in str(caught.value)


def test_arrays_that_are_too_large_together_are_not_read(tmp_path: Path) -> None:
    """Strings are skipped one by one, and there is room for many arrays of them."""
    half = struct.pack("<IIQ", ARRAY, 0, 2_600_000) + bytes(2_600_000)
    path = make(tmp_path / "m.gguf", {"a": half, "b": half}, {})
    with pytest.raises(NotGguf, match="its arrays are too large"):
        read_header(path)


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.999999])
def test_half_a_download_is_named(tmp_path: Path, model_file: Path, kept: float) -> None:
    whole = model_file.read_bytes()
    path = tmp_path / "half.gguf"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(NotGguf, match="download it again"):
        read_header(path)


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(NotGguf, match="not a regular file"):
        read_header(tmp_path / "m.gguf")


SOUND = header(model(), layers(2, 256)) + bytes(8192 + 4096)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.binary(max_size=40), st.integers(0, len(SOUND)), st.integers(0, 40))
def test_no_file_breaks_the_reader(tmp_path: Path, noise: bytes, at: int, cut: int) -> None:
    """A sound file with a piece of noise in it."""
    path = tmp_path / "m.gguf"
    path.write_bytes(SOUND[:at] + noise + SOUND[at + cut :])
    with contextlib.suppress(NotAModel):
        read_facts(path)


# --- what it says of the model ----------------------------------------------------------------------


def test_a_real_model_is_known(model_file: Path) -> None:
    facts = read_facts(model_file)
    assert (facts.architecture, len(facts.layers), facts.context) == ("llama", 30, 8192)
    assert (facts.purpose, facts.has_chat_template, facts.experts) == (Purpose.CHAT, True, 0)
    assert facts.context_bytes_per_token == 30 * 3 * (64 + 64) * 2  # 30 layers, 3 heads of 64


def test_another_real_model_is_known(gemma_file: Path) -> None:
    facts = read_facts(gemma_file)
    assert (facts.architecture, len(facts.layers), facts.purpose) == ("gemma3", 18, Purpose.CHAT)


@pytest.mark.parametrize(
    ("architecture", "more", "purpose"),
    [
        ("llama", {}, Purpose.CHAT),
        ("bert", {"attention__causal": False}, Purpose.EMBEDDING),
        ("qwen3", {"pooling_type": 3}, Purpose.EMBEDDING),
        ("qwen3", {"pooling_type": 4}, Purpose.RERANK),
        ("qwen3", {"pooling_type": 0}, Purpose.CHAT),
    ],
)
def test_what_a_model_is_for(tmp_path: Path, architecture: str, more: dict[str, object], purpose: Purpose) -> None:
    path = make(tmp_path / "m.gguf", model(architecture, **more), layers(2, 256))
    assert read_facts(path).purpose is purpose


def test_experts_are_weighed_apart(tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf", model("moe", expert_count=8), layers(3, 1024, experts=65536))
    facts = read_facts(path)
    assert (facts.experts, facts.expert_bytes) == (8, 3 * 65536)
    assert [layer.others for layer in facts.layers] == [1024] * 3
    assert (facts.embedding_bytes, facts.output_bytes) == (4096, 4096)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"general.name": "x"}, "does not say its architecture"),
        (model() | {"general.type": "adapter"}, "LoRA"),
        (model("clip"), "--mmproj"),
        (model() | {"split.count": 3}, "one of 3 parts"),
    ],
)
def test_what_cannot_be_served_alone_is_named(tmp_path: Path, values: dict[str, object], reason: str) -> None:
    with pytest.raises(NotAModel, match=reason):
        read_facts(make(tmp_path / "m.gguf", values, layers(2, 256)))


def test_a_file_without_layers_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(NotAModel, match="no layers"):
        read_facts(make(tmp_path / "m.gguf", model(), {"token_embd.weight": 64}))


def test_a_split_model_is_read_whole(tmp_path: Path, model_file: Path) -> None:
    parts = split(model_file, tmp_path, 3)
    whole, facts = read_facts(model_file), read_facts(parts[0])
    assert facts.size == sum(part.stat().st_size for part in parts)
    assert len(facts.layers) == len(whole.layers)


def test_a_missing_part_is_named(tmp_path: Path, model_file: Path) -> None:
    parts = split(model_file, tmp_path, 3)
    parts[1].unlink()
    with pytest.raises(NotAModel, match="1 of its parts are missing: model-00002-of-00003"):
        read_facts(parts[0])


def test_another_part_than_the_first_is_refused(tmp_path: Path, model_file: Path) -> None:
    parts = split(model_file, tmp_path, 3)
    with pytest.raises(NotAModel, match="name the first one, model-00001-of-00003"):
        read_facts(parts[2])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotAModel, match=r"none\.gguf does not exist"):
        read_facts(tmp_path / "none.gguf")


def test_a_device_is_not_called_missing() -> None:
    with pytest.raises(NotAModel, match="/dev/zero is not a regular file"):
        read_facts(Path("/dev/zero"))


def test_a_folder_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(NotAModel, match="is a folder; name the GGUF file in it"):
        read_facts(tmp_path)
