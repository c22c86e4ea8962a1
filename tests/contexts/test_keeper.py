"""What is saved and restored, by the keeper alone, with a real llama-server and a real model."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contexts.bed import TITLE, LlamaServer, conversation, goes_on, running
from support.stack import wait_for
from systemd_llm_switch.config.records import Config, ContextSettings, Model, ServerSettings
from systemd_llm_switch.contexts.fingerprint import fingerprint
from systemd_llm_switch.contexts.keeper import Contexts
from systemd_llm_switch.contexts.records import Loaded, Restored
from systemd_llm_switch.contexts.unit import Command

MODEL = Model("m", "m.service", "http://127.0.0.1:1")


def config(*models: Model, **settings: Any) -> Config:
    named = {model.id: model for model in models or (MODEL,)}
    return Config(ServerSettings(contexts=ContextSettings(**settings)), named, named)


class Bed:
    """A keeper, and the llama-servers that come and go as switches would have it."""

    def __init__(self, llama_server: Path, model_file: Path, folder: Path) -> None:
        self.slots = folder / "slots"
        self.slots.mkdir(mode=0o700)
        self.folder = folder
        self.keeper = Contexts(config())
        self._words = [str(llama_server), "-m", str(model_file), "-t", "1", "-c", "2048", "--jinja"]
        self.server: LlamaServer
        self.loaded: Loaded

    def load(self, *options: str, wanted: Sequence[Any] = (), model: Model = MODEL, adopted: bool = False) -> Restored:
        """A process becomes ready; requests with these messages wait for it."""
        words = [*self._words, "--slot-save-path", str(self.slots), *(options or ("-np", "1"))]
        self._running = running(words, self.folder)
        self.server = self._running.__enter__()
        # As a unit has it, the same words at each start: but for the port, which a unit has for itself.
        command = Command.of(words)
        self.loaded = Loaded(
            model, self.server.backend, command, str(self.server.port), self.server.process.pid, is_adopted=False
        )
        if adopted:
            command = Command.of(self.server.command)
            self.loaded = replace(self.loaded, command=command, is_adopted=True)
        self.keeper.ready(self.loaded)
        return self.keeper.restore(self.loaded, [fingerprint({"messages": messages}) for messages in wanted])

    def chat(self, messages: list[dict[str, str]], **fields: Any) -> Any:
        """A request, as the proxy has it noted; the reply."""
        body, message, reply = self.server.chat(messages, **fields)
        unit, start = self.loaded.model.unit, self.loaded.start
        self.keeper.note_reply(unit, start, lambda: fingerprint(body), message, True, reply["timings"])
        return reply

    def unload(self, *, save: bool = True) -> None:
        if save:
            self.keeper.save(self.loaded)
        self.stop()

    def stop(self) -> None:
        self._running.__exit__(None, None, None)

    @property
    def kept(self) -> list[int]:
        """How many tokens each file has."""
        store = next(iter(self.keeper._stores.values()))
        return [entry.tokens for entry in store.entries]


@pytest.fixture
def bed(llama_server: Path, model_file: Path, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(llama_server, model_file, tmp_path)
    yield bed
    if hasattr(bed, "server"):
        bed.server.stop()


def answer(reply: Any) -> str:
    return str(reply["choices"][0]["message"]["content"])


def cached(reply: Any) -> int:
    return int(reply["timings"]["cache_n"])


def test_a_conversation_is_read_back_and_its_answer_is_the_same(bed: Bed) -> None:
    """At temperature 0, a model that stayed loaded and one that was restored say the same."""
    first = conversation(1)
    bed.load()
    more = goes_on(first, answer(bed.chat(first)))
    bed.keeper.save(bed.loaded)
    stayed = answer(bed.chat(more, max_tokens=24))
    bed.stop()
    assert bed.load(wanted=[more]).tokens > 200
    reply = bed.chat(more, max_tokens=24)
    assert answer(reply) == stayed
    assert cached(reply) > 200
    totals = bed.keeper.totals()
    assert (totals.saves, totals.restores) == (1, 1)
    assert totals.tokens_reused == cached(reply)
    assert totals.saved_s > 0


@pytest.mark.parametrize("options", [("-np", "1"), ("-np", "2"), ("-np", "2", "--kv-unified"), ()], ids=str)
def test_a_title_request_does_not_cost_the_conversation(bed: Bed, options: tuple[str, ...]) -> None:
    first = conversation(1)
    bed.load(*(options or ("--slots",)))
    more = goes_on(first, answer(bed.chat(first)))
    bed.chat(TITLE)
    bed.unload()
    bed.load(*(options or ("--slots",)), wanted=[more])
    assert cached(bed.chat(more)) > 200


def test_the_conversation_that_is_waited_for_is_restored_first(bed: Bed) -> None:
    bed.load()
    said = {number: answer(bed.chat(conversation(number))) for number in (1, 2)}
    bed.unload()
    assert len(bed.kept) == 2
    for number in (1, 2):
        more = goes_on(conversation(number), said[number])
        bed.load(wanted=[more])
        assert cached(bed.chat(more)) > 200
        bed.unload(save=False)


def test_a_shorter_save_never_replaces_a_longer_one(bed: Bed) -> None:
    bed.load()
    bed.chat(conversation(1, words=240))
    bed.unload()
    before = bed.kept
    bed.load("-np", "1")
    bed.chat(conversation(1, words=230))
    bed.unload()
    assert bed.kept == before


def test_a_conversation_that_went_on_replaces_its_file(bed: Bed) -> None:
    first = conversation(1)
    bed.load()
    more = goes_on(first, answer(bed.chat(first)))
    bed.unload()
    bed.load(wanted=[more])
    bed.chat([*more[:-1], *conversation(2)])
    bed.unload()
    assert len(bed.kept) == 1
    assert bed.kept[0] > 400


def test_a_short_prompt_is_left_alone(bed: Bed) -> None:
    bed.load()
    bed.chat(TITLE)
    bed.unload()
    assert list(bed.slots.iterdir()) == []


def test_an_adopted_process_is_saved_without_a_request_since(bed: Bed) -> None:
    bed.load(adopted=True)
    bed.server.chat(conversation(1))
    bed.unload()
    assert len(bed.kept) == 1


def test_an_adopted_process_of_another_command_is_left_alone(bed: Bed) -> None:
    bed.load(adopted=True)
    other = replace(bed.loaded, command=Command.of([*bed.server.command, "-c", "1024"]))
    bed.keeper.ready(other)
    bed.chat(conversation(1))
    bed.keeper.save(other)
    assert list(bed.slots.iterdir()) == []
    assert "changed" in str(bed.keeper.model_status(MODEL).why)


def test_other_arguments_delete_what_was_saved(bed: Bed) -> None:
    bed.load()
    bed.chat(conversation(1))
    bed.unload()
    assert bed.load("-np", "1", "--ctx-size", "1024", wanted=[conversation(1)]).tokens == 0
    assert list(bed.slots.iterdir()) == []


def test_another_model_file_deletes_what_was_saved(bed: Bed, model_file: Path) -> None:
    copy = bed.folder / "m.gguf"
    os.link(model_file, copy)
    bed._words[2] = str(copy)
    bed.load()
    bed.chat(conversation(1))
    bed.unload()
    copy.unlink()
    copy.write_bytes(model_file.read_bytes())
    assert bed.load(wanted=[conversation(1)]).tokens == 0
    assert list(bed.slots.iterdir()) == []


def test_a_model_file_that_changed_while_loaded_is_not_saved_for(bed: Bed, model_file: Path) -> None:
    copy = bed.folder / "m.gguf"
    copy.write_bytes(model_file.read_bytes())
    bed._words[2] = str(copy)
    bed.load()
    bed.chat(conversation(1))
    os.utime(copy, (1, 1))
    bed.unload()
    assert list(bed.slots.iterdir()) == []


def test_a_cut_file_costs_one_cold_read_and_is_removed(bed: Bed) -> None:
    bed.load()
    bed.chat(conversation(1))
    bed.unload()
    file = next(bed.slots.glob("*.ctx"))
    os.truncate(file, file.stat().st_size // 2)
    assert bed.load(wanted=[conversation(1)]).tokens == 0
    assert not file.exists()
    assert cached(bed.chat(conversation(1))) == 0


def test_a_file_that_the_backend_refuses_is_removed(bed: Bed) -> None:
    """Of the right size and time, but not what llama-server wrote."""
    bed.load()
    bed.chat(conversation(1))
    bed.unload()
    file = next(bed.slots.glob("*.ctx"))
    found = file.stat()
    with file.open("r+b") as handle:
        handle.write(bytes(64))
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert bed.load(wanted=[conversation(1)]).tokens == 0
    assert list(bed.slots.iterdir()) == []
    assert cached(bed.chat(conversation(1))) == 0


def test_two_models_share_a_folder(bed: Bed) -> None:
    other = Model("other", "other.service", "http://127.0.0.1:2")
    bed.keeper.configure(config(MODEL, other))
    for model in (MODEL, other):
        bed.load(model=model)
        bed.chat(conversation(1))
        bed.unload()
    assert [bed.keeper.model_status(model).kept for model in (MODEL, other)] == [1, 1]
    ids, size = bed.keeper.forget([other])
    assert ids == ["other"]
    assert size > 1_000_000
    assert [bed.keeper.model_status(model).kept for model in (MODEL, other)] == [1, 0]
    assert bed.load(wanted=[conversation(1)]).tokens > 200


def test_what_was_forgotten_is_not_saved_by_the_loaded_process(bed: Bed) -> None:
    bed.load()
    bed.chat(conversation(1))
    bed.keeper.forget([MODEL])
    bed.unload()
    assert list(bed.slots.iterdir()) == []


def test_the_least_recently_used_go_first(bed: Bed) -> None:
    bed.load()
    bed.chat(conversation(1))
    bed.unload()
    size = bed.keeper.totals().bytes
    bed.keeper.configure(config(max_gb=size * 1.5 / 1e9))
    bed.load()
    bed.chat(conversation(2))
    bed.unload()
    assert bed.keeper.totals().bytes <= size * 1.5
    more = goes_on(conversation(2), "x")
    assert bed.load(wanted=[more]).tokens > 200
    assert cached(bed.chat(more)) > 200


def test_a_limit_below_one_context_keeps_none(bed: Bed) -> None:
    bed.keeper.configure(config(max_gb=0.001))
    bed.load()
    bed.chat(conversation(1))
    bed.unload()
    assert list(bed.slots.iterdir()) == []


@pytest.mark.parametrize("off", ["server", "model"])
def test_what_is_switched_off_is_removed(bed: Bed, off: str) -> None:
    bed.load()
    bed.chat(conversation(1))
    bed.unload()
    new = config(max_gb=0) if off == "server" else config(replace(MODEL, contexts=False))
    bed.keeper.configure(new)
    wait_for(lambda: not list(bed.slots.iterdir()))
    assert "switched off" in str(bed.keeper.model_status(MODEL).why)


def test_what_belongs_to_no_model_any_more_is_removed(bed: Bed) -> None:
    bed.load()
    bed.chat(conversation(1))
    bed.unload()
    bed.keeper.configure(config(Model("new", "new.service", "http://127.0.0.1:3")))
    wait_for(lambda: not list(bed.slots.iterdir()))


def test_a_full_disk_costs_only_the_context(bed: Bed) -> None:
    """llama-server answers 200 there, and leaves a file that was cut."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", str(bed.slots)], check=True)
    try:
        bed.load()
        bed.chat(conversation(1))
        bed.keeper.save(bed.loaded)
        assert list(bed.slots.iterdir()) == []
        assert cached(bed.chat(conversation(1))) > 0
        bed.stop()
    finally:
        subprocess.run(["umount", "--lazy", str(bed.slots)], check=True)


def test_a_backend_that_is_killed_meanwhile_costs_only_the_context(bed: Bed) -> None:
    bed.load()
    bed.chat(conversation(1))
    bed.server.process.kill()
    bed.keeper.save(bed.loaded)
    assert list(bed.slots.iterdir()) == []


def test_useless_restores_are_noticed(bed: Bed, gemma_file: Path) -> None:
    """A sliding window without --swa-full: restoring succeeds, and nothing is reused."""
    bed._words[2] = str(gemma_file)
    for round_number in range(3):
        bed.load(wanted=[conversation(1)] if round_number else ())
        bed.chat(conversation(1, question=f"Question {round_number}?"), max_tokens=1)
        bed.unload()
    bed.load(wanted=[conversation(1)])
    bed.chat(conversation(1, question="The last?"), max_tokens=1)
    wait_for(lambda: "--swa-full" in str(bed.keeper.model_status(MODEL).why))
    bed.unload()
    assert bed.keeper.totals().tokens_reused == 0
    assert bed.load(wanted=[conversation(1)]).tokens == 0
