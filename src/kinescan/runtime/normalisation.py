"""Pixels as a model takes them: mean and standard deviation of each colour channel."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normalise(
    pixels: Tensor, mean: Sequence[float], std: Sequence[float], *, white: float, out: Tensor | None = None
) -> Tensor:
    """(pixels / white - mean) / std, computed in float32.

    Args:
        pixels: [T, 3, H, W], uint8 or float.
        mean: of each channel, where white is 1.
        std: likewise, the standard deviation of each channel.
        white: value of a white pixel: 255, or 1 for pixels in [0, 1].
        out: [T, 3, H, W], float32, to write into; None: new, contiguous memory.

    Returns:
        [T, 3, H, W], float32.

    Example:
        >>> pixels = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
        >>> normalise(pixels, (0.5, 0.5, 0.5), (0.5, 0.25, 1.0), white=255).flatten().tolist()
        [1.0, 2.0, 0.5]
    """
    clip = torch.empty(pixels.shape, device=pixels.device) if out is None else out
    return clip.copy_(pixels).sub_(_by_channel(mean, white, clip)).div_(_by_channel(std, white, clip))


def _by_channel(values: Sequence[float], white: float, like: Tensor) -> Tensor:
    """[3, 1, 1] on the device of `like`: a value for each channel, in the units of the pixels."""
    return (torch.tensor(values) * white).view(3, 1, 1).to(like.device, non_blocking=True)
