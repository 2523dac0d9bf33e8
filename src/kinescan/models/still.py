"""Patches that stand still: which they are, and what a stream keeps of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.fields import check_types

LEVELS = 255.0
MOST_LEVELS = 255.0


@dataclass(frozen=True, kw_only=True)
class SkipUnchanged:
    """Which patches of a frame are not sent through the ViT's blocks again; for evaluation.

    A patch is compared with the frame in which it was last computed, not with the frame before, so that slow changes
    add up. Patches that are not computed keep their keys, values and outputs; all others, and the class token, read
    these in attention. What is approximated is that a kept patch does not see what changed elsewhere since.

    Attributes:
        pixel_threshold: a patch stands still up to this mean absolute difference of its pixels, in levels of 255; at 0
            they have to be equal.
        token_threshold: behind the temporal module, a patch that stands still is computed again only where the module
            has moved its token by more than this fraction of the token's length.
        refresh_frames: after so many frames, a whole frame is computed; 1 computes all frames.
        refresh_seconds: the same in seconds, for streams; None: `refresh_frames` says it.

    Source: run-length tokenisation (arXiv 2411.05222), section 3.1, for the comparison of pixels.
    Differs: there, patches that stand still are left out of attention, and compared with the frame before.
    """

    pixel_threshold: float = 4.0
    token_threshold: float = 0.1
    refresh_frames: int = 64
    refresh_seconds: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.pixel_threshold <= MOST_LEVELS:
            raise ConfigError(f"pixel_threshold must lie in 0 to 255 levels, got {self.pixel_threshold}.")
        if not self.token_threshold >= 0:
            raise ConfigError(f"token_threshold must be at least 0, got {self.token_threshold}.")
        if self.refresh_frames < 1:
            raise ConfigError(f"refresh_frames must be at least 1, got {self.refresh_frames}.")
        if self.refresh_seconds is not None and not 0 < self.refresh_seconds < math.inf:
            raise ConfigError(f"refresh_seconds must be a positive number of seconds, got {self.refresh_seconds}.")

    def at_distance(self, frame_seconds: float | None) -> "SkipUnchanged":
        """The same with `refresh_seconds` as `refresh_frames`, for frames that are so far apart.

        Raises:
            ConfigError: nothing is known of how far apart frames are.

        Example:
            >>> SkipUnchanged(refresh_seconds=10).at_distance(0.3).refresh_frames
            33
        """
        if self.refresh_seconds is None:
            return self
        if frame_seconds is None:
            raise ConfigError(
                "still.refresh_seconds needs to know how far apart frames are, which this model does not say. Give "
                "still.refresh_frames instead."
            )
        frames = max(1, round(self.refresh_seconds / frame_seconds))
        return replace(self, refresh_frames=frames, refresh_seconds=None)


@dataclass
class StillState:
    """What is kept of a frame for those that follow; constant size.

    Attributes:
        age: [B, 1], frames since a whole one was computed, itself counted; 0 where nothing is kept yet.
        fraction: [B, 2], of the patches that were computed in the last chunk: before the temporal module, behind it.
        pixels: [B, 3, H, W], of each patch those with which it was last computed, normalised.
        keys_values: [B, depth, L, 2 W], of every block.
        before: [B, L, W], tokens as they enter the temporal module; None without one.
        entered: [B, N, W], patches as the module gave them when they were last computed; None without one.
        after: [B, L, W], tokens behind the last block; None where nobody reads the patches there.
    """

    age: Tensor
    fraction: Tensor
    pixels: Tensor
    keys_values: Tensor
    before: Tensor | None = None
    entered: Tensor | None = None
    after: Tensor | None = None

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The tensors that are not None, by name: PREFIX.FIELD; shapes as in the class."""
        named = {f"{prefix}.{field.name}": getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str) -> "StillState | None":
        """The inverse of `tensors`; None where a tensor that is always there is missing."""
        found = {field.name: tensors.get(f"{prefix}.{field.name}") for field in fields(cls)}
        age, fraction, pixels, keys_values = (found.pop(name) for name in ("age", "fraction", "pixels", "keys_values"))
        if age is None or fraction is None or pixels is None or keys_values is None:
            return None
        return cls(age, fraction, pixels, keys_values, **found)


def changed_patches(
    clip: Tensor, state: StillState | None, skip: SkipUnchanged, *, patch_size: int, std: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Which patches have to be computed, frame after frame.

    Args:
        clip: [B, T, 3, H, W], normalised.
        state: of the frames before.
        skip: the thresholds.
        patch_size: in pixels.
        std: that pixels were divided by, a channel each.

    Returns:
        [B, T, N] bool; the pixels [B, 3, H, W] with which each patch was last computed; and the age [B, 1].
    """
    levels = LEVELS * torch.tensor(std, device=clip.device, dtype=torch.float32)[:, None, None]
    age = clip.new_zeros(clip.shape[0], 1, dtype=torch.float32) if state is None else state.age
    pixels = clip[:, 0] if state is None else state.pixels.to(clip.dtype)
    chosen = []
    for frame in clip.unbind(dim=1):
        distance = torch.nn.functional.avg_pool2d((levels * (frame - pixels)).abs().mean(1), patch_size)
        # NaN counts as changed, so that it is found.
        changed = ~(distance <= skip.pixel_threshold)  # [B, rows, columns]
        whole = (age < 1) | (age >= skip.refresh_frames)
        changed = changed | whole[..., None]
        age = torch.where(whole, 1.0, age + 1)
        spread = changed.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)
        pixels = torch.where(spread[:, None], frame, pixels)
        chosen.append(changed.flatten(1))
    return torch.stack(chosen, dim=1), pixels, age


def moved_tokens(
    patches: Tensor, computed: Tensor, state: StillState | None, skip: SkipUnchanged
) -> tuple[Tensor, Tensor]:
    """Which patches have to be computed behind the temporal module.

    Args:
        patches: [B, T, N, W], as the module gives them.
        computed: [B, T, N] bool, those that were computed before it; they are again.
        state: of the frames before.
        skip: the thresholds.

    Returns:
        [B, T, N] bool, and the patches [B, N, W] with which each was last computed.
    """
    entered = patches[:, 0] if state is None or state.entered is None else state.entered.to(patches.dtype)
    chosen = []
    for tokens, wanted in zip(patches.unbind(dim=1), computed.unbind(dim=1), strict=True):
        distance = torch.linalg.vector_norm(tokens - entered, dim=2)
        moved = wanted | ~(distance <= skip.token_threshold * torch.linalg.vector_norm(entered, dim=2))
        entered = torch.where(moved[..., None], tokens, entered)
        chosen.append(moved)
    return torch.stack(chosen, dim=1), entered
