"""The operations of RandAugment by kornia, on all frames at once: what kinescan did before its own, as a peer."""

import math
from collections.abc import Callable, Sequence

import kornia.enhance
import kornia.geometry.transform
import torch
from torch import Tensor

from kinescan.shapes import Pixels

MAX_MAGNITUDE = 30


def carry_out(frames: Pixels, sampled: Sequence[tuple[int, int]], *, magnitude: int) -> Pixels:
    """The frames after the operations of `sample_operations`, on the device where they are.

    Args:
        frames: [T, 3, H, W], float32, in [0, 1].
        sampled: what to do.
        magnitude: how strongly, of 30.
    """
    operations = list(OPERATIONS.values())
    for index, sign in sampled:
        frames = operations[index](frames, magnitude / MAX_MAGNITUDE, sign).clamp(0, 1)
    return frames


def _whole_clip(operation: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """Carries out an operation on one tall picture, the frames below each other."""
    num_frames = len(frames)
    tall = frames.transpose(0, 1).flatten(1, 2)[None]
    return operation(tall)[0].unflatten(1, (num_frames, -1)).transpose(0, 1)


def _stretch_contrast(tall: Tensor) -> Tensor:
    low, high = tall.aminmax(dim=-1, keepdim=True)
    low, high = low.amin(dim=-2, keepdim=True), high.amax(dim=-2, keepdim=True)
    scale = torch.where(high > low, 1 / (high - low).clamp(min=1e-6), 1.0)
    return (tall - torch.where(high > low, low, 0.0)) * scale


def _auto_contrast(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _whole_clip(_stretch_contrast, frames)


def _equalize(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _whole_clip(kornia.enhance.equalize, frames)


def _invert(frames: Tensor, strength: float, sign: int) -> Tensor:
    return 1 - frames


def _rotate(frames: Tensor, strength: float, sign: int) -> Tensor:
    cosine, sine = math.cos(math.radians(30 * strength)), sign * math.sin(math.radians(30 * strength))
    return _warp(frames, [[cosine, sine, 0.0], [-sine, cosine, 0.0]])


def _shear_x(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _warp(frames, [[1.0, 0.3 * strength * sign, 0.0], [0.0, 1.0, 0.0]])


def _shear_y(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _warp(frames, [[1.0, 0.0, 0.0], [0.3 * strength * sign, 1.0, 0.0]])


def _translate_x(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _warp(frames, [[1.0, 0.0, 0.1 * strength * sign * frames.shape[-1]], [0.0, 1.0, 0.0]])


def _translate_y(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _warp(frames, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.1 * strength * sign * frames.shape[-2]]])


def _warp(frames: Tensor, matrix: list[list[float]]) -> Tensor:
    """An affine map about the middle, in pixels: what comes in from outside is black."""
    height, width = frames.shape[-2:]
    (a, b, x), (c, d, y) = matrix
    mid_x, mid_y = (width - 1) / 2, (height - 1) / 2
    centred = [[a, b, x + mid_x - a * mid_x - b * mid_y], [c, d, y + mid_y - c * mid_x - d * mid_y]]
    maps = torch.tensor(centred, dtype=frames.dtype).to(frames.device, non_blocking=True).expand(len(frames), 2, 3)
    warped: Tensor = kornia.geometry.transform.warp_affine(frames, maps, (height, width))
    return warped


def _posterize(frames: Tensor, strength: float, sign: int) -> Tensor:
    levels = 2 ** (8 - int(4 * strength))
    return (frames * 255).div(256 // levels, rounding_mode="floor") * (256 // levels) / 255


def _solarize(frames: Tensor, strength: float, sign: int) -> Tensor:
    return torch.where(frames > 1 - strength, 1 - frames, frames)


def _solarize_add(frames: Tensor, strength: float, sign: int) -> Tensor:
    return torch.where(frames < 0.5, frames + 0.43 * strength, frames)


def _color(frames: Tensor, strength: float, sign: int) -> Tensor:
    colored: Tensor = kornia.enhance.adjust_saturation_with_gray_subtraction(frames, 1 + 0.9 * strength * sign)
    return colored


def _contrast(frames: Tensor, strength: float, sign: int) -> Tensor:
    factor = 1 + 0.9 * strength * sign
    return _whole_clip(lambda tall: kornia.enhance.adjust_contrast_with_mean_subtraction(tall, factor), frames)


def _brightness(frames: Tensor, strength: float, sign: int) -> Tensor:
    return frames * (1 + 0.9 * strength * sign)


def _sharpness(frames: Tensor, strength: float, sign: int) -> Tensor:
    sharpened: Tensor = kornia.enhance.sharpness(frames, 1 + 0.9 * strength * sign)
    return sharpened


OPERATIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
"""Takes frames, a strength in [0, 1] and a sign where there are two directions."""
