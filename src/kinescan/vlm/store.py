"""Keys and values of one layer, in chunks: beside the model, in the CPU's memory, on disk, or as int8."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.settings import closest
from kinescan.vlm.fetching import ChunkFolder, ChunkOnDisk, fetcher_of

Storage = Literal["memory", "offload", "int8", "disk"]
Block = tuple[Float[Tensor, "1 Hkv L D"], Float[Tensor, "1 Hkv L D"]]

Chunk = tuple[Tensor, ...] | ChunkOnDisk

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
        storage: "memory" beside the model, "offload" in the CPU's memory (pinned where there is a GPU), "int8": one
            byte a number and one float32 scale for each key and value, or "disk": each chunk, once it is full, in a
            file.
        chunk_tokens: tokens in a chunk.

    Attributes:
        fetcher: brings chunks to the model, one ahead of the one that is used; None where they are beside it.
    """

    def __init__(self, shape: CacheShape, *, storage: Storage, chunk_tokens: int) -> None:
        self.shape = shape
        self.storage: Storage = storage
        self.chunk_tokens = chunk_tokens
        self.length = 0
        self.chunks: list[Chunk] = []
        self.fetcher = fetcher_of(storage, shape.device)
        self._folder = ChunkFolder() if storage == "disk" else None
        self._means: list[Tensor] = []
        self._first: tuple[int, Any] | None = None

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [1, Hkv, L, D]."""
        tensors = (*_quantise(keys), *_quantise(values)) if self.storage == "int8" else (keys, values)
        done, total = 0, keys.shape[2]
        self._first = None
        while done < total:
            offset = self.length % self.chunk_tokens
            if offset == 0:
                self.chunks.append(self._new_chunk(tensors))
            count = min(self.chunk_tokens - offset, total - done)
            for part, tensor in zip(self._parts(-1), tensors, strict=True):
                part[:, :, offset : offset + count].copy_(tensor[:, :, done : done + count], non_blocking=False)
            done += count
            self.length += count
            if self._folder is not None and self.length % self.chunk_tokens == 0:
                self.chunks[-1] = self._folder.hold(self._parts(-1))

    def blocks(self, chosen: Sequence[int] | None = None, *, then: Callable[[], None] | None = None) -> Iterator[Block]:
        """Keys and values chunk by chunk, on the model's device and in its dtype; one chunk at a time is unpacked.

        While one is used, the next one comes; so two are on the device, where chunks have to be brought there.

        Args:
            chosen: indices of chunks, ascending; None for all.
            then: called when the last of them is on its way.
        """
        indices = range(len(self.chunks)) if chosen is None else chosen
        coming: Any = None
        for number, index in enumerate(indices):
            start = index * self.chunk_tokens
            used = min(self.chunk_tokens, self.length - start)
            fetcher = self.fetcher
            if fetcher is None:
                whole = self._parts(index)
            else:
                current = self._expected(index) if coming is None else coming
                coming = fetcher.start(self.chunks[indices[number + 1]]) if number + 1 < len(indices) else None
                if coming is None and then is not None:
                    then()
                whole = fetcher.finish(current)
            parts = [part[:, :, :used].to(self.shape.device) for part in whole]
            if self.storage == "int8":
                dtype = self.shape.dtype
                yield (parts[0] * parts[1]).to(dtype), (parts[2] * parts[3]).to(dtype)
            else:
                yield parts[0], parts[1]

    def expect(self, chosen: Sequence[int] | None = None) -> None:
        """The first of these chunks, which `blocks` will give soon, is brought from now on."""
        indices = range(len(self.chunks)) if chosen is None else chosen
        if self.fetcher is not None and len(indices):
            self._first = indices[0], self.fetcher.start(self.chunks[indices[0]])

    def _expected(self, index: int) -> Any:
        """A chunk on its way."""
        first, self._first = self._first, None
        assert self.fetcher is not None, "chunks are beside the model"
        return first[1] if first is not None and first[0] == index else self.fetcher.start(self.chunks[index])

    def _parts(self, index: int) -> tuple[Tensor, ...]:
        chunk = self.chunks[index]
        return chunk.read() if isinstance(chunk, ChunkOnDisk) else chunk

    def closest_chunks(self, queries: Float[Tensor, "1 Hq Q D"], count: int) -> list[int]:
        """The chunks whose mean keys answer queries best; also the first, with the opening, and the newest.

        Args:
            queries: of a question, rotated.
            count: how many between these two.

        Source: ReKV (arXiv 2503.00540).
        Differs: a chunk may be part of a frame or several; its score is the largest product of a query with its mean
            key, averaged over query heads, where ReKV has the cosine with the mean query.
        """
        last = len(self.chunks) - 1
        if last <= count + 1:
            return list(range(last + 1))
        for index in range(len(self._means), last):
            chunk = self.chunks[index]
            if isinstance(chunk, ChunkOnDisk):
                self._means.append(chunk.mean_key)
            else:
                self._means.append(next(self.blocks([index]))[0].float().mean(2)[0])
        means = torch.stack(self._means[1:last])  # [n, Hkv, D]
        grouped = queries[0].float().unflatten(0, (self.shape.key_heads, -1))  # [Hkv, G, Q, D]
        scores = torch.einsum("hgqd,nhd->nhgq", grouped, means).amax(-1).mean((1, 2))
        return [0, *(1 + scores.topk(count).indices.sort().values).tolist(), last]

    def length_of(self, chosen: Sequence[int] | None) -> int:
        """Tokens in these chunks; in all where None."""
        if chosen is None:
            return self.length
        return sum(min(self.chunk_tokens, self.length - index * self.chunk_tokens) for index in chosen)

    def clear(self) -> None:
        """Forgets everything."""
        self.take_back([], 0)

    def take_back(self, chunks: list[Chunk], length: int) -> None:
        """Is again as it was when it held these chunks and so many tokens."""
        self.chunks, self.length, self._means, self._first = chunks, length, [], None

    def restore(self, chunks: list[tuple[Tensor, ...]], length: int) -> None:
        """Takes chunks as `used_chunks` gives them."""
        self.clear()
        for chunk in chunks:
            fresh = self._new_chunk(chunk)
            for part, tensor in zip(fresh, chunk, strict=True):
                part[:, :, : tensor.shape[2]].copy_(tensor)
            is_full = chunk[0].shape[2] == self.chunk_tokens
            self.chunks.append(self._folder.hold(fresh) if self._folder is not None and is_full else fresh)
        self.length = length

    def used_chunks(self) -> list[tuple[Tensor, ...]]:
        """The chunks as stored, without their unused ends."""
        starts = range(0, self.length, self.chunk_tokens)
        return [
            tuple(part[:, :, : min(self.chunk_tokens, self.length - start)] for part in self._parts(index))
            for index, start in enumerate(starts)
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes that the stored tokens take."""
        return self.length * self.shape.bytes_per_token(self.storage) // self.shape.num_layers

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all chunks, their unused ends included; of those on disk, too."""
        return sum(
            chunk.num_bytes
            if isinstance(chunk, ChunkOnDisk)
            else sum(part.numel() * part.element_size() for part in chunk)
            for chunk in self.chunks
        )

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
