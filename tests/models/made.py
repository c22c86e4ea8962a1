"""GGUF files that a test makes: small ones of any content, sparse ones of any size, and a real one split in parts."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

F32, STRING, ARRAY, UINT32, BOOL = 0, 8, 9, 4, 7
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(it: object) -> bytes:
    """One value with its type."""
    if isinstance(it, bytes):  # as it is
        return it
    if isinstance(it, bool):
        return struct.pack("<I?", BOOL, it)
    if isinstance(it, int):
        return struct.pack("<II", UINT32, it)
    if isinstance(it, list):
        return struct.pack("<IIQ", ARRAY, UINT32, len(it)) + struct.pack(f"<{len(it)}I", *it)
    return struct.pack("<I", STRING) + text(str(it))


def header(values: Mapping[str, object], tensors: Mapping[str, int] = {}) -> bytes:
    """A head with these tensors, each of so many bytes of F32."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    out += b"".join(text(key) + value(it) for key, it in values.items())
    offset = 0
    for name, size in tensors.items():
        out += text(name) + struct.pack("<IQIQ", 1, size // 4, F32, offset)
        offset += math.ceil(size / 32) * 32
    return out + bytes(-len(out) % 32)


def make(path: Path, values: Mapping[str, object], tensors: Mapping[str, int]) -> Path:
    """A whole file; its data are a hole that takes no space."""
    head = header(values, tensors)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(math.ceil(size / 32) * 32 for size in tensors.values()))
    return path


def model(architecture: str = "llama", layers: object = 2, **more: object) -> dict[str, object]:
    """The metadata of a model; `a__b` is written `a.b`, and the architecture before it."""
    own = {f"{architecture}.{key.replace('__', '.')}": it for key, it in more.items()}
    return {
        "general.architecture": architecture, "general.name": "Made", f"{architecture}.block_count": layers,
        f"{architecture}.context_length": 4096, f"{architecture}.embedding_length": 64,
        f"{architecture}.attention.head_count": 4, **own,
    }  # fmt: skip


def layers(count: int, others: int, experts: int = 0) -> dict[str, int]:
    """The tensors of so many layers, with so many bytes each."""
    found = {"token_embd.weight": 4096, "output.weight": 4096}
    for at in range(count):
        found[f"blk.{at}.attn_q.weight"] = others
        if experts:
            found[f"blk.{at}.ffn_up_exps.weight"] = experts
    return found


# --- a real model in parts --------------------------------------------------------------------------


@dataclass
class _Real:
    """A file's own bytes: its keys, and each tensor's description without its place, with its data."""

    keys: bytes
    count: int
    tensors: list[tuple[bytes, bytes]]


def split(file: Path, folder: Path, parts: int, name: str = "model") -> list[Path]:
    """The same model in parts, as llama-gguf-split writes them."""
    real = _read(file.read_bytes())
    per_part = math.ceil(len(real.tensors) / parts)
    paths = []
    for number in range(parts):
        chosen = real.tensors[number * per_part : (number + 1) * per_part]
        own = (
            text("split.no") + struct.pack("<IH", 2, number)
            + text("split.count") + struct.pack("<IH", 2, parts)
            + text("split.tensors.count") + struct.pack("<Ii", 5, len(real.tensors))
        )  # fmt: skip
        keys, count = (real.keys, real.count) if number == 0 else (b"", 0)
        head = b"GGUF" + struct.pack("<IQQ", 3, len(chosen), count + 3) + keys + own
        offset, data = 0, []
        for described, raw in chosen:
            head += described + struct.pack("<Q", offset)
            data += [raw, bytes(-len(raw) % 32)]
            offset += len(raw) + len(data[-1])
        path = folder / f"{name}-{number + 1:05}-of-{parts:05}.gguf"
        path.write_bytes(b"".join((head, bytes(-len(head) % 32), *data)))
        paths.append(path)
    return paths


def _read(raw: bytes) -> _Real:
    tensors, count = struct.unpack_from("<QQ", raw, 8)
    at = 24
    for _ in range(count):
        at = _after_text(raw, at)
        at = _after_value(raw, at + 4, struct.unpack_from("<I", raw, at)[0])
    keys = raw[24:at]
    found = []
    for _ in range(tensors):
        begin, at = at, _after_text(raw, at)
        at += 4 + 8 * struct.unpack_from("<I", raw, at)[0] + 4
        found.append((raw[begin:at], struct.unpack_from("<Q", raw, at)[0]))
        at += 8
    data = math.ceil(at / 32) * 32
    places = sorted(offset for _, offset in found)
    ends = dict(zip(places, [*places[1:], len(raw) - data], strict=True))
    return _Real(keys, count, [(it, raw[data + begin : data + ends[begin]]) for it, begin in found])


def _after_text(raw: bytes, at: int) -> int:
    return at + 8 + int(struct.unpack_from("<Q", raw, at)[0])


def _after_value(raw: bytes, at: int, kind: int) -> int:
    if kind == STRING:
        return _after_text(raw, at)
    if kind != ARRAY:
        return at + _WIDTHS[kind]
    kind, count = struct.unpack_from("<IQ", raw, at)
    at += 12
    if kind != STRING:
        return at + int(count) * _WIDTHS[kind]
    for _ in range(count):
        at = _after_text(raw, at)
    return at
