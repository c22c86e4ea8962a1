"""The flags for a model, chosen from its file's facts, the user's wishes, and the flags that the llama-server knows.
Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from systemd_llm_switch.models.facts import ModelFacts, Purpose
from systemd_llm_switch.setup.places import SetupError
from systemd_llm_switch.setup.server_flags import ServerFlags

GIB = 1 << 30
MIB = 1 << 20
CONTEXTS = "%C/systemd-llm-switch/contexts/"  # systemd puts the cache folder in
_LEFT_FREE = GIB  # of the card: the desktop, and what llama-server needs to compute
_USUAL_CONTEXT = 32768
_USUAL_INPUT = 8192  # of a model for embeddings
_LEAST_CACHE_MIB, _MOST_CACHE_MIB = 512, 8192
_ALL = "99"  # layers: more than any model has on one card
_OURS = ("--host", "--port", "--model", "--alias")
# Flags that say what goes on the card. Each switches llama-server's own --fit off, or is that choice.
_PLACING = frozenset(
    ("--n-gpu-layers", "--override-tensor", "--cpu-moe", "--n-cpu-moe", "--tensor-split", "--device", "--fit")
)


class Unfit(SetupError):
    """The wishes cannot be met. The message says why."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options of the command line."""

    context: int | None = None
    is_embedding: bool = False
    on_cpu: bool = False
    vram_gib: float | None = None
    flags: tuple[str, ...] = ()  # for llama-server, as they are
    is_whole_command: bool = False  # the flags are all that the model needs: nothing is chosen for it
    is_reranking: bool = False


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine: the card's size, if it is known, and the RAM."""

    card_gib: float | None
    card_source: str
    ram_bytes: int


@dataclass(frozen=True, slots=True)
class Choice:
    """Some words of the command line, and the reason for them."""

    words: tuple[str, ...]
    why: str


def purpose_of(facts: ModelFacts, wishes: Wishes) -> Purpose:
    if wishes.is_reranking:
        return Purpose.RERANK
    return Purpose.EMBEDDING if wishes.is_embedding and facts.purpose is Purpose.CHAT else facts.purpose


def choose(facts: ModelFacts, wishes: Wishes, known: ServerFlags, hardware: Hardware) -> list[Choice]:
    """The flags in the order of the command line, without those for address, file and name.

    Raises:
        Unfit
    """
    _check_wishes(wishes, known)
    own = {spelling for flag in known.in_command(wishes.flags) for spelling in known.same(flag)}
    metrics = Choice(("--metrics",), "its metrics can be read at /metrics")
    proposed = [*_beside(facts, wishes, known, hardware, own), metrics]
    chosen = [choice for choice in proposed if known.knows(choice.words[0]) and not own & set(choice.words)]
    return [*chosen, Choice(wishes.flags, "your own flags")] if wishes.flags else chosen


def _beside(
    facts: ModelFacts, wishes: Wishes, known: ServerFlags, hardware: Hardware, own: set[str]
) -> Iterator[Choice]:
    """What is proposed beside the own flags; little where those are a whole command."""
    if not wishes.is_whole_command:
        context = _context(facts, wishes)
        yield from _for_purpose(facts, wishes, known, context)
        yield from _for_memory(facts, wishes, known, hardware, context, own)
    elif purpose_of(facts, wishes) is Purpose.CHAT:
        yield Choice(("--slot-save-path", CONTEXTS), "conversations survive a switch")
        yield _cache(hardware.ram_bytes, facts.size)


def _check_wishes(wishes: Wishes, known: ServerFlags) -> None:
    for flag in known.in_command(wishes.flags):
        if not known.knows(flag):
            instead = known.instead_of(flag)
            raise Unfit(f"this llama-server does not know {flag}" + (f"; write {instead}" if instead else ""))
        if taken := known.same(flag) & set(_OURS):
            raise Unfit(f"{flag} is chosen by `add` itself ({min(taken)})")
    if any(not word for word in wishes.flags):
        raise Unfit("one of the flags for llama-server is empty")


# --- the context, and what the model is for ---------------------------------------------------------


def _context(facts: ModelFacts, wishes: Wishes) -> int:
    if wishes.context is not None:
        return wishes.context
    usual = _USUAL_CONTEXT if purpose_of(facts, wishes) is Purpose.CHAT else _USUAL_INPUT
    return min(usual, facts.context or usual)


def _for_purpose(facts: ModelFacts, wishes: Wishes, known: ServerFlags, context: int) -> Iterator[Choice]:
    size = str(context)
    purpose = purpose_of(facts, wishes)
    if purpose is Purpose.CHAT:
        yield Choice(("--ctx-size", size), _why_context(facts, wishes, context))
        if facts.has_chat_template:
            yield Choice(("--jinja",), "its file brings a chat template: tool calls work")
        yield Choice(("--slot-save-path", CONTEXTS), "conversations survive a switch")
        return
    if purpose is Purpose.RERANK:
        yield Choice(("--reranking" if known.knows("--reranking") else "--rerank",), "its file says that it ranks")
    else:
        what = "you said so" if wishes.is_embedding else "its file says that it is a model for embeddings"
        yield Choice(("--embedding",), what)
        if not facts.has_pooling:
            yield Choice(("--pooling", "mean"), "its file names no pooling")
    batch = ("--ctx-size", size, "--batch-size", size, "--ubatch-size", size)
    yield Choice(batch, f"an input must fit into one batch; {_why_context(facts, wishes, context)}")


def _why_context(facts: ModelFacts, wishes: Wishes, context: int) -> str:
    trained = f"the model was trained for {facts.context}" if facts.context else "its file does not say how many it can"
    takes = facts.context_bytes_per_token * context
    cost = f"; takes at most {_gib(takes)}" if takes else ""
    if wishes.context is not None:
        longer = " (beyond that its answers lose their sense)" if facts.context and context > facts.context else ""
        return f"{context} tokens as you said; {trained}{longer}{cost}"
    return f"{context} tokens of context; {trained}{cost} (--ctx N changes it)"


# --- memory -----------------------------------------------------------------------------------------


def _for_memory(
    facts: ModelFacts, wishes: Wishes, known: ServerFlags, hardware: Hardware, context: int, own: set[str]
) -> Iterator[Choice]:
    if own & _PLACING:
        in_ram = facts.size  # how much of it goes on the card is not calculated
    elif wishes.on_cpu:
        words = ("--device", "none") if known.knows("--device") else ("--n-gpu-layers", "0")
        yield Choice(words, "on the CPU, as you said")
        in_ram = facts.size
    elif wishes.vram_gib is None and known.knows("--fit") and known.knows("--fit-target"):
        yield Choice(
            ("--fit", "on", "--fit-target", "1024"),
            "llama-server fits the model to the card's free memory at each start, and leaves 1 GiB free; "
            "--vram GIB sets the layers now instead",
        )
        in_ram = max(0, facts.size - int((hardware.card_gib or 0) * GIB))
    else:
        choices, in_ram = _reckon(facts, known, hardware, context)
        yield from choices
    if purpose_of(facts, wishes) is Purpose.CHAT:
        yield _cache(hardware.ram_bytes, in_ram)


def _reckon(facts: ModelFacts, known: ServerFlags, hardware: Hardware, context: int) -> tuple[list[Choice], int]:
    """The layers on the card, and the bytes that stay in RAM."""
    card = hardware.card_gib or 0.0
    cache = facts.context_bytes_per_token * context
    budget = int(card * GIB) - _LEFT_FREE
    needed = sum(layer.size for layer in facts.layers) + facts.output_bytes + cache
    of_card = f"a card of {card:g} GiB ({hardware.card_source}), 1 GiB of it left free"
    if needed <= budget:
        why = f"all of it fits: {_gib(needed)} with its context, on {of_card}"
        return [Choice(("--n-gpu-layers", _ALL), why)], facts.embedding_bytes
    dense = needed - facts.expert_bytes
    if facts.expert_bytes and dense <= budget:
        return _reckon_experts(facts, known, budget - dense, of_card)
    return _reckon_layers(facts, cache, budget, of_card)


def _reckon_experts(facts: ModelFacts, known: ServerFlags, room: int, of_card: str) -> tuple[list[Choice], int]:
    """Attention, shared tensors and context on the card; the experts of the first layers in RAM, as few as possible."""
    in_ram, left = 0, facts.expert_bytes
    while left > room:
        left -= facts.layers[in_ram].experts
        in_ram += 1
    rest = facts.expert_bytes - left
    why = (
        f"a mixture of {facts.experts} experts: the experts of {in_ram} of {len(facts.layers)} layers stay in RAM "
        f"({_gib(rest)}), all else goes on {of_card}. Reckoned from the file, not measured: look at the card's free "
        "memory and move a layer"
    )
    layers = ("--n-gpu-layers", _ALL)
    if known.knows("--n-cpu-moe"):
        return [Choice((*layers, "--n-cpu-moe", str(in_ram)), why)], rest + facts.embedding_bytes
    # [.] and not \. since systemd would take the backslash for its own.
    pattern = f"blk[.]({'|'.join(map(str, range(in_ram)))})[.]ffn_.*_exps[.]=CPU"
    return [Choice((*layers, "--override-tensor", pattern), why)], rest + facts.embedding_bytes


def _reckon_layers(facts: ModelFacts, cache: int, budget: int, of_card: str) -> tuple[list[Choice], int]:
    """As many of the last layers as fit, with their part of the context."""
    of_context = math.ceil(cache / len(facts.layers))
    on_card, room = 0, budget - facts.output_bytes
    for layer in reversed(facts.layers):
        room -= layer.size + of_context
        if room < 0:
            break
        on_card += 1
    rest = sum(layer.size for layer in facts.layers[: len(facts.layers) - on_card])
    why = f"{on_card} of {len(facts.layers)} layers go on {of_card}; {_gib(rest)} stay in RAM. Reckoned, not measured"
    return [Choice(("--n-gpu-layers", str(on_card)), why)], rest + facts.embedding_bytes


def _cache(ram_bytes: int, in_ram: int) -> Choice:
    """A quarter of the RAM that the model leaves free."""
    left_mib = max(0, ram_bytes - in_ram) // 4 // MIB
    size = max(_LEAST_CACHE_MIB, min(_MOST_CACHE_MIB, left_mib // 256 * 256))
    return Choice(("--cache-ram", str(size)), f"at most {size} MiB of RAM for prompts that it has read before")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def command_words(choices: Sequence[Choice]) -> list[str]:
    """All words, in order."""
    return [word for choice in choices for word in choice.words]
