import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kinescan.errors import ShapeError
from kinescan.models.vit.vit_block import (
    AttentionPool,
    Block,
    FrameEmbeddings,
    LayerScale,
    Transformer,
)
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.shapes import FrameTokens

__all__ = ["VisionTransformer", "sincos_positions"]

FramePixels = Float[Tensor, "F 3 H W"]
"""Normalised frames folded into the batch."""


class VisionTransformer(nn.Module):
    """CLIP's vision encoder over frames: pixels in, tokens or one embedding a frame out.

    Parameter names are those of OpenAI's CLIP (`visual.` taken off), so that weights move.

    Args:
        config: sizes and variants.

    Source: PKS4 (arXiv 2604.26461), eq. 10-11; Learning Transferable Visual Models (arXiv 2103.00020); for registers,
        layer scale and rotary positions DINOv2 (arXiv 2304.07193), Vision Transformers Need Registers (arXiv
        2309.16588) and DINOv3 (arXiv 2508.10104).
    Differs: rotary positions are not moved at random in training, as DINOv3's pretraining does.

    Example:
        >>> vit = VisionTransformer(ViTConfig(image_size=32, patch_size=8, width=64, depth=2, heads=4, mlp_dim=256))
        >>> pixels = torch.randn(3, 3, 32, 32)
        >>> vit.forward_features(pixels).shape, vit(pixels).shape
        (torch.Size([3, 17, 64]), torch.Size([3, 512]))
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size // 2**config.stem_convolutions
        rows, columns = config.grid
        self.stem = _make_stem(config) if config.stem_convolutions else None
        channels = width if config.stem_convolutions else 3
        self.conv1 = nn.Conv2d(channels, width, kernel_size=patch, stride=patch, bias=config.patch_bias)
        self.class_embedding = nn.Parameter(torch.empty(width)) if config.class_token else None
        self.register_tokens = nn.Parameter(torch.empty(config.num_registers, width)) if config.num_registers else None
        self.positional_embedding = (
            nn.Parameter(torch.empty(int(config.class_token) + rows * columns, width))
            if config.positions == "learned"
            else None
        )
        self.ln_pre = nn.LayerNorm(width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.transformer = Transformer(config)
        self.ln_post = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn_pool = AttentionPool(config) if config.pooling == "attention" else None
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
                depth = self.num_layers if name.startswith(("ln_post", "attn_pool", "proj")) else 0
            depths[prefix + name] = depth
        return depths

    def reset_parameters(self) -> None:
        """Draws new weights at CLIP's scales; LayerNorms to identity, biases to zero."""
        width, depth = self.config.width, self.config.depth
        for module in self.modules():
            if isinstance(module, nn.LayerNorm | nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding, std=width**-0.5)
        if self.positional_embedding is not None and self.config.position_init == "sincos":
            with torch.no_grad():
                positions = sincos_positions(self.grid, width)
                self.positional_embedding.copy_(positions if self.config.class_token else positions[1:])
        elif self.positional_embedding is not None:
            nn.init.normal_(self.positional_embedding, std=width**-0.5)
        layers: list[Block | AttentionPool] = [*self.blocks, *([] if self.attn_pool is None else [self.attn_pool])]
        for block in layers:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * width * depth) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(2 * width * depth) ** -0.5)
            for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
                nn.init.zeros_(bias)
        for module in self.modules():
            if isinstance(module, LayerScale):
                nn.init.ones_(module.gamma)
        for token in (self.register_tokens, None if self.attn_pool is None else self.attn_pool.probe):
            if token is not None:
                nn.init.normal_(token, std=width**-0.5)
        if self.proj is not None:
            nn.init.normal_(self.proj, std=width**-0.5)

    def embed(self, pixels: FramePixels, added: Tensor | None = None) -> FrameTokens:
        """The tokens that enter the first block.

        Args:
            pixels: [F, 3, H, W], normalised, H = W = image_size.
            added: [F, N, W], to the embedded patches.

        Returns:
            [F, P + N, W]: the class token first, then registers (P of these, none in some), then the patches; positions
            added, ln_pre applied.

        Raises:
            ShapeError: another rank, size, number of channels, or an integer dtype.
        """
        self._check(pixels)
        if self.stem is not None:
            pixels = self.stem(pixels)
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # [F, N, W]
        patches = patches if added is None else patches + added
        tokens = patches
        if self.class_embedding is not None:
            class_token = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
            tokens = torch.cat([class_token, patches], dim=1)
        if self.positional_embedding is not None:
            tokens = tokens + self.positional_embedding.to(patches.dtype)
        if self.register_tokens is not None:
            registers = self.register_tokens.to(patches.dtype).expand(patches.shape[0], -1, -1)
            start = int(self.config.class_token)
            tokens = torch.cat([tokens[:, :start], registers, tokens[:, start:]], dim=1)
        out: Tensor = self.ln_pre(tokens)
        return out

    def pool(self, tokens: FrameTokens) -> FrameEmbeddings:
        """One embedding a frame, [F, E], from the tokens [F, P + N, W] after the last block, as `pooling` says.

        "class": ln_post(class token); "mean": ln_post(mean of the patches); "mean_after_norm": mean of
        ln_post(patches); "attention": what the query reads from ln_post(patches). Then @ proj, where there is one, and
        of length 1 with `unit_embeddings`.
        """
        pooled: Tensor
        patches = tokens[:, self.config.num_prefix_tokens :]
        if self.config.pooling == "class":
            pooled = self.ln_post(tokens[:, 0])
        elif self.config.pooling == "mean":
            pooled = self.ln_post(patches.mean(dim=1))
        else:
            normalised = self.ln_post(patches)
            pooled = normalised.mean(dim=1) if self.attn_pool is None else self.attn_pool(normalised)
        embeddings = pooled if self.proj is None else pooled @ self.proj
        return F.normalize(embeddings, dim=-1) if self.config.unit_embeddings else embeddings

    def forward_features(self, pixels: FramePixels) -> FrameTokens:
        """The tokens [F, P + N, W] after the last block (before ln_post) of pixels [F, 3, H, W]."""
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
        check_dtype(pixels, self.conv1.weight, "pixels")
        if pixels.shape[1] != 3:
            raise ShapeError(
                f"pixels must have 3 colour channels, got {pixels.shape[1]}: {list(pixels.shape)}. {wanted}."
            )
        if tuple(pixels.shape[2:]) != (size, size):
            raise ShapeError(
                f"pixels must be {size} x {size}, got {pixels.shape[2]} x {pixels.shape[3]}. "
                f"Resize the frames, or build the model with image_size={pixels.shape[2]}."
            )


def _make_stem(config: ViTConfig) -> nn.Sequential:
    """Pixels [F, 3, H, W] to maps [F, W, H / 2^n, W / 2^n] of n convolutions."""
    layers: list[nn.Module] = []
    channels = 3
    for number in range(config.stem_convolutions):
        wider = config.width >> (config.stem_convolutions - 1 - number)
        layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
        channels = wider
    return nn.Sequential(*layers)


def check_dtype(pixels: Tensor, weight: Tensor | None, what: str) -> None:
    """Passes pixels in the dtype and on the device of a model's weights, or such as autocast converts.

    Args:
        pixels: floating point.
        weight: one of the model's; None where it has none.
        what: what the pixels are called in the error.

    Raises:
        ShapeError: the dtype or the device is another one.
    """
    if weight is None:
        return
    if pixels.device != weight.device:
        raise ShapeError(
            f"{what} is on {pixels.device}, the model on {weight.device}. Move one of them, as by "
            f".to({str(weight.device)!r})."
        )
    converted = torch.is_autocast_enabled(pixels.device.type) and pixels.dtype != torch.float64
    if pixels.dtype != weight.dtype and not converted:
        given, own = (str(dtype).removeprefix("torch.") for dtype in (pixels.dtype, weight.dtype))
        raise ShapeError(f"{what} of {given} was given, the model is {own}. Convert: .to(torch.{own}).")


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
