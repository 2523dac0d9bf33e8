"""AIM: each frozen block runs its attention twice, along time and within the frame, with adapters at four positions."""

import torch
from torch import Tensor, nn

from kinescan.models.vit.vit_block import Block
from kinescan.models.vit.vit_config import ViTConfig
from peers.frozen import FrozenViT

MLP_ADAPTER_SCALE = 0.5


class Adapter(nn.Module):
    """Down to a quarter of the width, GELU, up; with or without the way past it."""

    def __init__(self, width: int, *, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.down = nn.Linear(width, width // 4)
        self.up = nn.Linear(width // 4, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        out: Tensor = self.up(nn.functional.gelu(self.down(x)))
        return x + out if self.skip else out


class AdaptedBlock(nn.Module):
    """The adapters of one block: two of the attention along time, one of that within frames, one beside the MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_in = Adapter(width, skip=True)
        self.time_out = Adapter(width, skip=False)
        self.space = Adapter(width, skip=True)
        self.joint = Adapter(width, skip=False)

    def forward(self, tokens: Tensor, block: Block, num_frames: int) -> Tensor:
        """Frozen block with adapters: [B * T, N, W] -> [B * T, N, W]."""
        tracks = tokens.unflatten(0, (-1, num_frames)).transpose(1, 2)  # [B, N, T, W]
        mixed = block.attn(self.time_in(block.ln_1(tracks.flatten(0, 1))))
        mixed = self.time_out(mixed).unflatten(0, tracks.shape[:2]).transpose(1, 2).flatten(0, 1)
        tokens = tokens + mixed
        tokens = tokens + self.space(block.attn(block.ln_1(tokens)))
        normed = block.ln_2(tokens)
        return tokens + block.mlp(normed) + MLP_ADAPTER_SCALE * self.joint(normed)


class AIM(FrozenViT):
    """A frozen ViT with adapters of space, time and both in every block.

    Source: AIM (Yang et al., ICLR 2023), the form for SSV2, which has two adapters in time.
    """

    def __init__(self, config: ViTConfig, num_frames: int, num_classes: int) -> None:
        super().__init__(config, num_frames, num_classes)
        self.adapters = nn.ModuleList(AdaptedBlock(config.width) for _ in range(config.depth))
        self.positions = nn.Parameter(torch.zeros(1, num_frames, 1, config.width))

    def forward(self, clip: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, K]."""
        num_frames = clip.shape[1]
        tokens = self.vit.embed(clip.flatten(0, 1)).unflatten(0, (-1, num_frames))
        tokens = (tokens + self.positions).flatten(0, 1)
        for block, adapters in zip(self.vit.blocks, self.adapters, strict=True):
            tokens = adapters(tokens, block, num_frames)
        return self.classify(tokens)
