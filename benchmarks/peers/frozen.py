"""What the peers share: a CLIP ViT whose weights stay as they are."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinescan.models.vit.vit import VisionTransformer
from kinescan.models.vit.vit_config import ViTConfig


@dataclass
class Features:
    """What a frozen block computed, without gradients.

    Attributes:
        tokens: [F, 1 + N, W], after the block.
        query: [F, heads, 1 + N, W / heads], of its attention.
        key: as query.
    """

    tokens: Tensor
    query: Tensor
    key: Tensor


class FrozenViT(nn.Module):
    """A frozen ViT with a head to train; subclasses add what else is trained, and `forward` from clips to logits.

    Args:
        config: of the ViT.
        num_frames: frames of a clip.
        num_classes: of the head.
        head_width: channels that the head reads; those of the ViT when None.
    """

    def __init__(self, config: ViTConfig, num_frames: int, num_classes: int, head_width: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.num_frames = num_frames
        self.vit = VisionTransformer(config).requires_grad_(False)
        self.head = nn.Linear(head_width or config.width, num_classes)

    def frozen_features(self, clip: Tensor) -> Iterator[Features]:
        """Features of block after block for all frames [B * T] of a clip [B, T, 3, H, W]; none is kept here."""
        with torch.no_grad():
            tokens = self.vit.embed(clip.flatten(0, 1))
        for block in self.vit.blocks:
            with torch.no_grad():
                heads = block.attn.project(block.ln_1(tokens)).unflatten(2, (3, self.config.heads, -1))
                tokens = tokens + block.attn.mix(heads.flatten(2))
                tokens = tokens + block.transform(tokens)
            query, key, _ = heads.permute(2, 0, 3, 1, 4)
            yield Features(tokens, query, key)

    def classify(self, tokens: Tensor) -> Tensor:
        """Logits [B, K] from the class tokens of tokens [B * T, 1 + N, W] after the last block, averaged over time."""
        frames = self.vit.ln_post(tokens[:, 0]).unflatten(0, (-1, self.num_frames))
        logits: Tensor = self.head(frames.mean(dim=1))
        return logits
