"""What enters the decoder at once: the next tokens of one stream, or of several streams of one model side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kinescan.vlm.attention import attend_through
from kinescan.vlm.cache import StreamCache
from kinescan.vlm.chat import PatchPosition
from kinescan.vlm.families import Family, Positions
from kinescan.vlm.families.door import follows_length, pinned_rope
from kinescan.vlm.sequence import Chunk, Sequenced


@dataclass(frozen=True, kw_only=True)
class Step:
    """The next tokens of one stream, ready for the decoder.

    Attributes:
        family: of the stream.
        cache: of the stream.
        inputs: the tokens.
        num_positions: what rotary frequencies that follow the length are fixed for.
        answering: whether they are part of an answer, which sees the full KV cache.
    """

    family: Family
    cache: StreamCache
    inputs: Sequenced
    num_positions: int
    answering: bool

    @property
    def kind(self) -> tuple[Any, ...]:
        """Steps of one model may run side by side where this is equal."""
        inputs = self.inputs
        pinned = self.num_positions if follows_length(self.family.decoder) else None
        return (tuple(inputs.embedded.shape), inputs.positions.ndim, len(inputs.deepstack), pinned)


class BegunStep(NamedTuple):
    """A step of frames on its way through the decoder, and what the stream becomes once it is through.

    Attributes:
        step: what the decoder is given.
        chunks: text and patches.
        positions: how far they are given out afterwards.
        patch_position: of the patch that follows.
        number: of the newest frame.
        is_first: whether nothing came before.
    """

    step: Step
    chunks: Sequence[Chunk]
    positions: Positions
    patch_position: PatchPosition
    number: int
    is_first: bool


def run_steps(steps: Sequence[Step]) -> list[Float[Tensor, "n W"]]:
    """What the decoder gives for each of the steps, in their order.

    Steps of one kind are one batch of the decoder: its weights are read once for all of them. Attention is that of each
    stream by itself. What comes out is that of one by one but for rounding.

    Args:
        steps: of different streams of one model.
    """
    found: list[Tensor | None] = [None] * len(steps)
    groups: dict[Any, list[int]] = {}
    for index, step in enumerate(steps):
        groups.setdefault(step.kind, []).append(index)
    for members in groups.values():
        for index, hidden in zip(members, _run([steps[index] for index in members]), strict=True):
            found[index] = hidden
    return [hidden for hidden in found if hidden is not None]


def _run(steps: Sequence[Step]) -> Sequence[Tensor]:
    """Steps of one kind, through the modules of the first one's stream."""
    first = steps[0]
    decoder = first.family.decoder
    caches = [step.cache for step in steps]
    try:
        for step in steps:
            step.cache.answering, step.cache.is_text = step.answering, ~step.inputs.visual
        with attend_through(decoder, *caches), pinned_rope(decoder, first.num_positions):
            return first.family.decode(
                torch.stack([step.inputs.embedded for step in steps]),
                torch.stack([step.inputs.positions for step in steps], dim=-2),
                caches[0] if len(caches) == 1 else SideBySide(caches),
                visual=torch.stack([step.inputs.visual for step in steps]),
                deepstack=[torch.cat(level) for level in zip(*(step.inputs.deepstack for step in steps), strict=True)],
            ).unbind()
    finally:
        for cache in caches:
            cache.answering = False


class SideBySide:
    """The caches of several streams, as a decoder takes one that holds a batch.

    Its sizes are those of the first: positions are given to the decoder, and it makes no mask.
    """

    is_compileable = False

    def __init__(self, caches: Sequence[StreamCache]) -> None:
        self.caches = caches

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stores keys and values [B, Hkv, L, D], a row in each cache, and gives them back."""
        for index, cache in enumerate(self.caches):
            cache.update(keys[index : index + 1], values[index : index + 1], layer_idx)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen before this step, as transformers asks for it."""
        return self.caches[0].get_seq_length(layer_idx)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Index of this step's first token, as transformers asks for it."""
        return self.caches[0].get_query_offset(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length of the keys and index of the first, as transformers asks for them."""
        return self.caches[0].get_mask_sizes(query_length, layer_idx)
