"""EVL: a decoder whose single query reads the features of every block of a frozen ViT, all frames at once."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinescan.models.vit.vit_config import ViTConfig
from peers.frozen import Features, FrozenViT


class FrameAttention(nn.Module):
    """Where patches of a frame are found in the one before (or after) it: the frozen attention, weighted by position.

    Queries and keys come from the frozen block; only the weight of each displacement is trained.
    """

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        rows, columns = grid
        self.before = nn.Parameter(torch.zeros((2 * rows - 1) * (2 * columns - 1), width))
        self.after = nn.Parameter(torch.zeros((2 * rows - 1) * (2 * columns - 1), width))
        y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
        positions = (y[:, None] - y + rows - 1) * (2 * columns - 1) + (x[:, None] - x + columns - 1)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """[B, T, heads, 1 + N, c] each -> [B, T, 1 + N, W], zero for the class token."""
        query, key = query[:, :, :, 1:], key[:, :, :, 1:]
        from_before = self._weighted(query[:, 1:], key[:, :-1], self.before)
        from_after = self._weighted(query[:, :-1], key[:, 1:], self.after)
        padded = functional.pad(from_before, (0, 0, 1, 0, 1, 0)) + functional.pad(from_after, (0, 0, 1, 0, 0, 1))
        return padded

    def _weighted(self, query: Tensor, key: Tensor, weights: Tensor) -> Tensor:
        with torch.no_grad():
            scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
            attention = scores.softmax(dim=-1).mean(dim=2)  # [B, T - 1, N, N]
        return torch.einsum("btqk,qkc->btqc", attention, weights[self.positions])


class DecoderBlock(nn.Module):
    """Time within the features of one block, then the query reads them."""

    def __init__(self, config: ViTConfig, num_frames: int) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.positions = nn.Parameter(torch.zeros(num_frames, 1, width))
        self.frames = FrameAttention(config.grid, width)
        self.norm_query, self.norm_mlp, self.norm_features = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, config.mlp_dim), nn.GELU(), nn.Linear(config.mlp_dim, width))

    def forward(self, asked: Tensor, found: Features, num_frames: int) -> Tensor:
        """The query [B, 1, W] after it has read the features of all frames."""
        tokens, query, key = (x.unflatten(0, (-1, num_frames)) for x in (found.tokens, found.query, found.key))
        batch, _, num_tokens, width = tokens.shape
        in_time = self.conv(tokens.permute(0, 2, 3, 1).flatten(0, 1))
        in_time = in_time.view(batch, num_tokens, width, num_frames).permute(0, 3, 1, 2)
        tokens = tokens + in_time + self.positions + self.frames(query, key)
        read = self.norm_features(tokens.flatten(1, 2))
        heads = (
            x.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(self.norm_query(asked)), self.key(read), self.value(read))
        )
        answer = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        asked = asked + self.out(answer)
        out: Tensor = asked + self.mlp(self.norm_mlp(asked))
        return out


class EVL(FrozenViT):
    """A decoder of as many blocks as the frozen ViT has.

    Source: EVL (Lin et al., ECCV 2022), the form for SSV2: every block is read.
    """

    def __init__(self, config: ViTConfig, num_frames: int, num_classes: int) -> None:
        super().__init__(config, num_frames, num_classes)
        self.asked = nn.Parameter(torch.zeros(1, 1, config.width))
        self.decoder = nn.ModuleList(DecoderBlock(config, num_frames) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, clip: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, K]."""
        asked = self.asked.expand(clip.shape[0], -1, -1)
        for block, found in zip(self.decoder, self.frozen_features(clip), strict=True):
            asked = block(asked, found, clip.shape[1])
        logits: Tensor = self.head(self.norm(asked[:, 0]))
        return logits
