"""TimeSformer with divided attention: along time first, then within the frame."""

from typing import Any

import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.models.vit.vit_block import Attention, Block
from kinescan.models.weights.load_report import LoadReport
from kinescan.models.weights.vit_weights import Pretrained
from peers.video import PeerConfig, VideoPeer


class TimeAttention(nn.Module):
    """Attention of every patch to the same patch of the other frames, with a last map of zeros: nothing at the start.

    Args:
        config: of the model.
    """

    def __init__(self, config: PeerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config.width, config.heads)
        self.out = nn.Linear(config.width, config.width)
        nn.init.normal_(self.attn.in_proj_weight, std=config.width**-0.5)
        for zero in (self.attn.in_proj_bias, self.attn.out_proj.bias, self.out.weight, self.out.bias):
            nn.init.zeros_(zero)

    def forward(self, patches: Tensor) -> Tensor:
        """What is added to the patches [B, T, N, W]."""
        batch = patches.shape[0]
        tracks = patches.transpose(1, 2).flatten(0, 1)  # [B * N, T, W]
        added: Tensor = self.out(self.attn(self.norm(tracks)))
        return added.unflatten(0, (batch, -1)).transpose(1, 2)

    @torch.no_grad()
    def start_from(self, block: Block) -> None:
        """Norm and attention as those within the frame."""
        for own, other in ((self.norm, block.ln_1), (self.attn, block.attn)):
            for parameter, source in zip(own.parameters(), other.parameters(), strict=True):
                parameter.copy_(source)


class TimeSformer(VideoPeer):
    """One class token for the clip; in every block it takes part in the attention of each frame, averaged over them.

    Source: TimeSformer (Bertasius et al., arXiv 2102.05095), section 3, "divided space-time attention", and its
        published code: attention over time starts as that over space, with a last map of zeros.
    Differs: that map is zero in the first block, too; embeddings of time come after `ln_pre`, where the ViT has one.
    """

    def __init__(self, config: PeerConfig, **options: Any) -> None:
        super().__init__(config, **options)
        if not config.class_token:
            raise ConfigError("TimeSformer needs a class token.")
        self.times = nn.Parameter(torch.zeros(config.num_frames, 1, config.width))
        self.time_attentions = nn.ModuleList(TimeAttention(config) for _ in range(config.depth))

    def load(self, pretrained: Pretrained, *, skip: tuple[str, ...] = ()) -> LoadReport:
        report = super().load(pretrained, skip=skip)
        if pretrained.model != self.name:
            for block, attention in zip(self.vit.blocks, self.time_attentions, strict=True):
                assert isinstance(attention, TimeAttention)
                attention.start_from(block)
        return report

    def forward_features(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """The class token [B, 1, W] and the patches [B, T, N, W] after the last block of clips [B, T, 3, H, W]."""
        self.check_clip(clip)
        batch, num_frames = clip.shape[:2]
        tokens = self.vit.embed(clip.flatten(0, 1)).unflatten(0, (batch, num_frames))
        # Before the first block the class token is the same in all frames.
        class_token, patches = tokens[:, 0, :1], tokens[:, :, 1:] + self.times
        for block, attention in zip(self.vit.blocks, self.time_attentions, strict=True):
            patches = patches + attention(patches)
            frames = torch.cat(
                [class_token[:, None].expand(-1, num_frames, -1, -1), patches], dim=2
            )  # [B, T, 1 + N, W]
            added = block.attend(frames.flatten(0, 1)).unflatten(0, (batch, num_frames))
            class_token = class_token + added[:, :, :1].mean(dim=1)
            patches = patches + added[:, :, 1:]
            tokens = torch.cat([class_token, patches.flatten(1, 2)], dim=1)  # [B, 1 + T * N, W]
            tokens = tokens + block.transform(tokens)
            class_token, patches = tokens[:, :1], tokens[:, 1:].unflatten(1, (num_frames, -1))
        return class_token, patches

    def forward(self, clip: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, K]."""
        class_token, patches = self.forward_features(clip)
        logits: Tensor = self.head(self.vit.pool(torch.cat([class_token, patches.flatten(1, 2)], dim=1)))
        return logits
