"""The VRAM in use, as drivers report it. This machine has no card: the files and nvidia-smi are stand-ins."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.stack import Stack
from systemd_llm_switch.observe.vram import Card, Vram

GIB = 1024**3


def card(devices: Path, name: str, used: str, total: str) -> None:
    folder = devices / name / "device"
    folder.mkdir(parents=True)
    (folder / "mem_info_vram_used").write_text(used)
    (folder / "mem_info_vram_total").write_text(total)


def smi(folder: Path, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder with programs besides the shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_amdgpu_says_it_in_files(tmp_path: Path, path: Path) -> None:
    card(tmp_path / "drm", "card1", f"{3 * GIB}\n", f"{16 * GIB}\n")
    card(tmp_path / "drm", "card2", "nonsense", "1")
    assert Vram(tmp_path / "drm").cards() == [Card("card1", 3 * GIB, 16 * GIB)]


def test_nvidia_smi_says_it_for_its_cards(tmp_path: Path, path: Path) -> None:
    smi(path, "echo 'NVIDIA GeForce RTX 3090, 1024, 24576'; echo 'odd, [N/A], 5'; echo")
    assert Vram(tmp_path / "drm").cards() == [Card("NVIDIA GeForce RTX 3090", GIB, 24 * GIB)]


@pytest.mark.parametrize("script", ["echo 'it failed, with a comma'; exit 9", "exec sleep 100", "printf '\\377, 1, x'"])
def test_an_nvidia_smi_that_fails_says_nothing(tmp_path: Path, path: Path, script: str) -> None:
    smi(path, script)
    assert Vram(tmp_path / "drm").cards() == []


def test_one_reading_serves_all_who_ask_at_once(tmp_path: Path, path: Path) -> None:
    smi(path, f"echo >>{tmp_path}/runs; echo 'x, 1, 2'")
    vram = Vram(tmp_path / "drm")
    assert vram.cards() == vram.cards() == [Card("x", 1024**2, 2 * 1024**2)]
    assert (tmp_path / "runs").read_text() == "\n"


def test_the_route_lists_what_is_known(stack: Stack) -> None:
    smi(stack.folder, "echo 'x, 1, 2'")
    stack.write_config({"a": stack.standin("a")})
    proxy = stack.start_proxy(env={"PATH": f"{stack.folder}:/usr/bin:/bin"})
    cards = proxy.get("/api/vram").json["cards"]
    assert {"name": "x", "used_bytes": 1024**2, "total_bytes": 2 * 1024**2} in cards
