"""What a stream remembers: every key and value for answering, and a compressed state for the future frames."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kinescan.errors import ConfigError, ShapeError
from kinescan.vlm.memory import Remembered, check_pinned, chunk_of, tokens_that_stay
from kinescan.vlm.policy import Candidates, KeepAll, Policy
from kinescan.vlm.store import Block, CacheShape, KeyValueStore, Storage


@dataclass(kw_only=True)
class CompressedState:
    """What the next frame of one layer may see of the past.

    Attributes:
        keys: [1, Hkv, C, D].
        values: [1, Hkv, C, D].
        positions: [Hkv, C] index of each key's token in the stream, ascending; they differ between heads.
        history: [Hkv, C] attention score received so far; None where the policy does not accumulate.
    """

    keys: Float[Tensor, "1 Hkv C D"]
    values: Float[Tensor, "1 Hkv C D"]
    positions: Int[Tensor, "Hkv C"]
    history: Float[Tensor, "Hkv C"] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of keys, values, positions and history."""
        tensors = (self.keys, self.values, self.positions, self.history)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


class LayerCache:
    """One decoder layer: its full KV cache, its compressed state, and what an answer in progress has added."""

    def __init__(
        self, shape: CacheShape, *, storage: Storage, chunk_tokens: int, remembered: Remembered | None = None
    ) -> None:
        self.shape = shape
        self.remembered = remembered
        self.full_cache = KeyValueStore(shape, storage=storage, chunk_tokens=chunk_tokens)
        self.answer = KeyValueStore(shape, storage="memory", chunk_tokens=256)
        self.chosen: list[int] | None = None
        """Chunks of the full KV cache that the answer in progress reads; None for all."""
        self.state = CompressedState(
            keys=torch.empty(1, shape.key_heads, 0, shape.head_dim, dtype=shape.dtype, device=shape.device),
            values=torch.empty(1, shape.key_heads, 0, shape.head_dim, dtype=shape.dtype, device=shape.device),
            positions=torch.empty(shape.key_heads, 0, dtype=torch.int64, device=shape.device),
        )

    @property
    def seen(self) -> int:
        """Tokens that came so far, also those that a limited full KV cache has dropped."""
        return self.full_cache.length if self.remembered is None else self.remembered.seen

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Stores a step's keys and values [1, Hkv, L, D] in the full KV cache."""
        self.full_cache.append(keys, values)
        if self.remembered is not None:
            self.remembered = self.remembered.with_step(keys.shape[2])

    def add_scores(self, scores: Float[Tensor, "Hkv C"], *, of_state: bool) -> None:
        """Attention scores of a step count for what stays in a limited full KV cache.

        Args:
            scores: of the state's keys, or of all keys.
            of_state: whether `scores` is of the state's keys alone.
        """
        assert self.remembered is not None, "the cache has no limit"
        self.remembered = self.remembered.with_scores(scores, self.state.positions if of_state else None)

    def shrink(self, policy: Policy, budget: int, pinned: list[tuple[int, int]]) -> None:
        """Keeps part of the full KV cache, in chunks of its own.

        Args:
            policy: chooses what stays.
            budget: tokens that stay in each key head.
            pinned: ranges (start, stop) of positions that stay whatever the policy says.
        """
        if self.remembered is None or self.full_cache.length <= budget:
            return
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*self.full_cache.blocks(), strict=True))
        keys, values, self.remembered = self.remembered.chosen(
            keys, values, policy=policy, budget=budget, pinned=pinned
        )
        self.full_cache.clear()
        self.full_cache.append(keys, values)

    def extend_state(self, keys: Tensor, values: Tensor, first_position: int) -> None:
        """Puts a step's keys and values behind the state; selection comes later.

        Args:
            keys: [1, Hkv, C, D].
            values: [1, Hkv, C, D].
            first_position: of the step's first token in the stream.
        """
        old, new = self.state, keys.shape[2]
        positions = torch.arange(first_position, first_position + new, device=old.positions.device)
        history = None
        if old.history is not None:
            history = torch.cat((old.history, old.history.new_zeros(len(old.history), new)), dim=-1)
        self.state = CompressedState(
            keys=torch.cat((old.keys, keys), dim=2),
            values=torch.cat((old.values, values), dim=2),
            positions=torch.cat((old.positions, positions.expand(len(old.positions), -1)), dim=-1),
            history=history,
        )

    def compress(self, policy: Policy, budget: int, scores: Tensor | None) -> None:
        """Keeps what the policy chooses.

        Args:
            policy: chooses.
            budget: keys that stay in each key head.
            scores: [Hkv, L], attention scores of the extended state's keys; None where the policy asks for none.
        """
        state = self.state
        candidates = Candidates(
            positions=state.positions,
            scores=scores,
            history=state.history,
            keys=state.keys[0],
            values=state.values[0],
        )
        history = None
        if policy.accumulates and scores is not None:
            history = policy.remembered(scores, state.history)
        if state.positions.shape[1] <= budget:
            state.history = history
            return
        kept = policy.select(candidates, budget)
        wide = kept[None, :, :, None].expand(-1, -1, -1, state.keys.shape[3])
        self.state = CompressedState(
            keys=state.keys.gather(2, wide),
            values=state.values.gather(2, wide),
            positions=state.positions.gather(1, kept),
            history=None if history is None else history.gather(1, kept),
        )


def layer_budgets(budget: int, num_layers: int, ratios: Sequence[float] | None) -> list[int]:
    """Keys of each layer, `budget * num_layers` in all but for rounding, at least 1 in each.

    Args:
        budget: keys of a layer and key head, on average over the layers.
        num_layers: of the decoder.
        ratios: what each layer gets in proportion to the others; None gives all the same.

    Raises:
        ConfigError: there are not as many ratios as layers.

    Example:
        >>> layer_budgets(10, 3, None), layer_budgets(10, 3, (2, 1, 1))
        ([10, 10, 10], [15, 8, 8])
    """
    if ratios is None:
        return [budget] * num_layers
    if len(ratios) != num_layers:
        raise ConfigError(f"budget_ratios must hold a number for each of {num_layers} layers, got {len(ratios)}.")
    return [max(1, math.floor(budget * num_layers * ratio / sum(ratios) + 0.5)) for ratio in ratios]


class StreamCache:
    """The cache that a transformers decoder is given: `update` and the sizes for its masks, and no more.

    In the mode "stream" a step sees (compressed state, itself); in the mode "answer" it sees (everything, the answer so
    far, itself). With `policy="none"` or without a budget there is no compressed state, and both see everything.

    Args:
        shape: sizes of the model.
        policy: what chooses the compressed state.
        budget: keys it holds in each layer and key head; None for no limit.
        budget_ratios: fractions of the budget of all layers, one number for each layer, of any sum; None: equal.
        storage: of the full KV cache.
        chunk_tokens: tokens in a chunk of the full KV cache.
        memory_tokens: tokens that the full KV cache holds at most, in each layer and key head; None for no limit.
        memory_policy: what chooses them.
        retrieved_chunks: chunks of the full KV cache that an answer reads at most, in each layer; None for all.
    """

    is_compileable = False

    def __init__(
        self,
        shape: CacheShape,
        *,
        policy: Policy,
        budget: int | None,
        budget_ratios: Sequence[float] | None = None,
        storage: Storage = "memory",
        chunk_tokens: int = 4096,
        memory_tokens: int | None = None,
        memory_policy: Policy | None = None,
        retrieved_chunks: int | None = None,
    ) -> None:
        self.shape = shape
        self.policy = policy
        self.memory_tokens = memory_tokens
        self.memory_policy = memory_policy
        self.retrieved_chunks = retrieved_chunks
        self.scored = memory_policy is not None and memory_policy.observed(1) is not None
        """Whether every step has to give attention scores for the choice of what stays."""
        self.pinned: list[tuple[int, int]] = []
        """Ranges of positions that stay in a limited full KV cache."""
        self.budget = None if isinstance(policy, KeepAll) else budget
        self.budgets = None if self.budget is None else layer_budgets(self.budget, shape.num_layers, budget_ratios)
        self.is_text: Tensor | None = None
        """[Q], which tokens of the step that runs are text; None where it is not known."""
        self.answering = False
        self.query_key_pairs = 0
        fresh = None
        if memory_tokens is not None:
            fresh = Remembered.nothing(shape.key_heads, shape.device, scored=self.scored)
            chunk_tokens = chunk_of(memory_tokens, chunk_tokens)
        self.layers = [
            LayerCache(shape, storage=storage, chunk_tokens=chunk_tokens, remembered=fresh)
            for _ in range(shape.num_layers)
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens in the full KV cache."""
        return self.layers[-1].full_cache.length

    @property
    def num_seen(self) -> int:
        """Tokens that came so far."""
        return self.layers[-1].seen

    @property
    def state_tokens(self) -> int:
        """Tokens that the next frame may see of the past, in each layer and key head; where layers differ, the most."""
        if self.budget is None:
            return self.num_tokens
        return max(layer.state.positions.shape[1] for layer in self.layers)

    @property
    def state_bytes(self) -> int:
        """Bytes of the compressed state, over all layers."""
        return sum(layer.state.num_bytes for layer in self.layers)

    @property
    def full_cache_bytes(self) -> int:
        """Bytes that the tokens of the full KV cache take, over all layers."""
        return sum(layer.full_cache.num_bytes for layer in self.layers)

    @property
    def allocated_bytes(self) -> int:
        """Bytes allocated for the full KV cache, unused ends of chunks included."""
        return sum(layer.full_cache.allocated_bytes for layer in self.layers)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stores a step's keys and values [1, Hkv, L, D] and gives them back; attention fetches the past itself.

        transformers gives `kwargs` from 5.24 on, for caches that need more; this one does not.

        Raises:
            ShapeError: there are several videos in the batch.
        """
        if keys.shape[0] != 1:
            raise ShapeError(
                f"a stream holds one video, got a batch of {keys.shape[0]}. Open one stream for each video."
            )
        layer = self.layers[layer_idx]
        if self.answering:
            layer.answer.append(keys, values)
            return keys, values
        if self.budget is not None:
            layer.extend_state(keys, values, layer.seen)
        layer.append(keys, values)
        return keys, values

    def visible(self, layer_idx: int) -> Iterator[Block]:
        """All that a step sees in this layer, itself included (its keys come last)."""
        layer = self.layers[layer_idx]
        if self.budget is not None and not self.answering:
            yield layer.state.keys, layer.state.values
            return
        yield from layer.full_cache.blocks(
            layer.chosen if self.answering else None, then=lambda: self._expect(layer_idx + 1)
        )
        if self.answering:
            yield from layer.answer.blocks()

    def _expect(self, layer_idx: int) -> None:
        """While a layer computes, what the next one reads first is brought; where that is known."""
        if layer_idx == len(self.layers):
            return
        layer = self.layers[layer_idx]
        if self.answering and (self.retrieved_chunks is None or layer.chosen is not None):
            layer.full_cache.expect(layer.chosen)

    def visible_length(self, layer_idx: int) -> int:
        """Number of keys that `visible` gives."""
        layer = self.layers[layer_idx]
        if self.budget is not None and not self.answering:
            return layer.state.positions.shape[1]
        if not self.answering:
            return layer.full_cache.length
        return layer.full_cache.length_of(layer.chosen) + layer.answer.length

    def retrieve(self, layer_idx: int, queries: Tensor) -> None:
        """Before the first step of an answer attends: chooses the chunks that it reads, where their number is limited.

        Args:
            layer_idx: of the decoder.
            queries: [1, Hq, Q, D], of the question.
        """
        layer = self.layers[layer_idx]
        if self.retrieved_chunks is not None and layer.chosen is None:
            layer.chosen = layer.full_cache.closest_chunks(queries, self.retrieved_chunks)

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Within the block the stream may grow; where the block fails, all layers are as they were before."""
        before = [
            ([*layer.full_cache.chunks], layer.full_cache.length, replace(layer.state), layer.remembered)
            for layer in self.layers
        ]
        pairs, pinned = self.query_key_pairs, [*self.pinned]
        try:
            yield
        except BaseException:
            for layer, (chunks, length, state, remembered) in zip(self.layers, before, strict=True):
                layer.full_cache.take_back(chunks, length)
                layer.state, layer.remembered = state, remembered
            self.query_key_pairs, self.pinned = pairs, pinned
            raise

    def make_room(self, count: int) -> None:
        """So many tokens more stay within the limit of the full KV cache, where there is one.

        Raises:
            ConfigError: they do not fit at all, or more is pinned than may stay.
        """
        limit, policy = self.memory_tokens, self.memory_policy
        if limit is None or policy is None or self.num_tokens + count <= limit:
            return
        if count >= limit:
            raise ConfigError(
                f"one step has {count} tokens, and the memory_budget holds {limit}. Give a larger memory_budget, or "
                "frames of fewer pixels."
            )
        for layer in self.layers:
            layer.shrink(policy, tokens_that_stay(limit, count), self.pinned)

    def pin(self, start: int, stop: int, *, beside: int) -> None:
        """Tokens of these positions stay in a limited full KV cache.

        Args:
            start: the first.
            stop: behind the last.
            beside: tokens of a frame, for which room will be made.

        Raises:
            ConfigError: there would be no room beside all that is pinned: an error now, not once the cache is full.
        """
        if self.memory_tokens is not None and stop > start:
            self.pinned.append((start, stop))
            pinned = sum(stop - start for start, stop in self.pinned)
            check_pinned(pinned, tokens_that_stay(self.memory_tokens, beside))

    def keep_answer(self) -> None:
        """Makes the answer in progress part of the stream: in the full KV cache, and seen by future frames."""
        count = self.layers[-1].answer.length
        self.make_room(count)
        self.pin(self.num_seen, self.num_seen + count, beside=0)
        for layer in self.layers:
            for keys, values in layer.answer.blocks():
                if self.budget is not None:
                    layer.extend_state(keys, values, layer.seen)
                layer.append(keys, values)
        self.drop_answer()

    def drop_answer(self) -> None:
        """Forgets the answer in progress."""
        for layer in self.layers:
            layer.answer.clear()
            layer.chosen = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen before this step, as transformers asks for it."""
        layer = self.layers[layer_idx]
        return layer.seen + (layer.answer.length if self.answering else 0)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Index of this step's first token, as transformers asks for it."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length of the keys and index of the first, as transformers asks for them."""
        seen = self.get_seq_length(layer_idx)
        if self.budget is None or self.answering:
            held = self.visible_length(layer_idx)
            return held + query_length, seen - held
        held = self.layers[layer_idx].state.positions.shape[1]
        return held + query_length, seen - held
