"""The flags that a model gets: from its file, the wishes, the card, and what the llama-server at hand knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.made import layers, make, model
from systemd_llm_switch.models.facts import ModelFacts, read_facts
from systemd_llm_switch.models.flags import GIB, MIB, Hardware, Unfit, Wishes, choose, command_words
from systemd_llm_switch.setup.server_flags import ServerFlags, ask

HELP = """\
-m,    --model FNAME                    model path
-c,    --ctx-size N                     size of the prompt context
-b,    --batch-size N                   logical maximum batch size
-ub,   --ubatch-size N                  physical maximum batch size
-ngl,  --gpu-layers, --n-gpu-layers N   layers
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        override tensor buffer type
-cram, --cache-ram N                    set the maximum cache size
-a,    --alias STRING                   name
--host HOST                             address
--port PORT                             port
--pooling {none,mean,cls,last,rank}     pooling
--embedding, --embeddings               embeddings
--metrics                               figures
--slot-save-path PATH                   path to save slot kv cache
--jinja, --no-jinja                     templates
"""
OLD = ServerFlags.read(HELP)
NO_FIT = ServerFlags.read(HELP + "-ncmoe, --n-cpu-moe N  experts\n-dev,  --device <dev1>  devices\n")
NEW = ServerFlags.read(HELP + "-fit,  --fit [on|off]  fit\n-fitt, --fit-target MiB  target\n-ncmoe, --n-cpu-moe N  x\n")
RAM = 32 * GIB


def words(facts: ModelFacts, known: ServerFlags, card: float | None = 8, **wishes: object) -> list[str]:
    given = {"vram_gib": card} if card is not None else {}
    return command_words(choose(facts, Wishes(**given, **wishes), known, Hardware(card, "as a test says", RAM)))  # type: ignore[arg-type]


def option(found: list[str], name: str) -> str:
    return found[found.index(name) + 1]


@pytest.fixture
def dense(tmp_path: Path) -> ModelFacts:
    """Of 8 layers with 512 MiB each."""
    return read_facts(make(tmp_path / "dense.gguf", model(layers=8), layers(8, 512 * MIB)))


@pytest.fixture
def moe(tmp_path: Path) -> ModelFacts:
    """Of 8 layers with 64 MiB each, and 1 GiB of experts each."""
    values = model("moe", layers=8, expert_count=16)
    return read_facts(make(tmp_path / "moe.gguf", values, layers(8, 64 * MIB, experts=GIB)))


def test_a_model_that_fits_goes_on_the_card(dense: ModelFacts) -> None:
    assert option(words(dense, OLD, 8), "--n-gpu-layers") == "99"


def test_a_dense_model_that_does_not_fit_gets_the_layers_that_fit(dense: ModelFacts) -> None:
    """3 GiB without the one that is left free: less than 4 layers of 512 MiB with the context."""
    assert option(words(dense, OLD, 3), "--n-gpu-layers") == "3"


@pytest.mark.parametrize(("card", "in_ram"), [(4, 6), (6, 4), (9, 1), (12, 0)])
def test_experts_stay_in_ram_as_few_as_possible(moe: ModelFacts, card: float, in_ram: int) -> None:
    found = words(moe, NO_FIT, card)
    assert option(found, "--n-gpu-layers") == "99"
    assert ("--n-cpu-moe" in found) == (in_ram > 0)
    assert not in_ram or option(found, "--n-cpu-moe") == str(in_ram)


def test_a_build_without_n_cpu_moe_gets_a_pattern(moe: ModelFacts) -> None:
    found = words(moe, OLD, 9)
    assert option(found, "--override-tensor") == "blk[.](0)[.]ffn_.*_exps[.]=CPU"
    assert "\\" not in "".join(found)  # systemd would take it for its own


def test_a_mixture_too_large_even_without_experts_gets_layers(moe: ModelFacts) -> None:
    found = words(moe, NO_FIT, 1.2)
    assert "--n-cpu-moe" not in found
    assert option(found, "--n-gpu-layers") == "0"


def test_a_build_that_fits_by_itself_is_left_to_it(moe: ModelFacts) -> None:
    found = words(moe, NEW, None)
    assert option(found, "--fit-target") == "1024"
    assert {"--n-gpu-layers", "--n-cpu-moe", "--override-tensor"} & set(found) == set()  # they switch --fit off


@pytest.mark.parametrize("own", [("-ngl", "20"), ("--override-tensor", "x=CPU"), ("--n-cpu-moe", "3")])
def test_own_flags_that_place_the_model_replace_fit(moe: ModelFacts, own: tuple[str, str]) -> None:
    """llama-server switches its --fit off at them."""
    assert "--fit" not in words(moe, NEW, None, flags=own)


def test_nothing_is_chosen_for_a_whole_command(moe: ModelFacts) -> None:
    """Besides what the proxy needs, and a bound on the RAM for prompts."""
    found = words(moe, NEW, None, flags=("--batch-size", "4"), is_whole_command=True)
    assert {word for word in found if word.startswith("--")} == {
        "--slot-save-path",
        "--cache-ram",
        "--metrics",
        "--batch-size",
    }


def test_a_card_that_was_named_goes_before_fit(moe: ModelFacts) -> None:
    found = words(moe, NEW, 6)
    assert "--fit" not in found
    assert option(found, "--n-cpu-moe") == "4"


def test_on_the_cpu_nothing_goes_on_the_card(dense: ModelFacts) -> None:
    assert option(words(dense, NO_FIT, on_cpu=True), "--device") == "none"
    assert option(words(dense, OLD, on_cpu=True), "--n-gpu-layers") == "0"


def test_a_flag_that_the_build_does_not_know_is_never_written(dense: ModelFacts) -> None:
    bare = ServerFlags.read("-m, --model F  x\n-c, --ctx-size N  x\n")
    assert words(dense, bare) == ["--ctx-size", "4096"]


@pytest.mark.parametrize("own", [("-c", "512"), ("--ctx-size", "512")])
def test_own_flags_replace_what_would_be_chosen(dense: ModelFacts, own: tuple[str, str]) -> None:
    found = words(dense, OLD, flags=own)
    assert found[-2:] == list(own)
    assert found.count("--ctx-size") == own.count("--ctx-size")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--ctxsize", "5"), "does not know --ctxsize; write --ctx-size"),
        (("--no-such-thing-at-all",), "does not know --no-such-thing-at-all"),
        (("--port", "1"), "chosen by `add` itself"),
        (("-m", "x"), "chosen by `add` itself"),
        (("--pooling", ""), "empty"),
    ],
)
def test_own_flags_that_cannot_work_are_refused(dense: ModelFacts, flags: tuple[str, ...], reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        words(dense, OLD, flags=flags)


def test_a_negative_number_is_not_a_flag(dense: ModelFacts) -> None:
    assert words(dense, OLD, flags=("--cache-ram", "-1"))[-1] == "-1"


def test_an_embedder_takes_an_input_in_one_batch(tmp_path: Path) -> None:
    values = model("bert", attention__causal=False, pooling_type=2)
    found = words(read_facts(make(tmp_path / "m.gguf", values, layers(2, 256))), OLD)
    assert option(found, "--ctx-size") == option(found, "--ubatch-size") == option(found, "--batch-size") == "4096"
    assert "--embedding" in found
    assert {"--pooling", "--slot-save-path", "--cache-ram", "--jinja"} & set(found) == set()


def test_a_chat_model_may_serve_embeddings(dense: ModelFacts) -> None:
    assert option(words(dense, OLD, is_embedding=True), "--pooling") == "mean"


@pytest.mark.parametrize(("ram_gib", "mib"), [(2, 512), (8, 2048), (128, 8192)])
def test_the_ram_for_earlier_prompts_is_a_quarter_within_bounds(tmp_path: Path, ram_gib: int, mib: int) -> None:
    facts = read_facts(make(tmp_path / "m.gguf", model(), layers(2, 256)))
    chosen = choose(facts, Wishes(), NEW, Hardware(None, "", ram_gib * GIB + MIB))
    assert option(command_words(chosen), "--cache-ram") == str(mib)


# --- what a build knows -----------------------------------------------------------------------------


def test_the_real_help_is_read(llama_server: Path) -> None:
    known = ask(llama_server)
    assert known.same("-ngl") == {"-ngl", "--gpu-layers", "--n-gpu-layers"}
    assert known.unknown(["--ctx-size", "-1", "--jinja", "--mlock", "--reverse-prompt", "--made-up"]) == []
    assert known.unknown(["--made-up"]) == ["--made-up"]


def test_flags_that_were_replaced_are_named_with_the_new_ones() -> None:
    known = ServerFlags.read(HELP + "-lm,   --load-mode MODE  how\n")
    assert known.unknown(["--model", "x", "--no-mmap", "--mlock"]) == ["--no-mmap", "--mlock"]
    assert known.instead_of("--no-mmap") == "--load-mode none"
    assert known.instead_of("--mlock") == "--load-mode mlock"


def test_a_new_flag_in_an_old_build_is_named_with_the_old_ones() -> None:
    known = ServerFlags.read(HELP + "--mlock  lock\n--mmap, --no-mmap  map\n")
    assert known.instead_of("--load-mode") == "--mmap or --no-mmap or --mlock"
