import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinescan.layers.mamba import scan_branch
from kinescan.shapes import Tracks

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class MixerChanges:
    """What a tuner adds inside a block; where it is None, nothing is added. D: inner width, S: state size.

    Attributes:
        in_proj: added to the input projection: tokens [R, T, width] -> [R, T, 2 D].
        x_proj: added to the projection to step sizes, write and read vectors: [R, T, D] -> [R, T, rank + 2 S].
        x_proj_b: the same of the reversed sequence.
        read: added to what is read from the state: read vectors [R, T, S] -> [R, T, D], before the gate.
        read_b: the same of the reversed sequence.
        out_proj: added to the output projection: [R, T, D] -> [R, T, width].
    """

    in_proj: Change | None = None
    x_proj: Change | None = None
    x_proj_b: Change | None = None
    read: Change | None = None
    read_b: Change | None = None
    out_proj: Change | None = None


UNCHANGED = MixerChanges()


class BidirectionalMamba(nn.Module):
    """A Mamba block that reads a sequence from both ends.

    One input projection, two branches with weights of their own (the second on the reversed sequence), each gated by
    its own copy of the gate; their sum goes through one output projection. Parameter names are VideoMamba's.

    Args:
        width: channels of a token.
        state_size: size S of the state of each channel.
        conv_kernel: kernel size of the causal convolutions.
        expand: inner width over `width`.

    Source: VideoMamba (arXiv 2403.06977), section 3.1; Vision Mamba (arXiv 2401.09417), Algorithm 1.
    Differs: the scans are `kinescan.ops.selective_scan`, which needs no GPU.
    """

    def __init__(self, width: int, *, state_size: int = 16, conv_kernel: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.inner_width = expand * width
        self.state_size = state_size
        self.dt_rank = math.ceil(width / 16)
        inner = self.inner_width
        self.A_log = nn.Parameter(torch.empty(inner, state_size))
        self.D = nn.Parameter(torch.empty(inner))
        self.A_b_log = nn.Parameter(torch.empty(inner, state_size))
        self.D_b = nn.Parameter(torch.empty(inner))
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv_kernel, groups=inner)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.conv1d_b = nn.Conv1d(inner, inner, conv_kernel, groups=inner)
        self.x_proj_b = nn.Linear(inner, self.dt_rank + 2 * state_size, bias=False)
        self.dt_proj_b = nn.Linear(self.dt_rank, inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        for parameter in (self.A_log, self.D, self.A_b_log, self.D_b):
            # Decay rates and skips get no weight decay; the names with _b are not in the optimizer's list.
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values of VideoMamba: A = -(1..S), D = 1, matrices normal with 0.02, step-size biases 0."""
        if self.D.is_meta:  # no values; see kinescan.models.skeleton
            return
        with torch.no_grad():
            steps = torch.arange(1, self.state_size + 1, dtype=torch.float32)
            for log_rates in (self.A_log, self.A_b_log):
                log_rates.copy_(steps.log().expand(self.inner_width, -1))
            for skip in (self.D, self.D_b):
                skip.fill_(1.0)
        for convolution in (self.conv1d, self.conv1d_b):
            convolution.reset_parameters()
        for matrix in (self.in_proj, self.x_proj, self.x_proj_b, self.dt_proj, self.dt_proj_b):
            nn.init.trunc_normal_(matrix.weight, std=0.02)
        for projection in (self.dt_proj, self.dt_proj_b):
            nn.init.zeros_(projection.bias)
        self.out_proj.reset_parameters()

    def filter_macs(self, tokens: Tracks) -> int:
        """MACs of the two causal convolutions on tokens [R, T, width]; they are sums that no operation shows."""
        return tokens.shape[0] * tokens.shape[1] * self.inner_width * 2 * self.conv1d.kernel_size[0]

    def forward(self, tokens: Tracks, changes: MixerChanges = UNCHANGED) -> Tracks:
        """Every token has seen those before it and those after it.

        Args:
            tokens: [R, T, width].
            changes: what is added inside.

        Returns:
            [R, T, width].
        """
        content, gate = _sum(self.in_proj, changes.in_proj)(tokens).chunk(2, dim=-1)  # [R, T, D] each
        x_proj, x_proj_b = _sum(self.x_proj, changes.x_proj), _sum(self.x_proj_b, changes.x_proj_b)
        forward, _ = scan_branch(
            content, gate, self.conv1d, x_proj, self.dt_proj, self.A_log, self.D, extra_read=changes.read
        )
        backward, _ = scan_branch(
            *(content.flip(1), gate.flip(1), self.conv1d_b, x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b),
            extra_read=changes.read_b,
        )
        return _sum(self.out_proj, changes.out_proj)(forward + backward.flip(1))


def _sum(projection: nn.Linear, change: Change | None) -> Change:
    if change is None:
        return projection
    return lambda tokens: projection(tokens) + change(tokens)
