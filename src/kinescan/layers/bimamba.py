import math

import torch
from torch import Tensor, nn

from kinescan.layers.mamba import scan_branch
from kinescan.shapes import Tracks


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

    def forward(self, tokens: Tracks) -> Tracks:
        """[R, T, width] -> [R, T, width]: every token has seen those before it and those after it."""
        content, gate = self.in_proj(tokens).chunk(2, dim=-1)  # [R, T, D] each
        forward, _ = scan_branch(content, gate, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        backward, _ = scan_branch(
            content.flip(1), gate.flip(1), self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b
        )
        out: Tensor = self.out_proj(forward + backward.flip(1))
        return out
