"""Joint attention of all tokens of a clip, of tubelets of a few frames: the encoder of VideoMAE."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.models.weights.load_report import LoadReport
from kinescan.models.weights.videomamba_weights import inflate
from kinescan.models.weights.vit_weights import Pretrained
from peers.video import PeerConfig, VideoPeer


@dataclass(frozen=True, kw_only=True)
class JointConfig(PeerConfig):
    """A ViT over the tubelets of a clip.

    Attributes:
        tubelet_frames: frames of a token; divides num_frames.
    """

    tubelet_frames: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tubelet_frames < 1 or self.num_frames % self.tubelet_frames:
            raise ConfigError(f"tubelet_frames must divide {self.num_frames} frames, got {self.tubelet_frames}.")

    @property
    def num_steps(self) -> int:
        """Time steps."""
        return self.num_frames // self.tubelet_frames


class JointAttention(VideoPeer):
    """Tubelets as tokens, each with a position of its own in space and time, and every token attends to all.

    From an image ViT, the kernel is its patch kernel spread over the tubelet, and positions are its own at every step.
    The ViT's own kernel and positions are then not used, and not trained.

    Source: VideoMAE (Tong et al., arXiv 2203.12602), section 3.3: joint space-time attention, tubelets of 2 x 16 x 16.
    Differs: positions are learned from where the image ViT's are, as in ViViT (arXiv 2103.15691, section 3.4); a ViT
        with a class token keeps it, for the clip.
    """

    config_class = JointConfig
    config: JointConfig

    def __init__(self, config: JointConfig, **options: Any) -> None:
        super().__init__(config, **options)
        patch = (config.tubelet_frames, config.patch_size, config.patch_size)
        self.tubelets = nn.Conv3d(3, config.width, patch, stride=patch, bias=config.patch_bias)
        rows, columns = config.grid
        self.positions = nn.Parameter(torch.zeros(config.num_steps, rows * columns, config.width))
        self.start_from_image()
        self.vit.conv1.requires_grad_(False)
        assert self.vit.positional_embedding is not None
        self.vit.positional_embedding.requires_grad_(False)

    @torch.no_grad()
    def start_from_image(self) -> None:
        """Kernel and positions as those of the image ViT."""
        self.tubelets.weight.copy_(inflate(self.vit.conv1.weight, self.config.tubelet_frames, how="mean"))
        if self.tubelets.bias is not None and self.vit.conv1.bias is not None:
            self.tubelets.bias.copy_(self.vit.conv1.bias)
        assert self.vit.positional_embedding is not None
        self.positions.copy_(self.vit.positional_embedding[self.config.num_prefix_tokens :].expand_as(self.positions))

    def load(self, pretrained: Pretrained, *, skip: tuple[str, ...] = ()) -> LoadReport:
        report = super().load(pretrained, skip=skip)
        if pretrained.model != self.name:
            self.start_from_image()
        return report

    def forward_features(self, clip: Tensor) -> Tensor:
        """[B, P + T' * N, W], the tokens after the last block, before the last norm, of clips [B, T, 3, H, W]."""
        self.check_clip(clip)
        steps = self.tubelets(clip.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)  # [B, T', N, W]
        tokens = (steps + self.positions).flatten(1, 2)
        if self.vit.class_embedding is not None and self.vit.positional_embedding is not None:
            class_token = self.vit.class_embedding + self.vit.positional_embedding[0]
            tokens = torch.cat([class_token.expand(len(tokens), 1, -1), tokens], dim=1)
        tokens = self.vit.ln_pre(tokens)
        out: Tensor = self.vit.transformer(tokens)
        return out

    def forward(self, clip: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, K]."""
        logits: Tensor = self.head(self.vit.pool(self.forward_features(clip)))
        return logits
