import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.settings import closest

FAMILIES = ("stripes", "checks", "dots", "waves")
"""Kinds of pattern that an object can wear."""
TRAIN_TEXTURES = range(0, 2**31)
"""Texture seeds of training files, backgrounds and objects alike."""
TEST_TEXTURES = range(2**31, 2**32)
"""Texture seeds of test files: none of them is in `TRAIN_TEXTURES`."""

_NUM_BACKGROUND_WAVES = 4


def object_textures(seeds: Sequence[int], families: Sequence[str | None], *, size: int = 64) -> Tensor:
    """Bright two-coloured patterns, one per seed: the same seed and family give the same texture.

    Args:
        seeds: one for each texture; it sets colours, period, direction and phase.
        families: one of `FAMILIES` for each texture; None lets the seed choose.
        size: side in pixels; a texture is 2 to 3.5 periods wide.

    Returns:
        [M, 3, size, size], float32 in [0, 1].

    Raises:
        ConfigError: a family is unknown.

    Example:
        >>> object_textures([7, 8], ["stripes", None]).shape
        torch.Size([2, 3, 64, 64])
    """
    draws, kinds = [], []
    for seed, family in zip(seeds, families, strict=True):
        rng = np.random.default_rng(seed)
        chosen = int(rng.integers(len(FAMILIES)))
        kinds.append(chosen if family is None else _family_index(family))
        phases = rng.uniform(0, 2 * math.pi, 3)  # direction, and where the two waves start
        bright_hue, contrast_hue = rng.uniform(0, 1), rng.uniform(0.25, 0.75)
        colours = [*_rgb(bright_hue, 0.75, 1.0), *_rgb(bright_hue + contrast_hue, 0.9, rng.uniform(0.1, 0.35))]
        draws.append([*phases, rng.uniform(2.0, 3.5), *colours])
    values = torch.tensor(np.array(draws), dtype=torch.float32)
    across, along = _two_waves(values[:, 0], values[:, 3], values[:, 1], values[:, 2], size)
    kind = torch.tensor(kinds)[:, None, None]
    pattern = torch.cos(across)
    pattern = torch.where(kind == 1, 2 * torch.cos(across) * torch.cos(along), pattern)
    pattern = torch.where(kind == 2, torch.cos(across) + torch.cos(along) - 0.5, pattern)
    pattern = torch.where(kind == 3, torch.cos(across + 2 * torch.sin(along)), pattern)
    share = torch.sigmoid(5 * pattern).unsqueeze(1)
    bright, dark = values[:, 4:7, None, None], values[:, 7:10, None, None]
    return bright * share + dark * (1 - share)


def background_textures(seeds: Sequence[int], *, size: int = 64) -> Tensor:
    """Muted, soft patterns that objects stand out from, one per seed.

    Args:
        seeds: one for each texture.
        size: side in pixels; the waves are 6 to 24 pixels long whatever the side.

    Returns:
        [M, 3, size, size], float32 in [0, 1].

    Example:
        >>> background_textures([3], size=70).shape
        torch.Size([1, 3, 70, 70])
    """
    draws = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        waves = [
            rng.uniform(0, 2 * math.pi, (2, _NUM_BACKGROUND_WAVES)),
            rng.uniform(6, 24, (1, _NUM_BACKGROUND_WAVES)),
        ]
        tints = rng.uniform(-0.06, 0.06, (3, _NUM_BACKGROUND_WAVES))
        ground = rng.uniform(0.35, 0.65) + rng.uniform(-0.07, 0.07, (3, 1))
        draws.append(np.concatenate([*(part.ravel() for part in (*waves, tints, ground))]))
    values = torch.tensor(np.array(draws), dtype=torch.float32)
    count = _NUM_BACKGROUND_WAVES
    angle, phase, length = (values[:, k * count : (k + 1) * count, None] for k in range(3))
    place = torch.arange(size, dtype=torch.float32)
    rows = 2 * math.pi / length * torch.sin(angle) * place + phase  # [M, waves, size]
    columns = 2 * math.pi / length * torch.cos(angle) * place
    # cos(r + c) from factors of rows and columns: two matrix products instead of a cosine for every pixel
    tints = values[:, 3 * count : 6 * count].unflatten(1, (3, count))
    even = torch.einsum("mcw,mwr,mwx->mcrx", tints, rows.cos(), columns.cos())
    odd = torch.einsum("mcw,mwr,mwx->mcrx", tints, rows.sin(), columns.sin())
    return (values[:, 6 * count :, None, None] + even - odd).clamp(0, 1)


def _two_waves(
    angle: Tensor, periods: Tensor, first_phase: Tensor, second_phase: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Phases [M, size, size] of two plane waves at a right angle."""
    place = torch.linspace(-1, 1, size)
    angle, pace = angle[:, None, None], math.pi * periods[:, None, None]
    rows, columns = place[:, None], place[None, :]
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
