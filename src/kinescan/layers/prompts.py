import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.errors import ConfigError
from kinescan.layers.attention import attend
from kinescan.shapes import ClassTokens, Tokens

ImportanceScope = Literal["sample", "batch"]
Weights = Float[Tensor, "B T"]


class SpreadingGate(nn.Module):
    """How strongly each channel of a frame's prompts is let through, read from the whole grid of the frame.

    A depthwise convolution as large as the grid, so one number for each channel and frame; then a linear map.

    Args:
        inner_width: channels that come in.
        width: channels of the gate.
        grid: rows and columns of patches; the kernel is tied to it.

    Source: SSP (arXiv 2510.12160), section 3.3.
    """

    def __init__(self, inner_width: int, width: int, *, grid: tuple[int, int]) -> None:
        super().__init__()
        self.convs = nn.Conv3d(inner_width, inner_width, kernel_size=(1, *grid), groups=inner_width)
        self.heads = nn.Linear(inner_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A kernel of zeros, so that the gate is shut at the start; Xavier for the map."""
        assert self.convs.bias is not None
        nn.init.zeros_(self.convs.weight)
        nn.init.zeros_(self.convs.bias)
        nn.init.xavier_normal_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)

    def forward(self, inner: Float[Tensor, "B T N C"]) -> ClassTokens:
        """[B, T, N, inner_width] -> [B, T, width]."""
        kernel = self.convs.weight.flatten(1)  # [C, N]
        assert self.convs.bias is not None
        # A convolution whose kernel is the whole map is a weighted sum over it.
        summed = torch.einsum("btnc,cn->btc", inner, kernel.to(inner.dtype)) + self.convs.bias.to(inner.dtype)
        gate: Tensor = self.heads(summed)
        return gate


class IntraFrameGathering(nn.Module):
    """What is added to the patches of a frame, and the gate of the prompts that carry it to other frames.

        f = fc2(s * fc1(P) + b),   gate = heads(convolution over the grid of (s * fc1(P) + b), without gradient)

    There is no activation. One module serves all blocks. Parameter names are those of the published code.

    Args:
        width: channels of a token.
        inner_width: channels between the two maps.
        grid: rows and columns of patches.

    Source: SSP (arXiv 2510.12160), section 3.2.
    """

    def __init__(self, width: int, inner_width: int, *, grid: tuple[int, int]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner_width)
        self.conv = nn.Conv3d(inner_width, inner_width, kernel_size=1, groups=inner_width)
        self.fc2 = nn.Linear(inner_width, width)
        self.inter = SpreadingGate(inner_width, width, grid=grid)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale 0 and biases 0: nothing is added at the start."""
        assert self.conv.bias is not None
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()
        self.inter.reset_parameters()
        for zero in (self.conv.weight, self.conv.bias, self.fc1.bias, self.fc2.bias):
            nn.init.zeros_(zero)

    def forward(self, patches: Tokens) -> tuple[Tokens, ClassTokens]:
        """What to add to the patches [B, T, N, W], of the same shape, and the gate [B, T, W]."""
        inner = self.fc1(patches)
        assert self.conv.bias is not None
        inner = inner * self.conv.weight.flatten().to(inner.dtype) + self.conv.bias.to(inner.dtype)
        return self.fc2(inner), self.inter(inner.detach())


class PromptAttention(nn.Module):
    """Self-attention over the frames at a smaller width, times a learned scale.

    Args:
        width: channels of a token.
        attention_width: channels inside; a multiple of `heads`.
        heads: attention heads.

    Raises:
        ConfigError: attention_width is not a multiple of heads.

    Source: SSP (arXiv 2510.12160), section 3.3.
    """

    def __init__(self, width: int, attention_width: int, *, heads: int = 8) -> None:
        super().__init__()
        check_heads(attention_width, heads)
        self.down_proj = nn.Linear(width, attention_width)
        self.attention = _SelfAttention(attention_width, heads)
        self.up_proj = nn.Linear(attention_width, width)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, tokens: ClassTokens) -> ClassTokens:
        """[B, T, W] -> [B, T, W]."""
        out: Tensor = self.up_proj(self.attention(self.down_proj(tokens)))
        return out * self.scale.to(out.dtype)


class _SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        projected = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


@torch.no_grad()
def frame_importance(gathered: Tokens, *, scope: ImportanceScope = "sample") -> Weights:
    """How much each frame counts: frames whose patches have something definite to say count more.

    The channels of a patch are taken as a distribution p; its importance is 1 - entropy(p) / largest entropy. A frame's
    is the mean over its patches, and the frames' go through a softmax. No gradient flows.

    Args:
        gathered: [B, T, N, W], what intra-frame gathering adds.
        scope: where the largest entropy is looked for: "sample", each clip by itself, so that a clip's result does not
            depend on the clips beside it; or "batch", as in the published code.

    Returns:
        [B, T], positive; sums to 1 over T.

    Source: SSP (arXiv 2510.12160), eq. 8-10.
    Differs: "sample" is the default; the published code takes the maximum over the whole batch.

    Example:
        >>> frame_importance(torch.zeros(1, 4, 9, 16)).tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    weights = F.softmax(gathered.detach(), dim=-1)
    entropy = -(weights * torch.log(weights + 1e-10)).sum(dim=-1)  # [B, T, N]
    largest = entropy.amax() if scope == "batch" else entropy.amax(dim=(1, 2), keepdim=True)
    return F.softmax((1 - entropy / largest).mean(dim=2), dim=1)


def check_heads(attention_width: int, heads: int) -> None:
    """Passes a width that the heads divide.

    Raises:
        ConfigError: they do not.
    """
    if heads < 1 or attention_width < 1 or attention_width % heads:
        near = max(heads, 1) * max(1, math.floor(attention_width / max(heads, 1)))
        raise ConfigError(
            f"attention_width must be a multiple of attention_heads, got {attention_width} and {heads}. "
            f"Try attention_width={near}."
        )
