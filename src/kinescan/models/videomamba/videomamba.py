import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kinescan.errors import ConfigError, ShapeError
from kinescan.fields import check_most, check_types
from kinescan.layers.bimamba import UNCHANGED, BidirectionalMamba, MixerChanges
from kinescan.models.classifier import VideoClassifier
from kinescan.models.size_limits import check_sizes
from kinescan.models.vit.vit_block import DropPath
from kinescan.models.weights.checkpoint_file import Checkpoint
from kinescan.models.weights.load_report import LoadReport
from kinescan.models.weights.videomamba_weights import load_videomamba, read_videomamba
from kinescan.models.weights.vit_weights import Pretrained
from kinescan.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from kinescan.settings import accept_old_names
from kinescan.shapes import Clip, Logits

Sequences = Float[Tensor, "B L W_"]
"""The class token and the tokens of every frame, in order of time."""
Features = Float[Tensor, "B W_"]


@accept_old_names
@dataclass(frozen=True, kw_only=True)
class VideoMambaConfig:
    """A video classifier without attention: two-direction Mamba blocks over the tokens of all frames at once.

    Attributes:
        num_classes: size of the head.
        image_size: side of the square frame in pixels.
        patch_size: side of a patch in pixels.
        num_frames: frames of a clip.
        tubelet_frames: frames that a token covers.
        width: channels of a token.
        depth: blocks.
        state_size: size of the scan's state for each channel.
        conv_kernel: kernel size of the convolutions along the sequence.
        expand: inner width of a block over `width`.
        rms_norm: RMSNorm in the blocks and at the end; LayerNorm where it is off.
        norm_eps: added to the variance.
        drop_path: rate at which the last block's output is dropped while training; earlier ones less, linearly.
        inflation: how an image model's kernel becomes one over several frames: "center" puts it at the middle one,
            "mean" spreads it.
        activation_checkpointing: compute blocks again in the backward pass instead of keeping what they computed; the
            same gradients in less memory.

    Source: VideoMamba (arXiv 2403.06977), section 3.
    """

    num_classes: int = 400
    image_size: int = 224
    patch_size: int = 16
    num_frames: int = 8
    tubelet_frames: int = 1
    width: int = 576
    depth: int = 32
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    rms_norm: bool = True
    norm_eps: float = 1e-5
    drop_path: float = 0.0
    inflation: Literal["center", "mean"] = "center"
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_most(self, norm_eps=1.0)
        sizes = ("num_classes", "image_size", "patch_size", "num_frames", "tubelet_frames", "width", "depth")
        check_sizes(self, *sizes, "state_size", "conv_kernel", "expand")
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size must be a multiple of patch_size, got {self.image_size} and {self.patch_size}. "
                f"Try image_size={self.image_size // self.patch_size * self.patch_size or self.patch_size}."
            )
        if self.num_frames % self.tubelet_frames:
            raise ConfigError(
                f"num_frames must be a multiple of tubelet_frames, got {self.num_frames} and {self.tubelet_frames}."
            )
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path must lie in [0, 1), got {self.drop_path}.")
        if not self.norm_eps > 0:
            raise ConfigError(f"norm_eps must be positive, got {self.norm_eps}.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def num_patches(self) -> int:
        """Tokens of one time step."""
        rows, columns = self.grid
        return rows * columns

    @property
    def num_steps(self) -> int:
        """Time steps: frames over the frames of a token."""
        return self.num_frames // self.tubelet_frames


class Norm(nn.Module):
    """RMSNorm or LayerNorm in the precision of what comes in, with the result in that of the weights.

    Args:
        width: channels.
        rms: RMSNorm; else LayerNorm.
        eps: added to the variance.
    """

    def __init__(self, width: int, *, rms: bool, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = None if rms else nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        weight = self.weight.to(x.dtype)
        if self.bias is None:
            normed = F.rms_norm(x, weight.shape, weight, self.eps)
        else:
            normed = F.layer_norm(x, weight.shape, weight, self.bias.to(x.dtype), self.eps)
        return normed.to(self.weight.dtype)

    def extra_repr(self) -> str:
        """Width and eps, for printing."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class MambaBlock(nn.Module):
    """Add, norm, mix: takes the sum of all blocks so far and the last one's output, which it adds first.

    Args:
        config: of the model.
        drop_path: rate of the output that comes in.
    """

    def __init__(self, config: VideoMambaConfig, *, drop_path: float) -> None:
        super().__init__()
        self.mixer = BidirectionalMamba(
            config.width, state_size=config.state_size, conv_kernel=config.conv_kernel, expand=config.expand
        )
        self.norm = Norm(config.width, rms=config.rms_norm, eps=config.norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, hidden: Sequences, residual: Sequences | None, changes: MixerChanges = UNCHANGED
    ) -> tuple[Sequences, Sequences]:
        """The mixer's output, and the sum that it has still to be added to (at least float32).

        Args:
            hidden: [B, L, W], the output of the block before, or the embedded clip.
            residual: [B, L, W], the sum before it; None in the first block.
            changes: what a tuner adds inside the mixer.
        """
        residual = add_to_residual(residual, hidden if residual is None else self.drop_path(hidden))
        return self.mixer(self.norm(residual), changes), residual


class PatchEmbedding(nn.Module):
    """Patches of a few frames as tokens, by a convolution whose stride is its kernel.

    Args:
        config: of the model.
    """

    def __init__(self, config: VideoMambaConfig) -> None:
        super().__init__()
        kernel = (config.tubelet_frames, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.width, kernel_size=kernel, stride=kernel)

    def forward(self, clip: Clip) -> Tensor:
        """[B, T, 3, H, W] -> [B, T / tubelet_frames, N, width]."""
        batch, num_frames = clip.shape[:2]
        frames, patch, _ = self.proj.kernel_size
        if frames > 1:
            return self.proj(clip.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)
        # A kernel of one frame is a convolution of images, which is faster on a CPU.
        maps = F.conv2d(clip.flatten(0, 1), self.proj.weight.squeeze(2), self.proj.bias, stride=patch)
        return maps.flatten(2).transpose(1, 2).unflatten(0, (batch, num_frames))


class VideoMamba(VideoClassifier):
    """Two-direction Mamba blocks over all tokens of a clip: its cost grows linearly with the frames.

    Parameter names are those of the published checkpoints.

    Args:
        config: the architecture.
        name: its name in the zoo.
        labels: the classes' texts.
        preprocessing: how pixels become clips; ImageNet's mean and deviation by default.

    Raises:
        ConfigError: preprocessing makes clips of another size or number of frames.

    Source: VideoMamba (arXiv 2403.06977), section 3.
    Differs: scans run on `kinescan.ops.selective_scan`: no mamba-ssm, no causal-conv1d, no GPU needed.

    Example:
        >>> model = VideoMamba(VideoMambaConfig(image_size=32, width=32, depth=2, num_frames=4, num_classes=5))
        >>> model(torch.zeros(1, 4, 3, 32, 32)).shape
        torch.Size([1, 5])
    """

    config_class = VideoMambaConfig
    config: VideoMambaConfig
    interpolated: ClassVar[frozenset[str]] = frozenset({"image_size", "num_frames"})
    usual_preprocessing: ClassVar[Mapping[str, Any]] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}

    def __init__(
        self,
        config: VideoMambaConfig,
        *,
        name: str = "videomamba",
        labels: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if preprocessing is None:
            preprocessing = Preprocessing(
                num_frames=config.num_frames, size=config.image_size, **self.usual_preprocessing
            )
        super().__init__(config, name=name, labels=labels, preprocessing=preprocessing)
        if self.preprocessing.num_frames != config.num_frames:
            raise ConfigError(
                f"preprocessing makes clips of {preprocessing.num_frames} frames, the model takes "
                f"{config.num_frames}. Set preprocessing.num_frames to {config.num_frames}, or num_frames to "
                f"{preprocessing.num_frames}: positions in time are interpolated when weights are loaded."
            )
        width = config.width
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.num_patches, width))
        self.temporal_pos_embedding = nn.Parameter(torch.empty(1, config.num_steps, width))
        for positions in (self.cls_token, self.pos_embed, self.temporal_pos_embedding):
            positions._no_weight_decay = True  # type: ignore[attr-defined]
        self.patch_embed = PatchEmbedding(config)
        self.head = nn.Linear(width, config.num_classes)
        rates = [config.drop_path * j / max(config.depth - 1, 1) for j in range(config.depth)]
        # A block's output is dropped where it is added, which is at the start of the next one.
        self.layers = nn.ModuleList(MambaBlock(config, drop_path=rate) for rate in [0.0, *rates[:-1]])
        self.drop_path = DropPath(rates[-1])
        self.norm_f = Norm(width, rms=config.rms_norm, eps=config.norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights as VideoMamba does; temporal positions and the class token start at zero."""
        if self.cls_token.is_meta:  # no values; see kinescan.models.skeleton
            return
        for block in self.blocks:
            block.mixer.reset_parameters()
            with torch.no_grad():
                block.mixer.out_proj.weight.div_(math.sqrt(self.config.depth))
        nn.init.zeros_(self.cls_token)
        nn.init.zeros_(self.temporal_pos_embedding)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def blocks(self) -> list[MambaBlock]:
        """The blocks in order."""
        return [block for block in self.layers if isinstance(block, MambaBlock)]

    def sharded_blocks(self) -> Sequence[tuple[nn.Module, tuple[str, ...]]]:
        """The blocks."""
        return [(block, ()) for block in self.blocks]

    @property
    def num_layers(self) -> int:
        """Blocks, and what comes after them."""
        return self.config.depth + 1

    def layer_depths(self) -> dict[str, int]:
        """0 the embeddings, then the blocks, then the last norm; the head, and what a tuner adds, are new."""
        depths = {}
        for name, _ in self.named_parameters():
            first, *rest = name.split(".")
            if first == "layers":
                depths[name] = int(rest[0]) + 1
            elif first == "norm_f":
                depths[name] = self.num_layers
            elif first in ("cls_token", "pos_embed", "temporal_pos_embedding", "patch_embed"):
                depths[name] = 0
        return depths

    @classmethod
    def translate(cls, checkpoint: Checkpoint) -> Pretrained:
        """A published VideoMamba or one of kinescan, under kinescan's names.

        Raises:
            CheckpointError: it is something else, or incomplete.
        """
        return read_videomamba(checkpoint)

    def load(self, pretrained: Pretrained, *, skip: tuple[str, ...] = ()) -> LoadReport:
        """Loads weights, inflated and interpolated to this model's sizes; the report names every change.

        Raises:
            CheckpointError: a tensor fits neither as it is nor interpolated.
        """
        return load_videomamba(self, pretrained, skip=skip, inflation=self.config.inflation)

    def check_clip(self, clip: Tensor) -> None:
        """Passes a clip [B, T, 3, H, W] that `forward` can take.

        Raises:
            ShapeError: it has another rank, size, dtype or number of frames; the message says what to do.
        """
        super().check_clip(clip)
        if clip.shape[1] != self.config.num_frames:
            raise ShapeError(
                f"a clip must have {self.config.num_frames} frames, got {clip.shape[1]}: positions in time are "
                f"learned. Sample {self.config.num_frames}, or build the model with num_frames={clip.shape[1]} on the "
                "same weights, which interpolates them."
            )

    def embed(self, clip: Clip) -> Sequences:
        """The tokens that enter the first block.

        Args:
            clip: [B, T, 3, H, W], normalised.

        Returns:
            [B, 1 + T' * N, W]: the class token, then the patches of every time step in order, positions added.

        Raises:
            ShapeError: as for `check_clip`.
        """
        self.check_clip(clip)
        patches = self.patch_embed(clip) + self.pos_embed[:, None, 1:] + self.temporal_pos_embedding[:, :, None]
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(clip.shape[0], -1, -1)
        return torch.cat([class_token.to(patches.dtype), patches.flatten(1, 2)], dim=1)

    def forward_features(self, clip: Clip) -> Features:
        """[B, W], the class token of clips [B, T, 3, H, W] after the last block and norm."""
        hidden, residual = self._begin(self.embed(clip)), None
        for index, block in enumerate(self.blocks):
            hidden, residual = self._enter(index, hidden, residual)
            changes = self._inside(index)
            if self.config.activation_checkpointing and torch.is_grad_enabled():
                hidden, residual = checkpoint(block, hidden, residual, changes, use_reentrant=False)
            else:
                hidden, residual = block(hidden, residual, changes)
            hidden = self._leave(index, hidden)
        assert residual is not None
        return self.norm_f(add_to_residual(residual[:, 0], self.drop_path(hidden[:, 0])))

    def forward(self, clip: Clip) -> Logits:
        """Scores of each class for each clip.

        Args:
            clip: [B, T, 3, H, W], normalised frames, T = num_frames.

        Returns:
            Logits [B, K].

        Raises:
            ShapeError: the clip has another rank, size or number of frames than the model takes.
        """
        logits: Tensor = self.head(self.forward_features(clip))
        return logits

    def _begin(self, hidden: Tensor) -> Tensor:
        """What enters the first block instead of the embedded clip; tuners add tokens here."""
        return hidden

    def _enter(self, index: int, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What enters block `index`; tuners change it here."""
        return hidden, residual

    def _inside(self, index: int) -> MixerChanges:
        """What is added inside block `index`; tuners give it here."""
        return UNCHANGED

    def _leave(self, index: int, hidden: Tensor) -> Tensor:
        """What leaves block `index`; tuners change it here."""
        return hidden


def add_to_residual(residual: Tensor | None, hidden: Tensor) -> Tensor:
    """Their sum [B, L, W], float32 (float64 for float64) whatever the blocks compute in; None counts as 0."""
    wide = hidden if hidden.dtype == torch.float64 else hidden.float()
    return wide if residual is None else residual + wide
