from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.layers.attention import attend
from kinescan.layers.checkpointed import checkpointed
from kinescan.layers.chunks import in_chunks
from kinescan.layers.rotary import Rotary
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.shapes import FrameTokens

FrameEmbeddings = Float[Tensor, "F E"]
"""One vector a frame."""
TokenRows = Float[Tensor, "*rows W_"]
"""Tokens of whole frames [F, N, W_], or some of them [M, W_]."""
HiddenTokens = Float[Tensor, "F N M"]
HiddenRows = Float[Tensor, "*rows M"]
"""What a branch computes inside for each token: queries, keys and values, or the MLP's hidden channels."""


Route = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]
"""Tokens -> those that continue, those that the MLP branch reads, and what a stream needs for its next frames."""


Keep = Callable[[Sequence[Tensor]], None]
"""Takes what attention projects, [F, N, 3 W] in parts of frames."""


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the GELU of OpenAI's CLIP weights.

    Differs: computed as silu(1.702 x) / 1.702, which keeps one tensor less for the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, elementwise."""
        scaled = 1.702 * x
        # In place where autograd needs nothing: these are a model's largest tensors, and fresh memory costs time.
        return F.silu(scaled, inplace=not scaled.requires_grad).div_(1.702)


class DropPath(nn.Module):
    """Drops a residual branch for whole rows of the batch while training, and scales the rest up.

    Args:
        rate: probability of dropping a row.

    Source: Deep Networks with Stochastic Depth (arXiv 1603.09382).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[F, ...] -> [F, ...]; unchanged in evaluation."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * (kept.to(x.dtype) / (1 - self.rate))

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"rate={self.rate:.3f}"


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of a frame, with the parameter names of `nn.MultiheadAttention`.

    Args:
        width: channels of a token.
        heads: attention heads.
        rotary: turns queries and keys by their position; None leaves them.
    """

    def __init__(self, width: int, heads: int, rotary: Rotary | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.rotary = rotary
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: FrameTokens) -> FrameTokens:
        """[F, N, W] -> [F, N, W]."""
        return self.mix(self.project(x))

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values [..., 3 W] of tokens [..., W]: of whole frames, or of some tokens of each."""
        return F.linear(x, self.in_proj_weight, self.in_proj_bias)

    def mix(self, qkv: HiddenTokens) -> FrameTokens:
        """The tokens [F, N, W] that queries, keys and values [F, N, 3 W] give."""
        heads = qkv.view(*qkv.shape[:2], 3, self.heads, -1)  # [F, N, 3, heads, W / heads]
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        if self.rotary is not None:
            query, key = self.rotary.turn(query, key)
        attended = attend(query, key, value)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class LayerScale(nn.Module):
    """A learned factor for each channel, at the end of a branch.

    Args:
        width: channels of a token.

    Source: Going Deeper with Image Transformers (arXiv 2103.17239), eq. 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: TokenRows) -> TokenRows:
        """[F, N, W] -> [F, N, W]."""
        return x * self.gamma


def _make_activation(config: ViTConfig) -> nn.Module:
    if config.activation == "quick_gelu":
        return QuickGELU()
    return nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")


class MLP(nn.Module):
    """Two linear layers with an activation between.

    Args:
        config: gives width, mlp_dim and activation.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.width, config.mlp_dim)
        self.gelu = _make_activation(config)
        self.c_proj = nn.Linear(config.mlp_dim, config.width)

    def forward(self, x: TokenRows) -> TokenRows:
        """[F, N, W] -> [F, N, W]."""
        return self.contract(self.c_fc(x))

    def contract(self, hidden: HiddenRows) -> TokenRows:
        """The activation and the second layer: [F, N, M] -> [F, N, W]."""
        out: Tensor = self.c_proj(self.gelu(hidden))
        return out


class Block(nn.Module):
    """A pre-norm block; its two branches can be called one by one, so that a video model can work between them.

    For the backward pass it keeps the tokens that it gets and its products' results; norms, activation and the sum
    between its branches are computed again (see `checkpointed`).

    Args:
        config: sizes and variants.
        drop_path: probability of dropping a branch while training.
    """

    def __init__(self, config: ViTConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        rotary = Rotary(config.grid, config.rotary_theta) if config.positions == "rotary" else None
        self.attn = Attention(config.width, config.heads, rotary)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)
        self.ls_1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.ls_2 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def attend(self, x: FrameTokens, keep: Keep | None = None) -> FrameTokens:
        """The attention branch of tokens [F, N, W], without the residual; `keep` takes queries, keys and values."""
        parts: list[Tensor] = []

        def branch(frames: Tensor) -> Tensor:
            projected = checkpointed(lambda tokens: self.attn.project(self.ln_1(tokens)), frames)
            parts.extend([projected] if keep is not None else [])
            return self.attn.mix(projected)

        out: Tensor = self.drop_path(self.ls_1(in_chunks(branch, x, 3 * x.shape[1] * x.shape[2])))
        if keep is not None:
            keep(parts)
        return out

    def transform(self, x: FrameTokens) -> FrameTokens:
        """The MLP branch of tokens [F, N, W], without the residual."""

        def branch(frames: Tensor) -> Tensor:
            return checkpointed(self.mlp.contract, checkpointed(self._expand, frames))

        out: Tensor = self.drop_path(self.ls_2(in_chunks(branch, x, x.shape[1] * self.mlp.c_fc.out_features)))
        return out

    def attend_parts(self, x: Tensor, seen: Tensor, keep: Keep | None = None) -> tuple[Tensor, ...]:
        """What `transform_sum` takes: tokens and what attention adds to them, or the sum where that needs less memory.

        Under autocast the sum is float32, and what attention adds has half its size; so for the backward pass both are
        kept and the sum made again. But tokens that attention did not read would be kept for that alone.

        Args:
            x: [..., N, W], tokens that continue.
            seen: [..., N, W], those that attention reads; `x` itself, or others.
            keep: see `attend`.
        """
        attended = self.attend(seen.flatten(0, -3), keep).view_as(x)
        return (x, attended) if seen is x and torch.is_grad_enabled() else (x + attended,)

    def transform_sum(self, parts: tuple[Tensor, ...], route: Route) -> tuple[Tensor, Tensor | None]:
        """The sum of `parts`, routed, with the MLP branch added.

        Args:
            parts: [..., N, W] each, from `attend_parts`.
            route: of the sum; it runs again in the backward pass.

        Returns:
            Tokens [..., N, W], and what `route` gave for the next frames.
        """
        if not torch.is_grad_enabled():
            tokens, seen, tail = route(_sum(*parts))
            return tokens + self.transform(seen.flatten(0, -3)).view_as(tokens), tail

        def enter(*parts: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            tokens, seen, tail = route(_sum(*parts))
            return tokens, self._expand(seen.flatten(0, -3)), tail

        tokens, hidden, tail = checkpointed(enter, *parts)
        transformed = self.drop_path(self.ls_2(checkpointed(self.mlp.contract, hidden)))
        return tokens + transformed.view_as(tokens), tail

    def both(
        self, x: Tensor, seen: Tensor | None, route: Route, keep: Keep | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Both branches with their residuals, and a route between them: `transform_sum` of `attend_parts`.

        Args:
            x: [..., N, W], tokens that continue.
            seen: [..., N, W], others that attention reads; None: `x`.
            route: see `transform_sum`.
            keep: see `attend`.
        """
        return self.transform_sum(self.attend_parts(x, x if seen is None else seen, keep), route)

    def forward(self, x: FrameTokens) -> FrameTokens:
        """[F, N, W] -> [F, N, W], both branches with their residuals."""
        return self.both(x, None, lambda tokens: (tokens, tokens, None))[0]

    def _expand(self, tokens: FrameTokens) -> HiddenTokens:
        hidden: Tensor = self.mlp.c_fc(self.ln_2(tokens))
        return hidden


def _sum(first: Tensor, *others: Tensor) -> Tensor:
    return sum(others, start=first)


class Transformer(nn.Module):
    """The stack of blocks.

    Args:
        config: sizes and variants.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        rates = torch.linspace(0, config.drop_path, config.depth, dtype=torch.float64, device="cpu").tolist()
        self.resblocks = nn.ModuleList(Block(config, drop_path=rate) for rate in rates)

    def forward(self, x: FrameTokens) -> FrameTokens:
        """[F, N, W] -> [F, N, W]."""
        for block in self.resblocks:
            x = block(x)
        return x


class AttentionPool(nn.Module):
    """One learned query that reads all patches of a frame, and an MLP on what it read.

    Args:
        config: gives width, heads, mlp_dim, activation and norm_eps.

    Source: SigLIP (arXiv 2303.15343), whose vision encoder ends in the attention head of Scaling Vision Transformers
        (arXiv 2106.04560), section 3.1.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(config.width))
        self.attn = Attention(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: FrameTokens) -> FrameEmbeddings:
        """[F, N, W] -> [F, W]."""
        width = x.shape[2]
        weights, biases = self.attn.in_proj_weight, self.attn.in_proj_bias
        query = F.linear(self.probe.to(x.dtype), weights[:width], biases[:width]).expand(x.shape[0], 1, width)
        key, value = F.linear(x, weights[width:], biases[width:]).chunk(2, dim=2)
        query, key, value = (part.unflatten(2, (self.attn.heads, -1)).transpose(1, 2) for part in (query, key, value))
        read = attend(query, key, value).transpose(1, 2).flatten(2)
        pooled: Tensor = self.attn.out_proj(read)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]
