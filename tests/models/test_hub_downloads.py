"""Downloads from a hub: the right file, whole, going on where they stopped, and the token only for the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.conftest import ONE_THREAD, Person
from models.standin_hub import StandinHub, standin_hub
from systemd_llm_switch.models.hub import Hub
from systemd_llm_switch.setup.model_files import WantedModel
from systemd_llm_switch.setup.places import SetupError

RAW = bytes(range(256)) * 20_000


@pytest.fixture
def hub() -> Iterator[StandinHub]:
    files = {
        "some-Q8_0.gguf": RAW, "some-Q4_K_M.gguf": RAW[::-1], "mmproj-F16.gguf": b"eye", "README.md": b"#",
        "BF16/some-BF16-00001-of-00002.gguf": b"one", "BF16/some-BF16-00002-of-00002.gguf": b"two",
    }  # fmt: skip
    with standin_hub(StandinHub(files=files)) as running:
        yield running


def download(hub: StandinHub, folder: Path, quant: str = "", token: str = "") -> Path:
    client = Hub(hub.url, token)
    return client.download(hub.repo, client.files_of(WantedModel(hub.repo, quant)), folder, lambda *_: None)


@pytest.mark.parametrize(
    ("quant", "name"), [("", "some-Q4_K_M.gguf"), ("Q8_0", "some-Q8_0.gguf"), ("q8_0", "some-Q8_0.gguf")]
)
def test_the_right_file_arrives_whole(hub: StandinHub, tmp_path: Path, quant: str, name: str) -> None:
    path = download(hub, tmp_path / "new", quant)
    assert path == tmp_path / "new" / name
    assert path.read_bytes() == hub.files[name]
    assert [it.name for it in path.parent.iterdir()] == [name]


def test_all_parts_arrive(hub: StandinHub, tmp_path: Path) -> None:
    path = download(hub, tmp_path, "BF16")
    assert path.name == "some-BF16-00001-of-00002.gguf"
    assert sorted(it.read_bytes() for it in tmp_path.iterdir()) == [b"one", b"two"]


def test_a_connection_that_breaks_off_is_taken_up_again(hub: StandinHub, tmp_path: Path) -> None:
    hub.cut_after = 1_000_000
    assert download(hub, tmp_path, "Q8_0").read_bytes() == RAW
    assert hub.ranges == ["", "bytes=1000000-"]


def test_a_server_that_ignores_ranges_sends_all_again(hub: StandinHub, tmp_path: Path) -> None:
    hub.cut_after, hub.ignores_range = 1_000_000, True
    assert download(hub, tmp_path, "Q8_0").read_bytes() == RAW


def test_what_is_there_is_not_downloaded_again(hub: StandinHub, tmp_path: Path) -> None:
    download(hub, tmp_path, "Q8_0")
    download(hub, tmp_path, "Q8_0")
    assert len(hub.ranges) == 1


def test_damage_is_noticed_and_nothing_stays(hub: StandinHub, tmp_path: Path) -> None:
    hub.damages = True
    with pytest.raises(SetupError, match="arrived damaged"):
        download(hub, tmp_path, "Q8_0")
    assert list(tmp_path.iterdir()) == []


def test_the_token_goes_to_the_hub_alone(hub: StandinHub, tmp_path: Path) -> None:
    hub.token = "secret"
    download(hub, tmp_path, "Q8_0", token="secret")
    assert hub.tokens_at_store == [""]


def test_a_missing_token_is_named(hub: StandinHub, tmp_path: Path) -> None:
    hub.token = "secret"
    with pytest.raises(SetupError, match="HF_TOKEN"):
        download(hub, tmp_path)


def test_a_quant_that_is_not_there_is_named_with_those_that_are(hub: StandinHub, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"some-Q4_K_M.gguf, some-Q8_0.gguf"):
        download(hub, tmp_path, "Q2_K")


@pytest.mark.parametrize("repo", ["", "x", "../y/z", "a/..", "a b/c", "a/b/c", "-x/y"])
def test_a_repository_that_cannot_be_one(repo: str) -> None:
    with pytest.raises(SetupError, match="not the name of a repository"):
        Hub("http://127.0.0.1:1", "").files_of(WantedModel(repo))


def test_a_hub_that_does_not_answer_is_named() -> None:
    with pytest.raises(SetupError, match=r"http://127.0.0.1:1 does not answer"):
        Hub("http://127.0.0.1:1", "").files_of(WantedModel("a/b"))


@pytest.mark.parametrize("listing", [b"", b"{", b"5", b'["x"]', b"[" * 100_000, b"\xff"])
def test_a_list_that_is_none_is_named(hub: StandinHub, tmp_path: Path, listing: bytes) -> None:
    hub.listing = listing
    with pytest.raises(SetupError, match="not a list of files"):
        download(hub, tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "../../evil-Q8_0.gguf", "size": 5},
        {"path": "a\nb-Q8_0.gguf", "size": 5},
        {"path": "x-Q8_0.gguf", "size": -1},
        {"path": "x-Q8_0.gguf", "size": 1 << 60},
        {"path": 5, "size": 5},
        {"path": "x-Q8_0.gguf/..", "size": 5},
    ],
)
def test_an_odd_entry_is_not_believed(hub: StandinHub, tmp_path: Path, entry: object) -> None:
    hub.listing = json.dumps([entry]).encode()
    with pytest.raises(SetupError, match="has no such model"):
        download(hub, tmp_path)


def test_more_than_the_hub_named_is_not_taken(hub: StandinHub, tmp_path: Path) -> None:
    hub.listing = json.dumps([{"path": "some-Q8_0.gguf", "size": 1000}]).encode()
    with pytest.raises(SetupError, match="more than the 1000 bytes"):
        download(hub, tmp_path)


def test_a_disk_that_is_too_small_is_named_first(hub: StandinHub, tmp_path: Path) -> None:
    hub.listing = json.dumps([{"path": "some-Q8_0.gguf", "size": 1 << 42}]).encode()
    with pytest.raises(SetupError, match=r"GB free, and the download needs 4398[.]0 GB"):
        download(hub, tmp_path)
    assert hub.ranges == []


def test_a_model_is_downloaded_added_and_asked(person: Person, model_file: Path, tmp_path: Path) -> None:
    with standin_hub(StandinHub(files={"some-Q4_1.gguf": model_file.read_bytes()})) as hub:
        env = {"HF_ENDPOINT": hub.url, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        words = ("add", "small", "-hf", f"{hub.repo}:Q4_1", "--ctx", "512", *ONE_THREAD)
        ran = person.run(*words, **env)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "tokens per second" in ran.stdout
        assert "100.0 MB of 100.0 MB" in ran.stderr or "98 MB of 98 MB" in ran.stderr
