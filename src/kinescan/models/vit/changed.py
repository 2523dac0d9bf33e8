"""Blocks over those tokens of a frame that have changed; the others serve as keys and values, as they were."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kinescan.layers.attention import attend
from kinescan.layers.chunks import in_chunks
from kinescan.models.vit.vit_block import Attention, Block

Rows = Tensor
"""[M, W]: the tokens that are computed, in the order of clips, frames and positions within a frame."""


@dataclass(frozen=True)
class ChangedTokens:
    """Which tokens of which frames are computed, and where the newest value of every token is found.

    Rows are the tokens that are computed. A token that is not has the value of the newest frame before in which it was,
    a row; or, where that was before the first frame, the one that was kept: the kept tokens follow the rows.

    Attributes:
        computed: [B, T, L], bool.

    Example:
        >>> changed = ChangedTokens(torch.tensor([[[True, True], [True, False]]]))
        >>> changed.indices.tolist(), changed.source.tolist()
        ([0, 1, 2], [[0, 1], [2, 1]])
    """

    computed: Tensor

    @property
    def num_rows(self) -> int:
        """M."""
        return len(self.indices)

    @cached_property
    def indices(self) -> Tensor:
        """[M] index of each row among all B * T * L tokens."""
        return self.computed.flatten().nonzero().flatten()

    @cached_property
    def source(self) -> Tensor:
        """[B * T, L] index of every token's newest value among rows and, behind them, the kept tokens [B * L]."""
        batch, _, length = self.computed.shape
        numbers = (self.computed.flatten().cumsum(0) - 1).view_as(self.computed)
        newest = torch.where(self.computed, numbers, -1).cummax(dim=1).values
        kept = torch.arange(batch * length, device=newest.device).view(batch, 1, length)
        return torch.where(newest < 0, self.num_rows + kept, newest).flatten(0, 1)

    @cached_property
    def groups(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor, int]]:
        """Frames of which all tokens are computed, and the rest; queries of a group are padded to its longest frame.

        Of each group that has frames: these frames [G], its rows [R], the frame [R] and the position [R] of each row
        within the group, and how many positions there are.
        """
        length = self.computed.shape[2]
        counts = self.computed.sum(dim=2).flatten()  # [B * T]
        frame = self.indices // length
        starts = counts.cumsum(0) - counts
        position = torch.arange(self.num_rows, device=counts.device) - starts[frame]
        found = []
        for wanted in (counts == length, counts < length):
            frames = wanted.nonzero().flatten()
            if len(frames):
                rows = wanted[frame].nonzero().flatten()
                number = torch.zeros_like(counts).index_copy(0, frames, torch.arange(len(frames), device=counts.device))
                found.append((frames, rows, number[frame[rows]], position[rows], int(counts[frames].max())))
        return found

    def dense(self, rows: Rows, kept: Tensor | None) -> Tensor:
        """[B, T, L, W]: every token as it is now, of rows [M, W] and what was kept [B, L, W]."""
        every = rows if kept is None else torch.cat([rows, kept.flatten(0, 1).to(rows.dtype)])
        return every[self.source].unflatten(0, self.computed.shape[:2])

    def pick(self, tokens: Tensor) -> Rows:
        """The rows [M, W] of tokens [B, T, L, W]."""
        return tokens.flatten(0, 2)[self.indices]


def run_block(
    block: Block, rows: Rows, changed: ChangedTokens, kept: Tensor | None, route: Callable[[Rows, int], Rows]
) -> tuple[Rows, Tensor]:
    """A block on the rows, and the keys and values that the next frames find.

    Args:
        block: of the ViT, in evaluation mode.
        rows: [M, W].
        changed: which tokens these are.
        kept: [B, L, 2 W], keys and values of every token before the first frame; None at the start of a clip.
        route: exchanges class tokens over time, before attention (0) and before the MLP (1).

    Returns:
        [M, W], and keys and values [B, L, 2 W] of the last frame.

    Source: PKS4 (arXiv 2604.26461), eq. 10-11, on fewer tokens.
    """
    rows = route(rows, 0)
    width = rows.shape[1]
    projected = in_chunks(lambda part: block.attn.project(block.ln_1(part)), rows, 3 * width)  # [M, 3 W]
    attended, keys_values = _attend(block.attn, projected, changed, kept)
    rows = rows + block.ls_1(block.attn.out_proj(attended))
    rows = route(rows, 1)
    transformed = in_chunks(lambda part: block.mlp(block.ln_2(part)), rows, block.mlp.c_fc.out_features)
    return rows + block.ls_2(transformed), keys_values


def _attend(
    attention: Attention, projected: Tensor, changed: ChangedTokens, kept: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the rows read [M, W], from queries, keys and values [M, 3 W]; and keys and values of the last frame."""
    width = projected.shape[1] // 3
    queries, fresh = projected.split([width, 2 * width], dim=1)
    every = fresh if kept is None else torch.cat([fresh, kept.flatten(0, 1).to(fresh.dtype)])
    read = torch.empty_like(queries)
    length = changed.computed.shape[2]
    for frames, members, number, position, size in changed.groups:
        if attention.rotary is not None:  # turns the queries of all tokens or of none
            position, size = changed.indices[members] % length, length
        padded = queries.new_zeros(len(frames), size, width)
        padded[number, position] = queries[members]
        heads = (part.unflatten(2, (attention.heads, -1)) for part in (padded, *_gathered(every, changed, frames)))
        query, key, value = (part.transpose(1, 2) for part in heads)
        if attention.rotary is not None:
            query, key = attention.rotary.turn(query, key)
        read[members] = attend(query, key, value).transpose(1, 2).flatten(2)[number, position]
    last = changed.source.unflatten(0, changed.computed.shape[:2])[:, -1]
    return read, every[last]


def _gathered(every: Tensor, changed: ChangedTokens, frames: Tensor) -> tuple[Tensor, ...]:
    """Keys and values [G, L, W] that frames see."""
    return every[changed.source[frames]].chunk(2, dim=2)
