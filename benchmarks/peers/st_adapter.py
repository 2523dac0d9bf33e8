"""ST-Adapter: a bottleneck with a depthwise convolution over space and time before the attention of every block."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kinescan.models.vit.vit import VisionTransformer
from kinescan.models.vit.vit_config import ViTConfig
from peers.frozen import FrozenViT
from peers.video import PeerConfig, VideoPeer


class SpaceTimeAdapter(nn.Module):
    """Down, depthwise 3 x 3 x 3 convolution over (time, rows, columns), up; added to the patch tokens."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.conv = nn.Conv3d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[B, T * N, W] -> [B, T * N, W], what is added; grid is (T, rows, columns)."""
        volume = self.down(patches).transpose(1, 2).unflatten(2, grid)
        out: Tensor = self.up(self.conv(volume).flatten(2).transpose(1, 2))
        return out


class STAdapter(FrozenViT):
    """A frozen ViT with one adapter in every block.

    Source: ST-Adapter (Pan et al., NeurIPS 2022): bottleneck 384, one adapter before each attention.
    """

    def __init__(self, config: ViTConfig, num_frames: int, num_classes: int, *, bottleneck: int = 384) -> None:
        super().__init__(config, num_frames, num_classes)
        self.adapters = nn.ModuleList(SpaceTimeAdapter(config.width, bottleneck) for _ in range(config.depth))

    def forward(self, clip: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, K]."""
        return self.classify(adapted_tokens(self.vit, self.adapters, clip))


@dataclass(frozen=True, kw_only=True)
class STAdapterConfig(PeerConfig):
    """A frozen ViT with ST-Adapters.

    Attributes:
        bottleneck: channels of the adapters; half of the width, as published, when None.
    """

    bottleneck: int | None = None


class STAdapterClassifier(VideoPeer):
    """The same as a classifier for `kinescan.training.fit`: the ViT stays as it is loaded."""

    config_class = STAdapterConfig
    config: STAdapterConfig

    def __init__(self, config: STAdapterConfig, **options: Any) -> None:
        super().__init__(config, **options)
        self.vit.requires_grad_(False)
        bottleneck = config.bottleneck or config.width // 2
        self.adapters = nn.ModuleList(SpaceTimeAdapter(config.width, bottleneck) for _ in range(config.depth))

    def forward(self, clip: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, K]: the head on the mean of the frames' embeddings."""
        self.check_clip(clip)
        frames = self.vit.pool(adapted_tokens(self.vit, self.adapters, clip)).unflatten(0, clip.shape[:2])
        logits: Tensor = self.head(frames.mean(dim=1))
        return logits


def adapted_tokens(vit: VisionTransformer, adapters: nn.ModuleList, clip: Tensor) -> Tensor:
    """The tokens [B * T, 1 + N, W] after the last block of clips [B, T, 3, H, W], one adapter before each attention."""
    num_frames, grid = clip.shape[1], vit.grid
    tokens = vit.embed(clip.flatten(0, 1))  # [B * T, 1 + N, W]
    for block, adapter in zip(vit.blocks, adapters, strict=True):
        patches = tokens[:, 1:].unflatten(0, (-1, num_frames)).flatten(1, 2)
        added = adapter(patches, (num_frames, *grid)).unflatten(1, (num_frames, -1)).flatten(0, 1)
        tokens = block(nn.functional.pad(added, (0, 0, 1, 0)) + tokens)
    return tokens
