import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kinescan.layers.checkpointed import checkpointed
from kinescan.layers.chunks import chunks_of
from kinescan.ops import selective_scan
from kinescan.shapes import Tracks

StepWeights = Float[Tensor, "R T"]
"""A factor of the step size, for each step of each sequence."""


@dataclass
class MambaState:
    """What a Mamba block carries from step to step: constant size, whatever came before.

    Attributes:
        scan: [R, D, S], the state of the selective scan, float32.
        conv_tail: [R, k - 1, D], the last inputs of the causal convolution.
    """

    scan: Tensor
    conv_tail: Tensor


class Mamba(nn.Module):
    """A Mamba-1 block: projection, causal depthwise convolution, selective scan, gate, projection.

    Parameter names are those of mamba_ssm, so that checkpoints move.

    Args:
        width: channels of a token.
        state_size: size S of the state of each channel.
        conv_kernel: kernel size of the causal convolution.
        expand: inner width over `width`.
        dt_rank: rank of the step-size projection; width / 16, rounded up, when None.
        zero_output: start with an output projection of zeros, so that the block adds nothing.

    Source: Mamba (Gu and Dao, 2024), Algorithm 2; PKS4 (arXiv 2604.26461), eq. 19-25.
    Differs: the scan runs along time for all trajectories at once, channels last, without a fused convolution kernel.
        What lies between the projections is computed again in the backward pass, as in the published kernel.
    """

    def __init__(
        self,
        width: int,
        *,
        state_size: int = 16,
        conv_kernel: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        self.inner_width = expand * width
        self.state_size = state_size
        self.dt_rank = math.ceil(width / 16) if dt_rank is None else dt_rank
        self.zero_output = zero_output
        self.in_proj = nn.Linear(width, 2 * self.inner_width, bias=False)
        self.conv1d = nn.Conv1d(self.inner_width, self.inner_width, conv_kernel, groups=self.inner_width)
        self.x_proj = nn.Linear(self.inner_width, self.dt_rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.inner_width)
        self.A_log = nn.Parameter(torch.empty(self.inner_width, state_size))
        self.D = nn.Parameter(torch.empty(self.inner_width))
        self.out_proj = nn.Linear(self.inner_width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values of mamba_ssm: A = -(1..S), D = 1, step sizes log-uniform in [1e-3, 0.1]."""
        self.conv1d.reset_parameters()
        for projection in (self.in_proj, self.x_proj, self.out_proj):
            projection.reset_parameters()
        if self.D.is_meta:  # no values; see kinescan.models.skeleton
            return
        with torch.no_grad():
            steps = torch.arange(1, self.state_size + 1, dtype=torch.float32)
            self.A_log.copy_(steps.log().expand(self.inner_width, -1))
            self.D.fill_(1.0)
            self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
            step_size = torch.exp(torch.empty(self.inner_width).uniform_(math.log(1e-3), math.log(0.1))).clamp(min=1e-4)
            self.dt_proj.bias.copy_(step_size + torch.log(-torch.expm1(-step_size)))  # inverse softplus
            if self.zero_output:
                self.out_proj.weight.zero_()

    def filter_macs(self, tokens: Tracks) -> int:
        """MACs of the causal convolution on tokens [R, T, width]; it is a sum that no operation shows."""
        return tokens.shape[0] * tokens.shape[1] * self.inner_width * self.conv1d.kernel_size[0]

    def forward(
        self,
        tokens: Tracks,
        state: MambaState | None = None,
        *,
        step_weights: StepWeights | None = None,
        keep_state: bool = True,
    ) -> tuple[Tracks, MambaState | None]:
        """The block's output for every step, and the state after the last one.

        Args:
            tokens: [R, T, width], one sequence for each of R trajectories.
            state: where the sequences continue from; None: they start here.
            step_weights: [R, T] in [0, 1], factors of the step sizes: a step of weight 0 leaves the state as it is.
            keep_state: give the state; without it, that of all trajectories is never held at once.

        Returns:
            [R, T, width] and the state to continue with, or None. Feeding a sequence in chunks gives what feeding it
            whole gives.
        """
        chunks = chunks_of(tokens, 2 * self.inner_width * tokens.shape[1])
        if state is not None or len(chunks) == 1:
            out, last = checkpointed(self._scan, self.in_proj(tokens), state, step_weights)
            # A copy: a view of the tail would keep the inputs of the whole chunk alive as long as the state.
            return out, MambaState(last.scan, last.conv_tail.clone()) if keep_state else None
        outs, states = [], []
        lengths = [len(chunk) for chunk in chunks]
        weights = [None] * len(chunks) if step_weights is None else step_weights.split(lengths)
        for chunk, own_weights in zip(chunks, weights, strict=True):
            out, last = self._scan(self.in_proj(chunk), None, own_weights)
            outs.append(out)
            states += [last] if keep_state else []
            del last  # or it would be held beside that of the next chunk
        out = torch.cat(outs)
        if not keep_state:
            return out, None
        scan, conv_tail = (torch.cat([getattr(part, name) for part in states]) for name in ("scan", "conv_tail"))
        return out, MambaState(scan, conv_tail)

    def _scan(
        self, projected: Tensor, state: MambaState | None, step_weights: Tensor | None
    ) -> tuple[Tensor, MambaState]:
        """All that follows the input projection: [R, T, 2 D] -> [R, T, width]."""
        content, gate = projected.chunk(2, dim=-1)  # [R, T, D] each
        parts = (self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        out, state = scan_branch(content, gate, *parts, state=state, step_weights=step_weights)
        return self.out_proj(out), state


def scan_branch(
    content: Tracks,
    gate: Tracks,
    conv1d: nn.Conv1d,
    x_proj: Callable[[Tensor], Tensor],
    dt_proj: nn.Linear,
    log_rates: Tensor,
    skip: Tensor,
    *,
    state: MambaState | None = None,
    extra_read: Callable[[Tensor], Tensor] | None = None,
    step_weights: StepWeights | None = None,
) -> tuple[Tracks, MambaState]:
    """What lies between the two projections of a block: causal convolution, selective scan, gate.

    Args:
        content: [R, T, D], what is convolved and scanned.
        gate: [R, T, D].
        conv1d: depthwise, kernel size k.
        x_proj: D -> rank of the step sizes + 2 * S.
        dt_proj: rank -> D; its bias goes into the scan.
        log_rates: [D, S], log(-A).
        skip: [D], the way past the state.
        state: where the sequences continue from; None: they start here.
        extra_read: what is read beside the state, from the read vectors [R, T, S]: [R, T, D], before the gate.
        step_weights: [R, T] in [0, 1], factors of the step sizes; None: all 1.

    Returns:
        [R, T, D] in the dtype of `content`, and the state to continue with.
    """
    content, conv_tail = _convolve(content, conv1d, None if state is None else state.conv_tail)
    state_size = log_rates.shape[1]
    low_rank, write, read = x_proj(content).split([dt_proj.in_features, state_size, state_size], dim=-1)
    step_sizes, bias = F.linear(low_rank, dt_proj.weight), _at_least_float32(dt_proj.bias)
    if step_weights is not None:
        step_sizes = (F.softplus(_at_least_float32(step_sizes) + bias) * step_weights[..., None]).to(content.dtype)
    out, scan = selective_scan(
        content,
        step_sizes,
        -torch.exp(_at_least_float32(log_rates)),
        write,
        read,
        D=_at_least_float32(skip),
        z=gate,
        delta_bias=bias if step_weights is None else None,
        delta_softplus=step_weights is None,
        state=None if state is None else state.scan,
    )
    if extra_read is not None:
        out = out + extra_read(read) * F.silu(gate)
    return out.to(content.dtype), MambaState(scan, conv_tail)


def _convolve(content: Tensor, conv1d: nn.Conv1d, tail: Tensor | None) -> tuple[Tensor, Tensor]:
    kernel = conv1d.weight.squeeze(1).to(content.dtype).t().contiguous()  # [k, D]: dense in channels, as the content is
    kernel_size, num_steps = kernel.shape[0], content.shape[1]
    if tail is None:
        tail = content.new_zeros(content.shape[0], kernel_size - 1, content.shape[2])
    padded = torch.cat([tail.to(content.dtype), content], dim=1)
    assert conv1d.bias is not None
    # Sums of shifted copies: sequences are short and channels last, where conv1d would transpose twice.
    mixed = conv1d.bias.to(content.dtype) + padded[:, :num_steps] * kernel[0]
    for k in range(1, kernel_size):
        mixed = torch.addcmul(mixed, padded[:, k : k + num_steps], kernel[k])
    return F.silu(mixed), padded[:, num_steps:]


def _at_least_float32(parameter: Tensor) -> Tensor:
    """Step sizes and decay rates keep float32 in a model that was cast to half precision."""
    return parameter.float() if parameter.dtype in (torch.bfloat16, torch.float16) else parameter
