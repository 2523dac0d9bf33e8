import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.settings import closest

FAMILIES = ("stripes", "checks", "dots", "holes", "waves")
"""Kinds of pattern that an object can wear."""
TRAIN_TEXTURES = range(0, 2**31)
"""Texture seeds of training files, backgrounds and objects alike."""
TEST_TEXTURES = range(2**31, 2**32)
"""Texture seeds of test files: none of them is in `TRAIN_TEXTURES`."""

_NUM_BACKGROUND_WAVES = 4


def object_textures(
    seeds: Sequence[int],
    families: Sequence[str | None],
    *,
    hues: Sequence[float | None] | None = None,
    size: int = 64,
) -> Tensor:
    """Bright two-coloured patterns, one per seed: the same seed and family give the same texture.

    Args:
        seeds: one for each texture; it sets colours, period, direction and phase.
        families: one of `FAMILIES` for each texture; None lets the seed choose.
        hues: of the bright colour of each texture, in turns around the colour circle, met to within 0.04; None, for one
            or for all, lets the seed choose.
        size: side in pixels; a texture is 2 to 3.5 periods wide.

    Returns:
        [M, 3, size, size], float32 in [0, 1].

    Raises:
        ConfigError: a family is unknown.

    Example:
        >>> object_textures([7, 8], ["stripes", None]).shape
        torch.Size([2, 3, 64, 64])
    """
    rows, kinds = [], []
    for seed, family, hue in zip(seeds, families, hues or [None] * len(seeds), strict=True):
        rng = np.random.default_rng(seed)
        chosen = int(rng.integers(len(FAMILIES)))
        kinds.append(chosen if family is None else _family_index(family))
        phases = rng.uniform(0, 2 * math.pi, 3)  # direction, and where the two waves start
        bright_hue, contrast_hue = rng.uniform(0, 1), rng.uniform(0.25, 0.75)
        if hue is not None:
            bright_hue = hue + 0.08 * (bright_hue - 0.5)
        colours = [*_rgb(bright_hue, 0.75, 1.0), *_rgb(bright_hue + contrast_hue, 0.9, rng.uniform(0.1, 0.35))]
        rows.append([*phases, rng.uniform(2.0, 3.5), *colours])
    values = torch.tensor(np.array(rows), dtype=torch.float32)
    across, along = _two_waves(values[:, 0], values[:, 3], values[:, 1], values[:, 2], size)
    kind = torch.tensor(kinds)[:, None, None]
    pattern = torch.cos(across)
    pattern = torch.where(kind == 1, 2 * torch.cos(across) * torch.cos(along), pattern)
    pattern = torch.where(kind == 2, torch.cos(across) + torch.cos(along) - 1, pattern)
    pattern = torch.where(kind == 3, torch.cos(across) + torch.cos(along) + 1, pattern)
    pattern = torch.where(kind == 4, torch.cos(across + 2 * torch.sin(along)), pattern)
    brightness = torch.sigmoid(5 * pattern).unsqueeze(1)
    bright, dark = values[:, 4:7, None, None], values[:, 7:10, None, None]
    return bright * brightness + dark * (1 - brightness)


def background_textures(seeds: Sequence[int], *, size: int = 64, shifts: Tensor | None = None) -> Tensor:
    """Muted, soft patterns that objects stand out from, one per seed.

    Args:
        seeds: one for each texture.
        size: side in pixels; the waves are 6 to 24 pixels long whatever the side.
        shifts: [M, 2], how far each texture is moved in x and y, pixels; None: not at all.

    Returns:
        [M, 3, size, size], float32 in [0, 1].

    Example:
        >>> background_textures([3], size=70).shape
        torch.Size([1, 3, 70, 70])
    """
    backgrounds = {seed: _draw_background(seed) for seed in set(seeds)}
    values = torch.tensor(np.stack([backgrounds[seed] for seed in seeds]), dtype=torch.float32)
    shifts = torch.zeros(len(seeds), 2) if shifts is None else shifts
    count = _NUM_BACKGROUND_WAVES
    angle, phase, length = (values[:, k * count : (k + 1) * count, None] for k in range(3))
    axis_points = torch.arange(size, dtype=torch.float32)
    x, y = (axis_points - shifts[:, axis, None, None] for axis in (0, 1))  # [M, 1, size]
    rows = 2 * math.pi / length * torch.sin(angle) * y + phase  # [M, waves, size]
    columns = 2 * math.pi / length * torch.cos(angle) * x
    # cos(r + c) from factors of rows and columns: two matrix products instead of a cosine for every pixel
    tints = values[:, 3 * count : 6 * count].unflatten(1, (3, count)).unsqueeze(2)  # [M, 3, 1, waves]
    rows = torch.cat([rows.cos(), -rows.sin()], dim=1).transpose(1, 2).unsqueeze(1)  # [M, 1, size, 2 * waves]
    columns = torch.cat([columns.cos(), columns.sin()], dim=1).unsqueeze(1)  # [M, 1, 2 * waves, size]
    waves = (torch.cat([tints, tints], dim=3) * rows) @ columns
    return waves.add_(values[:, 6 * count :, None, None]).clamp_(0, 1)


def _draw_background(seed: int) -> np.ndarray:
    """Angle, phase and length of each wave, its weight in each colour, and the ground's colour."""
    rng = np.random.default_rng(seed)
    directions = rng.uniform(0, 2 * math.pi, (2, _NUM_BACKGROUND_WAVES))
    lengths = rng.uniform(6, 24, _NUM_BACKGROUND_WAVES)
    tints = rng.uniform(-0.06, 0.06, (3, _NUM_BACKGROUND_WAVES))
    ground = rng.uniform(0.35, 0.65) + rng.uniform(-0.07, 0.07, 3)
    return np.concatenate([directions.ravel(), lengths, tints.ravel(), ground])


def _two_waves(
    angle: Tensor, periods: Tensor, first_phase: Tensor, second_phase: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Phases [M, size, size] of two plane waves at a right angle."""
    axis_points = torch.linspace(-1, 1, size)
    angle, pace = angle[:, None, None], math.pi * periods[:, None, None]
    rows, columns = axis_points[:, None], axis_points[None, :]
    across = pace * (columns * torch.cos(angle) + rows * torch.sin(angle)) + first_phase[:, None, None]
    along = pace * (rows * torch.cos(angle) - columns * torch.sin(angle)) + second_phase[:, None, None]
    return across, along


def _family_index(family: str) -> int:
    if family not in FAMILIES:
        raise ConfigError(f"unknown texture family {family!r}. {closest(family, FAMILIES)}")
    return FAMILIES.index(family)


def _rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """The colour at `hue` turns around the circle."""

    def channel(offset: float) -> float:
        k = (offset + hue * 6) % 6
        return value - value * saturation * max(0.0, min(k, 4 - k, 1.0))

    return channel(5), channel(3), channel(1)
