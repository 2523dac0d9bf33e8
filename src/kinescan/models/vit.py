import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.errors import ConfigError, ShapeError
from kinescan.layers.pieces import in_pieces
from kinescan.layers.recompute import recomputed
from kinescan.shapes import FrameTokens

FramePixels = Float[Tensor, "F 3 H W"]
"""Normalised frames folded into the batch."""
FrameEmbeddings = Float[Tensor, "F E"]
"""One vector a frame."""
HiddenTokens = Float[Tensor, "F N M"]
"""What a branch computes inside for each token: queries, keys and values, or the MLP's hidden channels."""


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes and variants of an image-pretrained ViT; the defaults are CLIP ViT-B/16 as OpenAI published it.

    Attributes:
        image_size: side of the square frame in pixels; a multiple of `patch_size`.
        patch_size: side of a patch in pixels.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads; divides `width`.
        mlp_dim: hidden channels of the MLP.
        embed_dim: channels after the last projection; None leaves the projection out.
        activation: of the MLP: "quick_gelu" for OpenAI's weights, "gelu" (exact) for others.
        norm_eps: added to the variance in every LayerNorm.
        pre_norm: a LayerNorm between embedding and blocks, as CLIP has.
        patch_bias: a bias in the patch convolution.
        position_init: how position embeddings start: "normal" draws, or "sincos" (2-D sine-cosine); both are learned.
        drop_path: probability of dropping the residual branches of a frame in the last block; 0 in the first block,
            linear between.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    embed_dim: int | None = 512
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: float = 1e-5
    pre_norm: bool = True
    patch_bias: bool = False
    position_init: Literal["normal", "sincos"] = "normal"
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "width", "depth", "heads", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.embed_dim is not None and self.embed_dim < 1:
            raise ConfigError(f"embed_dim must be at least 1, or None for no projection, got {self.embed_dim}.")
        if self.image_size % self.patch_size:
            down = max(self.image_size // self.patch_size, 1) * self.patch_size
            raise ConfigError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}. "
                f"Use {down} or {down + self.patch_size}."
            )
        if self.width % self.heads:
            raise ConfigError(f"heads must divide width {self.width}, got {self.heads}.")
        if self.position_init == "sincos" and self.width % 4:
            raise ConfigError(f'position_init="sincos" needs a width that 4 divides, got {self.width}.')
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path must lie in [0, 1), got {self.drop_path}.")
        if self.norm_eps <= 0:
            raise ConfigError(f"norm_eps must be positive, got {self.norm_eps}.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side


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
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: FrameTokens) -> FrameTokens:
        """[F, N, W] -> [F, N, W]."""
        return self.mix(self.project(x))

    def project(self, x: FrameTokens) -> HiddenTokens:
        """Queries, keys and values [F, N, 3 W] of tokens [F, N, W]."""
        return F.linear(x, self.in_proj_weight, self.in_proj_bias)

    def mix(self, qkv: HiddenTokens) -> FrameTokens:
        """The tokens [F, N, W] that queries, keys and values [F, N, 3 W] give."""
        heads = qkv.view(*qkv.shape[:2], 3, self.heads, -1)  # [F, N, 3, heads, W / heads]
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers with an activation between.

    Args:
        config: gives width, mlp_dim and activation.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.width, config.mlp_dim)
        self.gelu = QuickGELU() if config.activation == "quick_gelu" else nn.GELU()
        self.c_proj = nn.Linear(config.mlp_dim, config.width)

    def forward(self, x: FrameTokens) -> FrameTokens:
        """[F, N, W] -> [F, N, W]."""
        return self.contract(self.c_fc(x))

    def contract(self, hidden: HiddenTokens) -> FrameTokens:
        """The activation and the second layer: [F, N, M] -> [F, N, W]."""
        out: Tensor = self.c_proj(self.gelu(hidden))
        return out


class Block(nn.Module):
    """A pre-norm block; its two branches can be called one by one, so that a video model can work between them.

    For the backward pass it keeps the inputs of its norms and its products' results; norms and activation are computed
    again (see `recomputed`).

    Args:
        config: sizes and variants.
        drop_path: probability of dropping a branch while training.
    """

    def __init__(self, config: ViTConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config.width, config.heads)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)
        self.drop_path = DropPath(drop_path)

    def attend(self, x: FrameTokens) -> FrameTokens:
        """The attention branch of tokens [F, N, W], without the residual."""

        def branch(frames: Tensor) -> Tensor:
            return self.attn.mix(recomputed(lambda tokens: self.attn.project(self.ln_1(tokens)), frames))

        out: Tensor = self.drop_path(in_pieces(branch, x, 3 * x.shape[1] * x.shape[2]))
        return out

    def transform(self, x: FrameTokens) -> FrameTokens:
        """The MLP branch of tokens [F, N, W], without the residual."""

        def branch(frames: Tensor) -> Tensor:
            hidden = recomputed(lambda tokens: self.mlp.c_fc(self.ln_2(tokens)), frames)
            return recomputed(self.mlp.contract, hidden)

        out: Tensor = self.drop_path(in_pieces(branch, x, x.shape[1] * self.mlp.c_fc.out_features))
        return out

    def forward(self, x: FrameTokens) -> FrameTokens:
        """[F, N, W] -> [F, N, W], both branches with their residuals."""
        x = x + self.attend(x)
        return x + self.transform(x)


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


class VisionTransformer(nn.Module):
    """CLIP's vision tower over frames: pixels in, tokens or one embedding a frame out.

    Parameter names are those of OpenAI's CLIP (`visual.` taken off), so that weights move.

    Args:
        config: sizes and variants.

    Source: PKS4 (arXiv 2604.26461), eq. 10-11; Learning Transferable Visual Models (arXiv 2103.00020).

    Example:
        >>> vit = VisionTransformer(ViTConfig(image_size=32, patch_size=8, width=64, depth=2, heads=4, mlp_dim=256))
        >>> pixels = torch.randn(3, 3, 32, 32)
        >>> vit.forward_features(pixels).shape, vit(pixels).shape
        (torch.Size([3, 17, 64]), torch.Size([3, 512]))
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        rows, columns = config.grid
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=config.patch_bias)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + rows * columns, width))
        self.ln_pre = nn.LayerNorm(width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.transformer = Transformer(config)
        self.ln_post = nn.LayerNorm(width, eps=config.norm_eps)
        self.proj = None if config.embed_dim is None else nn.Parameter(torch.empty(width, config.embed_dim))
        self.reset_parameters()

    @property
    def blocks(self) -> list[Block]:
        """The blocks in order."""
        return cast("list[Block]", list(self.transformer.resblocks))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches: (Hp, Wp)."""
        return self.config.grid

    @property
    def out_dim(self) -> int:
        """Channels of `forward`'s result: embed_dim, or width without a projection."""
        return self.config.embed_dim or self.config.width

    @property
    def num_layers(self) -> int:
        """The largest value in `layer_depths`: depth + 1."""
        return self.config.depth + 1

    def layer_depths(self, *, prefix: str = "") -> dict[str, int]:
        """How deep every parameter sits: 0 the embeddings, 1..depth the blocks, depth + 1 what comes after them.

        Args:
            prefix: put before every name, such as "vit.".
        """
        depths = {}
        for name, _ in self.named_parameters():
            if name.startswith("transformer.resblocks."):
                depth = int(name.split(".")[2]) + 1
            else:
                depth = self.num_layers if name.startswith(("ln_post", "proj")) else 0
            depths[prefix + name] = depth
        return depths

    def reset_parameters(self) -> None:
        """Draws new weights at CLIP's scales; LayerNorms to identity, biases to zero."""
        width, depth = self.config.width, self.config.depth
        for module in self.modules():
            if isinstance(module, nn.LayerNorm | nn.Conv2d):
                module.reset_parameters()
        nn.init.normal_(self.class_embedding, std=width**-0.5)
        if self.config.position_init == "sincos":
            with torch.no_grad():
                self.positional_embedding.copy_(sincos_positions(self.grid, width))
        else:
            nn.init.normal_(self.positional_embedding, std=width**-0.5)
        for block in self.blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * width * depth) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(2 * width * depth) ** -0.5)
            for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
                nn.init.zeros_(bias)
        if self.proj is not None:
            nn.init.normal_(self.proj, std=width**-0.5)

    def embed(self, pixels: FramePixels) -> FrameTokens:
        """The tokens that enter the first block.

        Args:
            pixels: [F, 3, H, W], normalised, H = W = image_size.

        Returns:
            [F, 1 + N, W], the class token first; positions added, ln_pre applied.

        Raises:
            ShapeError: another rank, size, number of channels, or an integer dtype.
        """
        self._check(pixels)
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # [F, N, W]
        class_token = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        out: Tensor = self.ln_pre(tokens)
        return out

    def pool(self, tokens: FrameTokens) -> FrameEmbeddings:
        """One embedding a frame, [F, E], from the tokens [F, 1 + N, W] after the last block: ln_post(class) @ proj."""
        pooled: Tensor = self.ln_post(tokens[:, 0])
        return pooled if self.proj is None else pooled @ self.proj

    def forward_features(self, pixels: FramePixels) -> FrameTokens:
        """The tokens [F, 1 + N, W] after the last block (before ln_post) of pixels [F, 3, H, W]."""
        tokens: Tensor = self.transformer(self.embed(pixels))
        return tokens

    def forward(self, pixels: FramePixels) -> FrameEmbeddings:
        """One embedding a frame, [F, E], of normalised pixels [F, 3, H, W]."""
        return self.pool(self.forward_features(pixels))

    def _check(self, pixels: Tensor) -> None:
        size = self.config.image_size
        wanted = f"Allowed: [F, 3, {size}, {size}], frames folded into the batch"
        if pixels.dim() != 4:
            raise ShapeError(f"pixels must have 4 axes, got {list(pixels.shape)}. {wanted}.")
        if not pixels.is_floating_point():
            raise ShapeError(
                f"pixels must be floating point, got {str(pixels.dtype).removeprefix('torch.')}. "
                "Scale them to [0, 1] and normalise by the model's preprocessing mean and std first."
            )
        if pixels.shape[1] != 3:
            raise ShapeError(
                f"pixels must have 3 colour channels, got {pixels.shape[1]}: {list(pixels.shape)}. {wanted}."
            )
        if tuple(pixels.shape[2:]) != (size, size):
            raise ShapeError(
                f"pixels must be {size} x {size}, got {pixels.shape[2]} x {pixels.shape[3]}. "
                f"Resize the frames, or build the model with image_size={pixels.shape[2]}."
            )


def sincos_positions(grid: tuple[int, int], width: int) -> Float[Tensor, "N1 W_"]:
    """2-D sine-cosine position embeddings, zeros for the class token.

    Half of the channels tell the column, half the row; a quarter of `width` frequencies from 1 to 1/10000 each.

    Args:
        grid: rows and columns of patches.
        width: channels; a multiple of 4.

    Returns:
        [1 + rows * columns, width] float32 in [-1, 1].

    Source: Masked Autoencoders (arXiv 2111.06377), appendix A.

    Example:
        >>> sincos_positions((2, 2), 8)[1]
        tensor([0., 0., 1., 1., 0., 0., 1., 1.])
    """
    rows, columns = grid
    quarter = width // 4
    frequencies = torch.exp(-math.log(10000) * torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64, device="cpu"),
        torch.arange(columns, dtype=torch.float64, device="cpu"),
        indexing="ij",
    )
    angles = [axis.flatten()[:, None] * frequencies for axis in (x, y)]
    patches = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64, device="cpu"), patches]).float()
