"""Facts about a model from its file: its purpose, its layers, its experts, the longest context."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from systemd_llm_switch.gguf import Header, NotGguf, Value, read_header
from systemd_llm_switch.quoting import printable
from systemd_llm_switch.setup.model_files import missing_parts, parts_of
from systemd_llm_switch.setup.places import SetupError

_LAYER = re.compile(r"blk\.(\d{1,5})\.(.*)", re.DOTALL)
_EXPERTS = re.compile(r"ffn_.*_(?:ch)?exps\b")
_POOLING_RANK = 4  # llama.h: 0 none, 1 mean, 2 cls, 3 last, 4 rank
_CACHE_BYTES = 2  # for each number of the context, with llama-server's default f16
_LONGEST_NAME = 80
_MOST_LAYERS = 10_000


class NotAModel(SetupError):
    """The file is not a whole model that llama-server serves alone. The message names it, and says what is wrong."""


class Purpose(Enum):
    """What a model is for."""

    CHAT = "chat"
    EMBEDDING = "embeddings"
    RERANK = "reranking"


@dataclass(frozen=True, slots=True)
class Layer:
    """The bytes of one layer: the experts' tensors, and all others."""

    experts: int = 0
    others: int = 0

    @property
    def size(self) -> int:
        return self.experts + self.others


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model. `layers` has each layer; `embedding_bytes` stay in RAM, `output_bytes` go with the last layer."""

    path: Path  # the file, or the first part
    size: int  # bytes of all parts
    architecture: str
    name: str
    purpose: Purpose
    layers: tuple[Layer, ...]
    experts: int  # 0 for a dense model
    embedding_bytes: int
    output_bytes: int
    context: int  # tokens that it was trained for; 0 if the file does not say
    context_bytes_per_token: int  # at most: layers with a sliding window need less
    has_pooling: bool
    has_chat_template: bool

    @property
    def expert_bytes(self) -> int:
        return sum(layer.experts for layer in self.layers)


def read_facts(path: Path) -> ModelFacts:
    """Reads the headers of a model's parts.

    Raises:
        NotAModel: a part is missing or broken, or the file is not one that llama-server serves alone.
    """
    parts = parts_of(path)
    if path.is_file() and parts[0] != path:
        raise NotAModel(f"{path.name} is one part of a split model; name the first one, {parts[0].name}")
    if missing := missing_parts(path):
        raise NotAModel(_missing_sentence(path, missing))
    headers = [_header(part) for part in parts]
    values = headers[0].values
    architecture = _text(values, "general.architecture")
    _check_kind(path, values, architecture, len(parts))
    pooling = values.get(f"{architecture}.pooling_type")
    layers, embedding, output = _weigh(path, headers)
    return ModelFacts(
        path,
        sum(header.file_size for header in headers),
        architecture,
        _text(values, "general.name"),
        _purpose(values, architecture),
        layers,
        _int(values, f"{architecture}.expert_count"),
        embedding,
        output,
        _int(values, f"{architecture}.context_length"),
        _context_bytes(values, architecture),
        isinstance(pooling, int) and pooling > 0,
        "tokenizer.chat_template" in values,
    )


def _header(part: Path) -> Header:
    try:
        return read_header(part)
    except NotGguf as error:
        raise NotAModel(str(error)) from error


def _missing_sentence(path: Path, missing: list[Path]) -> str:
    if missing == [path]:
        what = "does not exist"
        if path.exists():
            what = "is a folder; name the GGUF file in it" if path.is_dir() else "is not a regular file"
        return f"{printable(str(path))} {what}"
    return f"{printable(str(path))} is split, and {len(missing)} of its parts are missing: {printable(missing[0].name)}"


def _check_kind(path: Path, values: Mapping[str, Value], architecture: str, parts: int) -> None:
    name, kind = printable(path.name), _text(values, "general.type")
    if not architecture:
        raise NotAModel(f"{name} does not say its architecture (general.architecture)")
    if kind == "adapter":
        raise NotAModel(f"{name} is a LoRA adapter; add its model, with `-- --lora {name}`")
    if kind == "mmproj" or architecture == "clip":
        raise NotAModel(f"{name} is the image part of a multimodal model; add that model, with `-- --mmproj {name}`")
    if _int(values, "split.count") not in (0, 1, parts):
        count = _int(values, "split.count")
        raise NotAModel(f"{name} is one of {count} parts, and llama-server finds the others only by the names "
                        f"NAME-00001-of-{count:05}.gguf and so on")  # fmt: skip


def _purpose(values: Mapping[str, Value], architecture: str) -> Purpose:
    """A model that pools, or whose attention is not causal, does not chat."""
    pooling = values.get(f"{architecture}.pooling_type")
    if pooling == _POOLING_RANK or f"{architecture}.classifier.output_labels" in values:
        return Purpose.RERANK
    is_encoder = values.get(f"{architecture}.attention.causal") is False
    return Purpose.EMBEDDING if is_encoder or (isinstance(pooling, int) and pooling > 0) else Purpose.CHAT


def _weigh(path: Path, headers: Iterable[Header]) -> tuple[tuple[Layer, ...], int, int]:
    """The layers, the bytes of the token embeddings, and the bytes of all other tensors."""
    experts: dict[int, int] = {}
    others: dict[int, int] = {}
    embedding = output = 0
    for tensor in (tensor for header in headers for tensor in header.tensors):
        if found := _LAYER.fullmatch(tensor.name):
            sizes = experts if _EXPERTS.match(found[2]) else others
            sizes[int(found[1])] = sizes.get(int(found[1]), 0) + tensor.size
        elif tensor.name == "token_embd.weight":
            embedding += tensor.size
        else:
            output += tensor.size
    count = max((*experts, *others), default=-1) + 1
    if not 0 < count <= _MOST_LAYERS:
        raise NotAModel(f"{printable(path.name)} has no layers; it is not a language model")
    return tuple(Layer(experts.get(at, 0), others.get(at, 0)) for at in range(count)), embedding, output


def _context_bytes(values: Mapping[str, Value], architecture: str) -> int:
    """Bytes of the context for each token, over all layers."""

    def of(key: str) -> int:
        return _int(values, f"{architecture}.{key}")

    heads = of("attention.head_count")
    per_head = of("embedding_length") // heads if heads else 0
    width = (of("attention.key_length") or per_head) + (of("attention.value_length") or per_head)
    shared = values.get(f"{architecture}.attention.head_count_kv", heads)
    total = sum(map(int, shared)) if isinstance(shared, tuple) else _as_int(shared) * of("block_count")
    return max(0, min(total * width * _CACHE_BYTES, 1 << 30))


def _int(values: Mapping[str, Value], key: str) -> int:
    return _as_int(values.get(key, 0))


def _as_int(value: Value) -> int:
    """A count. If there is one for each layer, the largest."""
    found = max(value, default=0) if isinstance(value, tuple) else value
    return max(0, int(found)) if isinstance(found, int) and abs(found) < 1 << 40 else 0


def _text(values: Mapping[str, Value], key: str) -> str:
    value = values.get(key)
    return printable(value, _LONGEST_NAME) if isinstance(value, str) else ""
