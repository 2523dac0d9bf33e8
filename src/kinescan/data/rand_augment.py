"""RandAugment for clips: every operation treats all frames alike, so that it adds no motion and no flicker."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.shapes import Pixels

MAX_MAGNITUDE = 30


def rand_augment(frames: Pixels, *, num_operations: int, magnitude: int, generator: torch.Generator) -> Pixels:
    """The frames after a few operations that are sampled once for all of them.

    Args:
        frames: [T, 3, H, W], float32, in [0, 1].
        num_operations: how many of the 15 are carried out one after another; no operation twice.
        magnitude: their strength, of 30.
        generator: of the random numbers.

    Returns:
        [T, 3, H, W], float32, in [0, 1].

    Source: RandAugment (arXiv 1909.13719), with the ranges of kornia's default policy.
    Differs: operations that look at the whole picture (equalising, contrast) look at the whole clip.

    Example:
        >>> rand_augment(torch.rand(8, 3, 32, 32), num_operations=2, magnitude=9, generator=torch.Generator()).shape
        torch.Size([8, 3, 32, 32])
    """
    return carry_out(frames, sample_operations(num_operations, generator), magnitude=magnitude)


def sample_operations(num_operations: int, generator: torch.Generator) -> tuple[tuple[int, int], ...]:
    """The operations of one clip in their order: index among `OPERATIONS`, and sign."""
    chosen = torch.randperm(len(OPERATIONS), generator=generator)[:num_operations].tolist()
    return tuple((index, 1 - 2 * int(torch.randint(2, (), generator=generator))) for index in chosen)


def carry_out(frames: Pixels, sampled: Sequence[tuple[int, int]], *, magnitude: int, in_place: bool = False) -> Pixels:
    """The frames after the operations of `sample_operations`, on the device where they are.

    Args:
        frames: [T, 3, H, W], float32, in [0, 1].
        sampled: what to do.
        magnitude: how strongly, of 30.
        in_place: the frames may be overwritten.
    """
    operations = list(OPERATIONS.values())
    if sampled and not in_place:
        frames = frames.clone(memory_format=torch.contiguous_format)
    for index, sign in sampled:
        operations[index](frames, magnitude / MAX_MAGNITUDE, sign)
    return frames


def chunks(frames: Tensor) -> Iterator[Tensor]:
    """Frames [T, 3, H, W] one by one on a CPU, whose caches hold one of them: [1, 3, H, W]; elsewhere all at once."""
    if frames.device.type == "cpu":
        yield from frames.split(1)
    else:
        yield frames


def _each(operation: Callable[[Tensor], object], frames: Tensor) -> Tensor:
    """Carries out what changes a chunk in place, within [0, 1]."""
    for chunk in chunks(frames):
        operation(chunk)
        chunk.clamp_(0, 1)
    return frames


def grey(frames: Tensor) -> Tensor:
    """[T, 1, H, W]: the luma of Rec. 601."""
    red, green, blue = frames.split(1, 1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _auto_contrast(frames: Tensor, strength: float, sign: int) -> Tensor:
    low, high = (extreme(frames, dim=(0, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax))
    is_flat = high <= low
    scale = torch.where(is_flat, 1.0, 1 / (high - low).clamp(min=1e-6))
    low = torch.where(is_flat, 0.0, low)
    return _each(lambda chunk: chunk.sub_(low).mul_(scale), frames)


def _equalize(frames: Tensor, strength: float, sign: int) -> Tensor:
    levels = torch.arange(256, device=frames.device)
    counts = torch.zeros(3, 256, device=frames.device)
    for chunk in chunks(frames):
        index = chunk.transpose(0, 1).flatten(1).mul(255).long()
        counts.scatter_add_(1, index, torch.ones((), device=frames.device).expand(index.shape))
    last = torch.where(counts > 0, levels, 0).amax(1, keepdim=True)
    step = ((counts.sum(1, keepdim=True) - counts.gather(1, last)) / 255).floor()
    # PIL's table: each level goes to the fraction of pixels below it
    sums = counts.cumsum(1) - counts + (step / 2).floor()
    table = (sums / step.clamp(min=1)).floor().clamp(0, 255) / 255
    is_flat = step == 0

    def look_up(chunk: Tensor) -> None:
        index = chunk.transpose(0, 1).flatten(1).mul(255).long()
        found = table.gather(1, index).view(3, len(chunk), *chunk.shape[2:]).transpose(0, 1)
        chunk.copy_(torch.where(is_flat.view(1, 3, 1, 1), chunk, found))

    return _each(look_up, frames)


def _invert(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _each(lambda chunk: chunk.neg_().add_(1), frames)


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
    scale = 1 / (a * d - b * c)
    mid_x, mid_y = (width - 1) / 2, (height - 1) / 2
    columns = torch.linspace(-mid_x, mid_x, width, device=frames.device).sub_(x)
    rows = torch.linspace(-mid_y, mid_y, height, device=frames.device).sub_(y)[:, None]
    # where each pixel comes from, from -1 at the first to 1 at the last
    from_x = (d * columns - b * rows).mul_(scale / max(mid_x, 0.5))
    from_y = (a * rows - c * columns).mul_(scale / max(mid_y, 0.5))
    grid = torch.stack([from_x, from_y], -1)[None]
    # all frames as channels of one picture: where it comes from is worked out once
    warped = F.grid_sample(frames.flatten(0, 1)[None], grid, align_corners=True)
    return frames.copy_(warped.view_as(frames)).clamp_(0, 1)


def _posterize(frames: Tensor, strength: float, sign: int) -> Tensor:
    kept = 256 // 2 ** (8 - int(4 * strength))
    return _each(lambda chunk: chunk.mul_(255).div_(kept).floor_().mul_(kept / 255), frames)


def _solarize(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _each(lambda chunk: chunk.copy_(torch.where(chunk > 1 - strength, 1 - chunk, chunk)), frames)


def _solarize_add(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _each(lambda chunk: chunk.add_(chunk < 0.5, alpha=0.43 * strength), frames)


def _color(frames: Tensor, strength: float, sign: int) -> Tensor:
    factor = 1 + 0.9 * strength * sign
    return _each(lambda chunk: chunk.copy_(grey(chunk).lerp(chunk, factor)), frames)


def _contrast(frames: Tensor, strength: float, sign: int) -> Tensor:
    factor = 1 + 0.9 * strength * sign
    mean = torch.stack([grey(chunk).mean() for chunk in chunks(frames)]).mean()
    return _each(lambda chunk: chunk.mul_(factor).add_(mean, alpha=1 - factor), frames)


def _brightness(frames: Tensor, strength: float, sign: int) -> Tensor:
    factor = 1 + 0.9 * strength * sign
    return _each(lambda chunk: chunk.mul_(factor), frames)


def _sharpness(frames: Tensor, strength: float, sign: int) -> Tensor:
    factor = 1 + 0.9 * strength * sign

    def sharpen(chunk: Tensor) -> None:
        # smoothed by ones around a 5, over 13; the border stays
        rows = chunk[:, :, :-2] + chunk[:, :, 1:-1]
        rows += chunk[:, :, 2:]
        smooth = rows[..., :-2] + rows[..., 1:-1]
        smooth += rows[..., 2:]
        inside = chunk[:, :, 1:-1, 1:-1]
        smooth.add_(inside, alpha=4).div_(13)
        inside.mul_(factor).add_(smooth, alpha=1 - factor)

    return _each(sharpen, frames)


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
"""Changes frames in place, by a strength in [0, 1] and a sign where there are two directions, and gives them."""
