"""Whether a context is worth a file: measured rates, and what follows from them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FEWEST_TOKENS = 128  # a shorter prompt is read again sooner than anybody notices
_LEAST_GAIN_S = 0.3
_LEAST_RATIO = 2.0  # reading again must take this many times as long as to save and restore
_FEWEST_MEASURED_TOKENS = 32  # fewer tokens say nothing about the rate
_NEWEST_WEIGHT = 0.5
# Assumed until the first file: the rate of a slow SSD, and the size of a large model.
_UNMEASURED_SAVE_BPS = 300e6
_UNMEASURED_RESTORE_BPS = 600e6
_UNMEASURED_BYTES_PER_TOKEN = 128_000.0
_UNMEASURED_TOKENS_PER_S = 400.0
# A switch waits at most this long for a save or a restore, and at most half as long as reading again would take.
_LONGEST_S = 10.0
_SHORTEST_BOUND_S = 2.0


@dataclass(frozen=True, slots=True)
class Worth:
    """What is expected for one context, in seconds and bytes; `reason` is None if it is worth its file."""

    read_s: float
    save_s: float
    restore_s: float
    size: int
    reason: str | None

    @property
    def bound_s(self) -> float:
        """How long a switch may wait for the save, or for the restore."""
        return min(_LONGEST_S, max(_SHORTEST_BOUND_S, self.read_s / 2))


@dataclass(slots=True)
class Rates:
    """The rates of one model on this machine; None if not measured yet."""

    tokens_per_s: float | None = None
    save_bps: float | None = None
    restore_bps: float | None = None
    bytes_per_token: float | None = None

    def note_prompt(self, tokens: int, took_s: float) -> None:
        """A reply's timings: so many tokens of its prompt were read in that time."""
        if tokens >= _FEWEST_MEASURED_TOKENS and took_s > 0:
            self.tokens_per_s = _mean(self.tokens_per_s, tokens / took_s)

    def note_save(self, tokens: int, size: int, took_s: float) -> None:
        """A file was written."""
        if tokens > 0 and size > 0:
            self.bytes_per_token = size / tokens
            self.save_bps = _mean(self.save_bps, size / max(took_s, 1e-6))

    def note_restore(self, size: int, took_s: float) -> None:
        """A file was read back."""
        if size > 0:
            self.restore_bps = _mean(self.restore_bps, size / max(took_s, 1e-6))

    def read_s(self, tokens: int) -> float:
        """How long the model needs to read so many tokens."""
        return tokens / (self.tokens_per_s or _UNMEASURED_TOKENS_PER_S)

    def size(self, tokens: int) -> int:
        """How large a file of so many tokens becomes."""
        return int(tokens * (self.bytes_per_token or _UNMEASURED_BYTES_PER_TOKEN))

    def restore_s(self, size: int) -> float:
        """How long it takes to read a file back."""
        return size / (self.restore_bps or _UNMEASURED_RESTORE_BPS)

    def judge(self, tokens: int) -> Worth:
        """Whether to save a context of so many tokens."""
        read_s, size = self.read_s(tokens), self.size(tokens)
        save_s, restore_s = size / (self.save_bps or _UNMEASURED_SAVE_BPS), self.restore_s(size)
        reason = None
        if tokens < FEWEST_TOKENS:
            reason = f"{tokens} tokens are too few"
        elif read_s - save_s - restore_s < _LEAST_GAIN_S or read_s < _LEAST_RATIO * (save_s + restore_s):
            reason = f"reading {tokens} tokens again takes {read_s:.1f} s, the file {save_s + restore_s:.1f} s"
        return Worth(read_s, save_s, restore_s, size, reason)


def _mean(known: float | None, new: float) -> float:
    return new if known is None else known + (new - known) * _NEWEST_WEIGHT
