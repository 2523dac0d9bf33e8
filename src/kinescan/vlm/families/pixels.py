"""Decoded frames to the pixels a vision encoder takes, in plain torch: transformers' processors need torchvision."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from kinescan.errors import ConfigError, ShapeError
from kinescan.preprocessing import CLIP_MEAN, CLIP_STD
from kinescan.runtime import normalisation

HALF = (0.5, 0.5, 0.5)
MAX_SIDE = 8192
"""Of a frame as it is given to a vision encoder, in pixels; the largest encoders of today take 1024."""


@dataclass(frozen=True, kw_only=True)
class PixelSettings:
    """How frames are resized and normalised.

    Attributes:
        mean: subtracted from each colour channel after scaling to [0, 1].
        std: each colour channel is divided by it afterwards.
        min_pixels: fewest pixels of a frame (of a whole video for Qwen3-VL), for families with free frame sizes.
        max_pixels: most pixels, likewise.
        size: (height, width) of a frame, for families with one frame size; None takes the vision encoder's own.
    """

    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                raise ConfigError(f"{name} must be three numbers, one for each colour, got {values!r}.")
        for name, value in (
            ("min_pixels", self.min_pixels),
            ("max_pixels", self.max_pixels),
            *(("size", side) for side in self.size or ()),
        ):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name} must be whole numbers of pixels, got {value!r}.")
        if self.size is not None and (len(self.size) != 2 or not all(1 <= side <= MAX_SIDE for side in self.size)):
            raise ConfigError(f"size must be (height, width) of 1 to {MAX_SIDE} pixels, got {self.size}.")
        if not 1 <= self.min_pixels <= self.max_pixels:
            given = f"min_pixels={self.min_pixels}, max_pixels={self.max_pixels}"
            raise ConfigError(f"1 <= min_pixels <= max_pixels is needed, got {given}.")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive in every channel, got {self.std}.")

    def updated(self, stored: Mapping[str, Any]) -> "PixelSettings":
        """These settings with the values that a checkpoint's `preprocessor_config.json` has.

        Raises:
            ConfigError: the file's `size` is not an object, or a value is out of range.

        Example:
            >>> PixelSettings().updated({"size": {"shortest_edge": 3136, "longest_edge": 100352}}).max_pixels
            100352
        """
        changes: dict[str, Any] = {}
        for name in ("mean", "std"):
            if stored.get(f"image_{name}") is not None:
                changes[name] = tuple(float(value) for value in stored[f"image_{name}"])
        size = stored.get("size") or {}
        if not isinstance(size, Mapping):
            raise ConfigError(f"size must be an object such as {{height, width}}, got {size!r}.")
        if size.get("height") and size.get("width"):
            changes["size"] = (size["height"], size["width"])
        lowest = stored.get("min_pixels") or size.get("shortest_edge")
        highest = stored.get("max_pixels") or size.get("longest_edge")
        if lowest and highest:
            changes |= {"min_pixels": lowest, "max_pixels": highest}
        return replace(self, **changes)


def resize(frames: UInt8[Tensor, "T 3 H W"], size: tuple[int, int]) -> Float[Tensor, "T 3 H W"]:
    """Frames of another size, still in whole steps of 0 .. 255: bicubic, antialiased, as on uint8 images."""
    if tuple(frames.shape[-2:]) == size:
        return frames.float()
    resized = functional.interpolate(frames.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255)


def cropped(frames: UInt8[Tensor, "T 3 H W"], size: tuple[int, int]) -> Float[Tensor, "T 3 H W"]:
    """Frames whose shorter side is brought to that of `size`, and whose middle is cut out in that size."""
    height, width = frames.shape[-2:]
    scale = max(wanted / given for wanted, given in zip(size, (height, width), strict=True))
    resized = resize(frames, (max(size[0], int(height * scale)), max(size[1], int(width * scale))))
    top, left = ((have - wanted) // 2 for have, wanted in zip(resized.shape[-2:], size, strict=True))
    return resized[..., top : top + size[0], left : left + size[1]]


def normalise(frames: Float[Tensor, "T 3 H W"], settings: PixelSettings) -> Float[Tensor, "T 3 H W"]:
    """From 0 .. 255 to the encoder's range, channel by channel."""
    return normalisation.normalise(frames, settings.mean, settings.std, white=255)


def free_size(height: int, width: int, *, factor: int, min_pixels: float, max_pixels: float) -> tuple[int, int]:
    """The frame size nearest to (height, width) whose sides are multiples of `factor` and whose area is in range.

    Args:
        height: of the decoded frame, in pixels.
        width: of the decoded frame, in pixels.
        factor: side of one language token, in pixels.
        min_pixels: smallest area.
        max_pixels: largest area.

    Raises:
        ShapeError: one side is over 200 times the other.

    Source: `smart_resize` of the Qwen2-VL processors.

    Example:
        >>> free_size(720, 1280, factor=28, min_pixels=3136, max_pixels=602112)
        (560, 1008)
    """
    if max(height, width) > 200 * min(height, width):
        raise ShapeError(f"frames of {height} x {width} are too narrow: one side may be 200 times the other at most.")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def patchify(
    frames: Float[Tensor, "T 3 H W"], *, patch: int, merge: int, temporal_patch: int
) -> tuple[Float[Tensor, "N D"], tuple[int, int, int]]:
    """Frames as rows of pixels, in the order in which Qwen's encoder merges them, and the grid (time, height, width).

    The last frame is repeated where the number of frames is not a multiple of `temporal_patch`.

    Returns:
        [N, 3 * temporal_patch * patch * patch] with N = time * height * width, patches of one merged square together.

    Source: `patchify` of the Qwen2-VL processors.
    """
    if missing := -len(frames) % temporal_patch:
        frames = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
    count, channels, height, width = frames.shape
    grid = (count // temporal_patch, height // patch, width // patch)
    squares = frames.reshape(
        grid[0], temporal_patch, channels, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
    )
    squares = squares.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return squares.reshape(grid[0] * grid[1] * grid[2], -1), grid
