from dataclasses import dataclass
from typing import Literal

from kinescan.errors import ConfigError
from kinescan.layers.class_token import ClassTokenRouteKind
from kinescan.layers.kinematic import Norm
from kinescan.models.size_limits import check_at_most, check_sizes
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.ops.local_correlation import Border
from kinescan.settings import accept_old_names

SMALLEST_WIDEST = 15
"""A window up to this is taken on any grid, however small: the default fits everywhere."""


@accept_old_names
@dataclass(frozen=True, kw_only=True)
class PKS4Config(ViTConfig):
    """A video classifier: an image ViT, one temporal module in its middle, a mean over frames, a linear head.

    With `scanner`, `correlation` and `variation` off and `class_token_route="none"` it is the baseline that averages
    frames. Every variant of the paper's Tables 5 to 9 is a field.

    Attributes:
        num_classes: size of the head.
        scanner: KS4, the selective scan along time (Table 5).
        bidirectional: a second scanner on the reversed sequence (Table 7).
        correlation: O_corr of the kinematic prior encoder (Table 5).
        variation: O_var of the kinematic prior encoder (Table 5).
        insert_after: the module follows this block, counted from 1 (Table 6); not the last, since the class token
            has to read the patches afterwards.
        context_frames: frames around each frame that the encoder looks at: 0, 2, 4, 6 (Table 8).
        class_token_route: how class tokens exchange over time, twice in every block (Table 9). A ViT without class
            token can have "none" (what `create_model` takes for it) or "tsm", which shifts all tokens.
        window: side of the correlation window in patches; odd.
        kinematic_width: channels of the encoder's reduced frames.
        norm: normalisation in the encoder: "batch", or "group" (8 channels each, within a frame).
        border: frames outside the clip are "zeros", or the end frame repeated ("replicate").
        residual: "identity" adds the scan to Z + prior, so that the module starts as nothing; "literal" is eq. 5 with
            eq. 25 as printed, which adds Z twice.
        causal: every part looks back only; then a stream gives exactly the logits of each prefix.
        average: of the frames' representations: "mean", or "exponential" (newer frames count more).
        average_rate: weight of the newest frame, for `average="exponential"`.
        state_size: size of the scan's state for each channel.
        conv_kernel: kernel size of the scanner's convolution over time.
        expand: inner width of the scanner over `width`.
        difference: what changed since the frame before goes through a patch embedding of its own and is added to the
            frame's. Movement is there from the first block on, which a small model from scratch needs.
        changes_only: with `difference`: what changed is all that is seen, and goes through the frames' own patch
            embedding. A model that sees a few people or rooms while it is trained learns their looks otherwise.
        gate: scan those trajectories alone that a gate chooses by the kinematic prior, in each frame anew; in training
            all are, softly. Needs `scanner`, and `correlation` or `variation`.
        gate_ratio: fraction of a frame's patches that the gate chooses; with 1 the model is the one without a gate.
        output: what the logits answer for: "clip", the average over its frames, [B, K]; or "frames", every frame,
            [B, T, K], with nothing averaged between the temporal module and the head. Class 0 is "background" then.
        overlapping: with `output="frames"`: several classes may be true at once, or none; no class is "background".
        activation_checkpointing: compute blocks and scanner again in the backward pass instead of keeping what they
            computed; the same gradients in less memory.

    Source: PKS4 (arXiv 2604.26461), section 3 and Tables 5 to 9.
    """

    num_classes: int = 400
    scanner: bool = True
    bidirectional: bool = False
    correlation: bool = True
    variation: bool = True
    insert_after: int = 8
    context_frames: int = 4
    class_token_route: ClassTokenRouteKind | Literal["none"] = "conv"
    window: int = 9
    kinematic_width: int = 64
    norm: Norm = "batch"
    border: Border = "zeros"
    residual: Literal["identity", "literal"] = "identity"
    causal: bool = False
    average: Literal["mean", "exponential"] = "mean"
    average_rate: float = 0.1
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    difference: bool = False
    changes_only: bool = False
    gate: bool = False
    gate_ratio: float = 0.5
    output: Literal["clip", "frames"] = "clip"
    overlapping: bool = False
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "num_classes", "kinematic_width", "state_size", "conv_kernel", "expand")
        check_at_most(self, "context_frames")
        if self.has_module and not 1 <= self.insert_after < self.depth:
            raise ConfigError(
                f"insert_after must lie in 1 to {self.depth - 1} for {self.depth} blocks, got {self.insert_after}: "
                "the class token reads the patches in the blocks that follow, so there has to be one."
            )
        if self.window < 1 or self.window % 2 == 0:
            raise ConfigError(f"window must be odd, got {self.window}. Use 7 or 9: displacement 0 is in the middle.")
        widest = max(2 * max(self.grid) - 1, SMALLEST_WIDEST)
        if self.correlation and self.window > widest:
            raise ConfigError(
                f"window must be at most {widest} for {self.grid[0]} x {self.grid[1]} patches, got {self.window}: it "
                "reaches from one end of a frame to the other."
            )
        if self.causal and self.bidirectional:
            raise ConfigError("a causal model cannot scan backwards: set bidirectional = false or causal = false.")
        if not self.class_token and self.class_token_route not in ("none", "tsm"):
            raise ConfigError(
                f"class_token_route={self.class_token_route!r} needs a class token, which this ViT has not. "
                'Use class_token_route="none", or "tsm", which shifts all tokens.'
            )
        if self.gate and not (self.scanner and (self.correlation or self.variation)):
            raise ConfigError(
                "gate = true chooses by the kinematic prior what is scanned: it needs scanner = true, and "
                "correlation = true or variation = true."
            )
        if not 0 < self.gate_ratio <= 1:
            raise ConfigError(f"gate_ratio must lie in (0, 1], got {self.gate_ratio}.")
        if self.changes_only and not self.difference:
            raise ConfigError(
                "changes_only = true sees what changed since the frame before: it needs difference = true."
            )
        if self.overlapping and self.output != "frames":
            raise ConfigError('overlapping = true is for models that answer for every frame: set output = "frames".')
        if not 0 < self.average_rate <= 1:
            raise ConfigError(f"average_rate must lie in (0, 1], got {self.average_rate}.")

    @property
    def has_module(self) -> bool:
        """Whether anything is inserted between two blocks."""
        return self.scanner or self.correlation or self.variation
