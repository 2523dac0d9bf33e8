"""What a stream remembers: every key and value for answering, and a compressed state for the future frames."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kinescan.errors import ConfigError, ShapeError
from kinescan.settings import closest
from kinescan.vlm.policy import Candidates, KeepAll, Policy

Storage = Literal["memory", "offload", "int8"]
Block = tuple[Float[Tensor, "1 Hkv L D"], Float[Tensor, "1 Hkv L D"]]

SCALE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """Sizes of a model's keys and values.

    Attributes:
        num_layers: decoder layers.
        key_heads: key heads in each.
        head_dim: size of a key.
        dtype: of keys and values.
        device: where attention runs.
    """

    num_layers: int
    key_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    def bytes_per_token(self, storage: Storage = "memory") -> int:
        """Bytes that one token takes in the full KV cache, over all layers.

        Example:
            >>> shape = CacheShape(num_layers=28, key_heads=4, head_dim=128, dtype=torch.bfloat16, device="cpu")
            >>> shape.bytes_per_token(), shape.bytes_per_token("int8")
            (57344, 29568)
        """
        vector = self.head_dim + SCALE_BYTES if storage == "int8" else self.head_dim * self.dtype.itemsize
        return 2 * self.num_layers * self.key_heads * vector


def check_storage(storage: str) -> None:
    """Raises ConfigError where there is no storage of that name."""
    if storage not in get_args(Storage):
        raise ConfigError(f"unknown storage {storage!r}. {closest(str(storage), get_args(Storage))}")


class KeyValueStore:
    """One layer's keys and values, growing by whole chunks so that nothing stored is ever copied again.

    Args:
        shape: sizes of the model.
        storage: "memory" beside the model, "offload" in the CPU's memory (pinned where there is a GPU), or "int8":
            one byte a number and one float32 scale for each key and value.
        chunk_tokens: tokens in a chunk.
    """

    def __init__(self, shape: CacheShape, *, storage: Storage, chunk_tokens: int) -> None:
        self.shape = shape
        self.storage: Storage = storage
        self.chunk_tokens = chunk_tokens
        self.length = 0
        self.chunks: list[tuple[Tensor, ...]] = []

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [1, Hkv, L, D]."""
        tensors = (*_quantise(keys), *_quantise(values)) if self.storage == "int8" else (keys, values)
        done, total = 0, keys.shape[2]
        while done < total:
            offset = self.length % self.chunk_tokens
            if offset == 0:
                self.chunks.append(self._new_chunk(tensors))
            count = min(self.chunk_tokens - offset, total - done)
            for part, tensor in zip(self.chunks[-1], tensors, strict=True):
                part[:, :, offset : offset + count].copy_(tensor[:, :, done : done + count], non_blocking=False)
            done += count
            self.length += count

    def blocks(self) -> Iterator[Block]:
        """Keys and values chunk by chunk, on the model's device and in its dtype; one chunk at a time is unpacked."""
        for start, chunk in zip(range(0, self.length, self.chunk_tokens), self.chunks, strict=True):
            used = min(self.chunk_tokens, self.length - start)
            parts = [part[:, :, :used].to(self.shape.device) for part in chunk]
            if self.storage == "int8":
                dtype = self.shape.dtype
                yield (parts[0] * parts[1]).to(dtype), (parts[2] * parts[3]).to(dtype)
            else:
                yield parts[0], parts[1]

    def clear(self) -> None:
        """Forgets everything."""
        self.chunks, self.length = [], 0

    def shorten(self, length: int) -> None:
        """Forgets what was appended behind the first `length` tokens."""
        self.length = length
        del self.chunks[-(-length // self.chunk_tokens) :]

    def restore(self, chunks: list[tuple[Tensor, ...]], length: int) -> None:
        """Takes chunks as `used_chunks` gives them."""
        self.clear()
        for chunk in chunks:
            fresh = self._new_chunk(chunk)
            for part, tensor in zip(fresh, chunk, strict=True):
                part[:, :, : tensor.shape[2]].copy_(tensor)
            self.chunks.append(fresh)
        self.length = length

    def used_chunks(self) -> list[tuple[Tensor, ...]]:
        """The chunks as stored, without their unused ends."""
        starts = range(0, self.length, self.chunk_tokens)
        return [
            tuple(part[:, :, : min(self.chunk_tokens, self.length - start)] for part in chunk)
            for start, chunk in zip(starts, self.chunks, strict=True)
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes that the stored tokens take."""
        return self.length * self.shape.bytes_per_token(self.storage) // self.shape.num_layers

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all chunks, their unused ends included."""
        return sum(part.numel() * part.element_size() for chunk in self.chunks for part in chunk)

    def _new_chunk(self, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        off = self.storage == "offload"
        device = torch.device("cpu") if off else self.shape.device
        pinned = off and self.shape.device.type == "cuda"
        return tuple(
            torch.empty(
                (1, tensor.shape[1], self.chunk_tokens, tensor.shape[3]),
                dtype=tensor.dtype,
                device=device,
                pin_memory=pinned,
            )
            for tensor in like
        )


def _quantise(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """[1, Hkv, L, D] as int8 and its scale [1, Hkv, L, 1], float32; the error is at most half a scale."""
    wide = tensor.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (wide / scale).round().to(torch.int8), scale


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

    def __init__(self, shape: CacheShape, *, storage: Storage, chunk_tokens: int) -> None:
        self.shape = shape
        self.full_cache = KeyValueStore(shape, storage=storage, chunk_tokens=chunk_tokens)
        self.answer = KeyValueStore(shape, storage="memory", chunk_tokens=256)
        self.state = CompressedState(
            keys=torch.empty(1, shape.key_heads, 0, shape.head_dim, dtype=shape.dtype, device=shape.device),
            values=torch.empty(1, shape.key_heads, 0, shape.head_dim, dtype=shape.dtype, device=shape.device),
            positions=torch.empty(shape.key_heads, 0, dtype=torch.int64, device=shape.device),
        )

    def extend_state(self, keys: Tensor, values: Tensor, first_position: int) -> None:
        """Puts a step's keys and values behind the state; selection comes later."""
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

    def compress(self, policy: Policy, budget: int, mass: Tensor | None) -> None:
        """Keeps what the policy chooses; `mass` [Hkv, L] belongs to the extended state."""
        state = self.state
        candidates = Candidates(positions=state.positions, mass=mass, history=state.history)
        history = None
        if policy.accumulates and mass is not None:
            history = policy.remembered(mass, state.history)
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


def layer_budgets(budget: int, num_layers: int, shares: Sequence[float] | None) -> list[int]:
    """Keys of each layer, `budget * num_layers` in all but for rounding, at least 1 in each.

    Raises:
        ConfigError: there are not as many shares as layers.

    Example:
        >>> layer_budgets(10, 3, None), layer_budgets(10, 3, (2, 1, 1))
        ([10, 10, 10], [15, 8, 8])
    """
    if shares is None:
        return [budget] * num_layers
    if len(shares) != num_layers:
        raise ConfigError(f"budget_shares must hold a number for each of {num_layers} layers, got {len(shares)}.")
    return [max(1, math.floor(budget * num_layers * share / sum(shares) + 0.5)) for share in shares]


class StreamCache:
    """The cache that a transformers decoder is given: `update` and the sizes for its masks, and no more.

    In the mode "stream" a step sees (compressed state, itself); in the mode "answer" it sees (everything, the answer so
    far, itself). With `policy="none"` or without a budget there is no compressed state, and both see everything.

    Args:
        shape: sizes of the model.
        policy: what chooses the compressed state.
        budget: keys it holds in each layer and key head; None for no limit.
        budget_shares: how the layers share what they hold together, one number each; None: alike.
        storage: of the full KV cache.
        chunk_tokens: tokens in a chunk of the full KV cache.
    """

    is_compileable = False

    def __init__(
        self,
        shape: CacheShape,
        *,
        policy: Policy,
        budget: int | None,
        budget_shares: Sequence[float] | None = None,
        storage: Storage = "memory",
        chunk_tokens: int = 4096,
    ) -> None:
        self.shape = shape
        self.policy = policy
        self.budget = None if isinstance(policy, KeepAll) else budget
        self.budgets = None if self.budget is None else layer_budgets(self.budget, shape.num_layers, budget_shares)
        self.is_text: Tensor | None = None
        """[Q], which tokens of the step that runs are text; None where it is not known."""
        self.answering = False
        self.query_key_pairs = 0
        self.layers = [LayerCache(shape, storage=storage, chunk_tokens=chunk_tokens) for _ in range(shape.num_layers)]

    @property
    def num_tokens(self) -> int:
        """Tokens in the full KV cache."""
        return self.layers[-1].full_cache.length

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

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stores a step's keys and values [1, Hkv, L, D] and gives them back; attention fetches the past itself.

        transformers gives `kwargs` from 5.24 on, for caches that need more; this one does not.
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
            layer.extend_state(keys, values, layer.full_cache.length)
        layer.full_cache.append(keys, values)
        return keys, values

    def visible(self, layer_idx: int) -> Iterator[Block]:
        """All that a step sees in this layer, itself included (its keys come last)."""
        layer = self.layers[layer_idx]
        if self.budget is not None and not self.answering:
            yield layer.state.keys, layer.state.values
            return
        yield from layer.full_cache.blocks()
        if self.answering:
            yield from layer.answer.blocks()

    def visible_length(self, layer_idx: int) -> int:
        """Number of keys that `visible` gives."""
        layer = self.layers[layer_idx]
        if self.budget is not None and not self.answering:
            return layer.state.positions.shape[1]
        return layer.full_cache.length + (layer.answer.length if self.answering else 0)

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Within the block the stream may grow; where the block fails, all layers are as they were before."""
        before = [(layer.full_cache.length, replace(layer.state)) for layer in self.layers]
        pairs = self.query_key_pairs
        try:
            yield
        except BaseException:
            for layer, (length, state) in zip(self.layers, before, strict=True):
                layer.full_cache.shorten(length)
                layer.state = state
            self.query_key_pairs = pairs
            raise

    def keep_answer(self) -> None:
        """Makes the answer in progress part of the stream: in the full KV cache, and seen by future frames."""
        for layer in self.layers:
            for keys, values in layer.answer.blocks():
                if self.budget is not None:
                    layer.extend_state(keys, values, layer.full_cache.length)
                layer.full_cache.append(keys, values)
        self.drop_answer()

    def drop_answer(self) -> None:
        """Forgets the answer in progress."""
        for layer in self.layers:
            layer.answer.clear()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen before this step, as transformers asks for it."""
        layer = self.layers[layer_idx]
        return layer.full_cache.length + (layer.answer.length if self.answering else 0)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Index of this step's first token, as transformers asks for it."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length of the keys and index of the first, as transformers asks for them."""
        seen = self.get_seq_length(layer_idx)
        if self.budget is None or self.answering:
            return seen + query_length, 0
        held = self.layers[layer_idx].state.positions.shape[1]
        return held + query_length, seen - held
