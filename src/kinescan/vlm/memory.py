"""A limit for the full KV cache: how much stays, and what is known of each token to choose by."""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kinescan.errors import ConfigError
from kinescan.vlm.policy import Candidates, KeepAll, Policy

SPARE = 8
"""One part of so many of the limit is freed at once, so that a token is moved about this many times."""
BYTES_BESIDE = 8 + 8 + 4 + 4
"""Of a token in a key head besides its key and value: position, patch index, count and score."""
_UNITS = {
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([a-z]+)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class MemoryAmount:
    """Size of a memory, in bytes or in tokens.

    Attributes:
        num_bytes: None where tokens are counted.
        num_tokens: None where bytes are.
    """

    num_bytes: int | None = None
    num_tokens: int | None = None


def read_amount(given: Any) -> MemoryAmount:
    """An amount of memory from a number of tokens, or from a text with its unit.

    Raises:
        ConfigError: it is something else, or nothing fits into it.

    Example:
        >>> read_amount("4GiB").num_bytes, read_amount("500 tokens").num_tokens, read_amount(500).num_tokens
        (4294967296, 500, 500)
    """
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return MemoryAmount(num_tokens=given)
    found = _AMOUNT.fullmatch(given) if isinstance(given, str) else None
    unit = found[2].lower() if found else ""
    if found and unit in ("token", "tokens") and float(found[1]) >= 1:
        return MemoryAmount(num_tokens=int(float(found[1])))
    if found and unit in _UNITS and float(found[1]) * _UNITS[unit] >= 1:
        return MemoryAmount(num_bytes=int(float(found[1]) * _UNITS[unit]))
    raise ConfigError(
        f"memory_budget must be a number of tokens from 1 on, or a size such as 4GiB, 500MB or '20000 tokens', got "
        f"{given!r}."
    )


def limit_tokens(amount: MemoryAmount, bytes_per_token: int, vectors_per_token: int) -> int:
    """How many tokens a memory holds in each layer and key head.

    Args:
        amount: of memory.
        bytes_per_token: of keys and values, over all layers.
        vectors_per_token: layers times key heads.

    Raises:
        ConfigError: it holds none.
    """
    if amount.num_tokens is not None:
        return amount.num_tokens
    whole = bytes_per_token + vectors_per_token * BYTES_BESIDE
    assert amount.num_bytes is not None, "an amount is in tokens or in bytes"
    # the end of the last chunk is allocated, too
    tokens = amount.num_bytes // whole
    if tokens < 1:
        raise ConfigError(f"memory_budget of {amount.num_bytes} bytes holds no token of {whole} bytes. Give more.")
    return tokens


def chunk_of(limit: int, chunk_tokens: int) -> int:
    """Tokens in a chunk of a cache that holds at most `limit`: chunks are small against it.

    Example:
        >>> chunk_of(10_000, 4096), chunk_of(10**6, 4096)
        (625, 4096)
    """
    return max(1, min(chunk_tokens, limit // (2 * SPARE)))


def tokens_that_stay(limit: int, count: int) -> int:
    """How many tokens stay of a cache with a limit where room is made for so many.

    Example:
        >>> tokens_that_stay(80, 4), tokens_that_stay(80, 30)
        (70, 50)
    """
    return max(1, min(limit - limit // SPARE, limit - count))


def check_pinned(pinned: int, budget: int) -> None:
    """Raises ConfigError where more tokens are pinned than stay when room is made."""
    if pinned > budget:
        raise ConfigError(
            f"{pinned} tokens are pinned (the text before the video, kept questions and answers), and the "
            f"memory_budget keeps {budget} when room is made. Give a larger memory_budget."
        )


def check_memory_policy(policy: Policy) -> None:
    """Raises ConfigError where a policy cannot choose what stays in a limited memory."""
    if isinstance(policy, KeepAll):
        raise ConfigError("memory_policy 'none' keeps everything, and a memory_budget is given. Choose another one.")


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """What is known of the tokens that one layer's full KV cache holds; it never changes, but is replaced.

    Attributes:
        seen: tokens that came so far, those that have gone included.
        positions: [Hkv, K] of those that stayed when room was made, ascending.
        patch_indices: [Hkv, K] index of each in its step, counted from the step's end, from 1.
        counts: [Hkv, K] how many tokens each stands for; float32.
        steps: lengths of the steps since then, whose tokens are all there.
        scores: [Hkv, K + sum(steps)] attention received so far, float32; None where the policy asks for none.
    """

    seen: int = 0
    positions: Int[Tensor, "Hkv K"]
    patch_indices: Int[Tensor, "Hkv K"]
    counts: Float[Tensor, "Hkv K"]
    steps: tuple[int, ...] = ()
    scores: Float[Tensor, "Hkv L"] | None = None

    @classmethod
    def nothing(cls, key_heads: int, device: torch.device, *, scored: bool) -> "Remembered":
        """Before the first token."""
        empty = torch.empty(key_heads, 0, dtype=torch.int64, device=device)
        return cls(positions=empty, patch_indices=empty, counts=empty.float(), scores=empty.float() if scored else None)

    @property
    def tail(self) -> int:
        """Tokens since room was made."""
        return sum(self.steps)

    def with_step(self, count: int) -> "Remembered":
        """After a step of so many tokens."""
        scores = None if self.scores is None else functional.pad(self.scores, (0, count))
        return replace(self, seen=self.seen + count, steps=(*self.steps, count), scores=scores)

    def with_scores(self, received: Float[Tensor, "Hkv C"], positions: Int[Tensor, "Hkv C"] | None) -> "Remembered":
        """With a step's attention scores added; `positions` are those of the keys, None for all that are held."""
        assert self.scores is not None, "the policy asks for no scores"
        received = received.to(self.scores)
        if positions is None:
            return replace(self, scores=self.scores + received)
        kept, first = self.positions.shape[1], self.seen - self.tail
        index = torch.where(positions >= first, kept + positions - first, 0)
        there = positions >= first
        if kept:
            old = torch.searchsorted(self.positions, positions.contiguous()).clamp_(max=kept - 1)
            there = there | (self.positions.gather(1, old) == positions)
            index = torch.where(positions >= first, index, old)
        return replace(self, scores=self.scores.scatter_add(1, index, received * there))

    def everything(self) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, patch indices and counts [Hkv, L] of all that is held."""
        heads, device = len(self.positions), self.positions.device
        positions = torch.arange(self.seen - self.tail, self.seen, device=device).expand(heads, -1)
        patch_indices = torch.cat(
            [torch.arange(step, 0, -1, device=device) for step in self.steps] or [positions[0, :0]]
        )
        ones = torch.ones(heads, self.tail, device=device)
        return (
            torch.cat((self.positions, positions), dim=1),
            torch.cat((self.patch_indices, patch_indices.expand(heads, -1)), dim=1),
            torch.cat((self.counts, ones), dim=1),
        )

    def chosen(
        self, keys: Tensor, values: Tensor, *, policy: Policy, budget: int, pinned: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, "Remembered"]:
        """What stays: keys and values [1, Hkv, B, D], and what is known of them.

        Args:
            keys: [1, Hkv, L, D], all that are held.
            values: [1, Hkv, L, D].
            policy: chooses.
            budget: how many stay in each key head.
            pinned: ranges of positions that stay whatever the policy says.

        Raises:
            ConfigError: more is pinned than may stay.
        """
        positions, patch_indices, counts = self.everything()
        candidates = Candidates(
            positions=positions,
            scores=self.scores,
            keys=keys[0],
            values=values[0],
            patch_indices=patch_indices,
            counts=counts,
        )
        rank = policy.rank(candidates, budget).double()
        fixed = torch.zeros_like(positions, dtype=torch.bool)
        for start, stop in pinned:
            fixed |= (positions >= start) & (positions < stop)
        check_pinned(int(fixed.sum(1).max()), budget)
        kept = rank.masked_fill(fixed, float("inf")).topk(budget, dim=-1).indices.sort(dim=-1).values
        values, counts = policy.merged(candidates, kept, values, counts)
        wide = kept[None, :, :, None]
        remembered = replace(
            self,
            positions=positions.gather(1, kept),
            patch_indices=patch_indices.gather(1, kept),
            counts=counts.gather(1, kept),
            steps=(),
            scores=None if self.scores is None else self.scores.gather(1, kept),
        )
        return (
            keys.gather(2, wide.expand(-1, -1, -1, keys.shape[3])),
            values.gather(2, wide.expand(-1, -1, -1, values.shape[3])),
            remembered,
        )
