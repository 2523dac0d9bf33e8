from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.models.size_limits import check_sizes
from kinescan.models.videomamba.tuned import TunedVideoMamba, Tuner
from kinescan.models.videomamba.videomamba import VideoMambaConfig
from kinescan.settings import accept_old_names


@accept_old_names
@dataclass(frozen=True, kw_only=True)
class AdapterConfig(VideoMambaConfig):
    """A frozen VideoMamba with a bottleneck after every block.

    Attributes:
        bottleneck: channels of the bottleneck.
    """

    bottleneck: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "bottleneck")


class Bottleneck(nn.Module):
    """down -> GELU -> up, added to what comes in; nothing at the start.

    Args:
        width: channels of a token.
        bottleneck: channels in between.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        out: Tensor = hidden + self.up(F.gelu(self.down(hidden)))
        return out


class Adapters(Tuner):
    """A bottleneck on the output of every block.

    Args:
        config: of the model.

    Source: Houlsby et al. (arXiv 1902.00751), section 2.1.
    Differs: one for each block, since a Mamba block has one branch where a transformer's has two.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(Bottleneck(config.width, config.bottleneck) for _ in range(config.depth))

    def leave(self, index: int, hidden: Tensor) -> Tensor:
        """[B, 1 + T * N, W]: the block's output through its adapter."""
        out: Tensor = self.adapters[index](hidden)
        return out


class AdapterVideoMamba(TunedVideoMamba):
    """A frozen VideoMamba with bottleneck adapters."""

    config_class = AdapterConfig
    config: AdapterConfig

    def make_tuner(self) -> Tuner:
        """One bottleneck for each block."""
        return Adapters(self.config)
