"""Side4Video: a narrow video transformer beside a frozen ViT, fed by each of its blocks."""

import torch
from torch import Tensor, nn

from kinescan.layers.class_token import ClassTokenShift
from kinescan.models.vit.vit_block import Block
from kinescan.models.vit.vit_config import ViTConfig
from peers.frozen import FrozenViT

SIDE_WIDTHS = {768: (128, 2), 1024: (240, 6)}
"""Width of the ViT -> width and heads of the side network that have the published numbers of parameters."""


class SideBlock(nn.Module):
    """Adds the ViT's features, then convolution over time, shifted class tokens with attention in the frame, MLP."""

    def __init__(self, config: ViTConfig, side: ViTConfig) -> None:
        super().__init__()
        self.norm_features = nn.LayerNorm(config.width)
        self.narrow = nn.Linear(config.width, side.width)
        self.norm_time = nn.LayerNorm(side.width)
        self.conv = nn.Conv1d(side.width, side.width, 3, padding=1, groups=side.width)
        self.shift = ClassTokenShift(side.width)
        self.block = Block(side)

    def forward(self, tokens: Tensor, features: Tensor, num_frames: int) -> Tensor:
        """Side tokens [B * T, 1 + N, w] and the ViT's [B * T, 1 + N, W] -> side tokens."""
        tokens = tokens + self.narrow(self.norm_features(features))
        video = tokens.unflatten(0, (-1, num_frames))  # [B, T, 1 + N, w]
        tracks = self.norm_time(video[:, :, 1:]).permute(0, 2, 3, 1)  # [B, N, w, T]
        in_time = self.conv(tracks.flatten(0, 1)).unflatten(0, tracks.shape[:2]).permute(0, 3, 1, 2)
        video = video + nn.functional.pad(in_time, (0, 0, 1, 0))
        shifted, _ = self.shift(video)
        tokens = video.flatten(0, 1)
        tokens = tokens + self.block.attend(shifted.flatten(0, 1))
        return tokens + self.block.transform(tokens)


class Side4Video(FrozenViT):
    """The ViT runs without gradients; only the side network, whose tokens are averaged in the end, is trained.

    Source: Side4Video (Yao et al., 2023).
    Differs: width and heads are those that give the published numbers of parameters.
    """

    def __init__(self, config: ViTConfig, num_frames: int, num_classes: int) -> None:
        width, heads = SIDE_WIDTHS.get(config.width, (config.width // 4, config.heads))
        super().__init__(config, num_frames, num_classes, head_width=width)
        side = ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=width,
            heads=heads,
            mlp_dim=4 * width,
            depth=config.depth,
            activation="gelu",
        )
        patch = config.patch_size
        self.embed = nn.Conv3d(3, width, (3, patch, patch), stride=(1, patch, patch), padding=(1, 0, 0))
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.vit.grid[0] * self.vit.grid[1], width))
        self.side = nn.ModuleList(SideBlock(config, side) for _ in range(config.depth))
        for block in self.side:
            for projection in (block.block.attn.in_proj_weight, block.block.attn.in_proj_bias):
                nn.init.normal_(projection, std=0.02)
        self.norm = nn.LayerNorm(width)

    def forward(self, clip: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, K]."""
        num_frames = clip.shape[1]
        patches = self.embed(clip.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1).flatten(0, 1)
        class_token = self.class_token.to(patches.dtype).expand(patches.shape[0], -1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + self.positions
        for block, found in zip(self.side, self.frozen_features(clip), strict=True):
            tokens = block(tokens, found.tokens, num_frames)
        frames = self.norm(tokens).mean(dim=1).unflatten(0, (-1, num_frames))
        logits: Tensor = self.head(frames.mean(dim=1))
        return logits
