from dataclasses import dataclass
from typing import Literal

from kinescan.errors import ConfigError
from kinescan.fields import check_most, check_types
from kinescan.models.size_limits import check_at_most, check_sizes


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
        activation: of the MLP: "quick_gelu" for OpenAI's weights, "gelu_tanh" for SigLIP's, "gelu" (exact) for others.
        norm_eps: added to the variance in every LayerNorm.
        pre_norm: a LayerNorm between embedding and blocks, as CLIP has.
        patch_bias: a bias in the patch convolution.
        stem_convolutions: how many 3 x 3 convolutions of stride 2 stand before the patch convolution, each with batch
            norm and ReLU, the last with `width` channels and each one before with half as many; the patch convolution
            then takes what is left of `patch_size`, so that the number of patches stays. For small models that are
            trained from scratch; no published image weights have them.
        position_init: how position embeddings start: "normal" draws, or "sincos" (2-D sine-cosine); both are learned.
        drop_path: probability of dropping the residual branches of a frame in the last block; 0 in the first block,
            linear between.
        class_token: a token of its own for the whole frame, in front; SigLIP has none.
        num_registers: learned tokens after it that take part in attention and that no head reads (DINOv2, DINOv3).
        layer_scale: a learned factor for each channel at the end of every branch (DINOv2, DINOv3).
        positions: "learned" embeddings, or "rotary": queries and keys of patches are turned by their position (DINOv3).
        rotary_theta: the slowest rotary wave is this many times as long as the quickest.
        pooling: what a frame's embedding is made of: the "class" token; the "mean" of the patches, then normalised
            (fine-tuned MAE, timm's fc_norm), or "mean_after_norm" of the normalised patches (open_clip's "avg", timm's
            siglip_gap, I-JEPA); or what a learned query reads from the normalised patches by "attention" (SigLIP).
        unit_embeddings: bring each frame's embedding to length 1, as CLIP compares images with texts; `text` of
            `create_model` sets it.

    Source: Learning Transferable Visual Models (arXiv 2103.00020), and the papers that `VisionTransformer` names; for
        the stem, Early Convolutions Help Transformers See Better (arXiv 2106.14881).
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    embed_dim: int | None = 512
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    norm_eps: float = 1e-5
    pre_norm: bool = True
    patch_bias: bool = False
    stem_convolutions: int = 0
    position_init: Literal["normal", "sincos"] = "normal"
    drop_path: float = 0.0
    class_token: bool = True
    num_registers: int = 0
    layer_scale: bool = False
    positions: Literal["learned", "rotary"] = "learned"
    rotary_theta: float = 100.0
    pooling: Literal["class", "mean", "mean_after_norm", "attention"] = "class"
    unit_embeddings: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_most(self, norm_eps=1.0, rotary_theta=1e9)
        check_sizes(self, "image_size", "patch_size", "width", "depth", "heads", "mlp_dim", "embed_dim")
        if self.image_size % self.patch_size:
            down = max(self.image_size // self.patch_size, 1) * self.patch_size
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}. "
                f"Use {down} or {down + self.patch_size}."
            )
        self._check_stem()
        if self.width % self.heads:
            raise ConfigError(f"heads must divide width {self.width}, got {self.heads}.")
        if self.position_init == "sincos" and self.width % 4:
            raise ConfigError(f'position_init="sincos" needs a width that 4 divides, got {self.width}.')
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path must lie in [0, 1), got {self.drop_path}.")
        if self.norm_eps <= 0:
            raise ConfigError(f"norm_eps must be positive, got {self.norm_eps}.")
        check_at_most(self, "num_registers")
        if self.num_registers < 0:
            raise ConfigError(f"num_registers must be 0 or more, got {self.num_registers}.")
        if self.pooling == "class" and not self.class_token:
            raise ConfigError(
                'pooling="class" needs a class token. Use pooling="mean", "mean_after_norm" or "attention".'
            )
        if self.positions == "rotary" and (self.width // self.heads) % 4:
            raise ConfigError(
                f'positions="rotary" needs heads of a width that 4 divides, got {self.width // self.heads}.'
            )
        if self.rotary_theta <= 1:
            raise ConfigError(f"rotary_theta must be larger than 1, got {self.rotary_theta}.")

    def _check_stem(self) -> None:
        check_at_most(self, "stem_convolutions")
        if self.stem_convolutions < 0:
            raise ConfigError(f"stem_convolutions must be 0 or more, got {self.stem_convolutions}.")
        step = 2**self.stem_convolutions
        if self.patch_size % step:
            raise ConfigError(
                f"stem_convolutions = {self.stem_convolutions} makes a frame {step} times smaller before it is cut "
                f"into patches: {step} must divide patch_size {self.patch_size}."
            )
        if self.width % max(step // 2, 1):
            raise ConfigError(
                f"stem_convolutions = {self.stem_convolutions} starts with {step // 2} times fewer channels than "
                f"width: {step // 2} must divide width {self.width}."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches: the class token and the registers."""
        return int(self.class_token) + self.num_registers
