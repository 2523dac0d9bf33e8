from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.models.size_limits import check_sizes
from kinescan.models.videomamba.tuned import TunedVideoMamba, Tuner, join_frames, split_frames
from kinescan.models.videomamba.videomamba import VideoMambaConfig
from kinescan.settings import accept_old_names


@accept_old_names
@dataclass(frozen=True, kw_only=True)
class STAdapterConfig(VideoMambaConfig):
    """A frozen VideoMamba with a depthwise filter over time inside a bottleneck, before every block.

    Attributes:
        bottleneck: channels of the bottleneck.
        kernel_size: frames of the filter; odd.
    """

    bottleneck: int = 72
    kernel_size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "bottleneck", "kernel_size")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(
                f"kernel_size must be odd, got {self.kernel_size}. Use 3: the frame before, itself, the one after."
            )


class TemporalBottleneck(nn.Module):
    """down -> depthwise filter over time -> up; nothing at the start, and no activation.

    Args:
        width: channels of a token.
        bottleneck: channels in between.
        kernel_size: frames of the filter.
    """

    def __init__(self, width: int, bottleneck: int, *, kernel_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, bottleneck)
        self.conv = nn.Conv3d(
            bottleneck, bottleneck, kernel_size=(kernel_size, 1, 1), padding=(kernel_size // 2, 0, 0), groups=bottleneck
        )
        self.fc2 = nn.Linear(bottleneck, width)
        assert self.conv.bias is not None
        for zero in (self.conv.weight, self.conv.bias, self.fc1.bias, self.fc2.bias):
            nn.init.zeros_(zero)

    def forward(self, patches: Tensor) -> Tensor:
        """What to add to the patches [B, T, N, W]."""
        inner = self.fc1(patches)
        kernel, side = self.conv.weight.flatten(1).to(inner.dtype).t().contiguous(), self.conv.kernel_size[0] // 2
        padded = nn.functional.pad(inner, (0, 0, 0, 0, side, side))
        assert self.conv.bias is not None
        mixed = self.conv.bias.to(inner.dtype).expand_as(inner)
        for k in range(kernel.shape[0]):
            mixed = torch.addcmul(mixed, padded[:, k : k + inner.shape[1]], kernel[k])
        out: Tensor = self.fc2(mixed)
        return out


class STAdapters(Tuner):
    """A filter over time on the patches that enter every block.

    Args:
        config: of the model.

    Source: ST-Adapter (arXiv 2206.13559), section 3.3.
    Differs: the class token, of which there is one for the clip, is left alone.
    """

    def __init__(self, config: STAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.adapters = nn.ModuleList(
            TemporalBottleneck(config.width, config.bottleneck, kernel_size=config.kernel_size)
            for _ in range(config.depth)
        )

    def enter(self, index: int, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, 1 + T * N, W]: the output of the block's adapter is added to the patches; the class token stays."""
        class_token, patches = split_frames(hidden, self.config)
        return join_frames(class_token, patches + self.adapters[index](patches)), residual


class STAdapterVideoMamba(TunedVideoMamba):
    """A frozen VideoMamba with spatio-temporal adapters."""

    config_class = STAdapterConfig
    config: STAdapterConfig

    def make_tuner(self) -> Tuner:
        """One filter for each block."""
        return STAdapters(self.config)
