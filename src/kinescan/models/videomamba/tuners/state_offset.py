import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.layers.bimamba import MixerChanges
from kinescan.models.videomamba.tuned import TunedVideoMamba, Tuner
from kinescan.models.videomamba.videomamba import VideoMambaConfig


class StateOffset(nn.Module):
    """A state that is read beside the scan's own, the same at every step; zeros at the start.

        y_t = C_t (h_t + offset)

    Args:
        inner_width: channels D.
        state_size: S.

    Source: State-offset Tuning (arXiv 2503.03499), the form on the state.
    """

    def __init__(self, inner_width: int, state_size: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(inner_width, state_size))

    def forward(self, read: Tensor) -> Tensor:
        """What is read from the offset by read vectors [R, T, S]: [R, T, D]."""
        return F.linear(read, self.offset.to(read.dtype))


class StateOffsets(Tuner):
    """An offset for each direction of every block; the scan itself continues without it.

    Args:
        config: of the model.
    """

    def __init__(self, config: VideoMambaConfig) -> None:
        super().__init__()
        inner_width = config.expand * config.width
        self.forwards, self.backwards = (
            nn.ModuleList(StateOffset(inner_width, config.state_size) for _ in range(config.depth)) for _ in range(2)
        )

    def inside(self, index: int) -> MixerChanges:
        """The block's offsets."""
        return MixerChanges(read=self.forwards[index], read_b=self.backwards[index])


class StateOffsetVideoMamba(TunedVideoMamba):
    """A frozen VideoMamba with offsets on the states of its scans: 1.2 million parameters on the middle size."""

    config_class = VideoMambaConfig

    def make_tuner(self) -> Tuner:
        """An offset for each scan."""
        return StateOffsets(self.config)
