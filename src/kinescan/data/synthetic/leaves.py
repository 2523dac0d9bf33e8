"""Synthetic pictures that look, to a small model, as photographs do: many edges, of all sizes."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinescan.errors import ConfigError

_KINDS = ("leaves", "clouds", "plain")
_FRACTIONS = (0.72, 0.18, 0.10)
_NUM_LEAVES = (25, 140)
_SMALLEST, _LARGEST = 0.025, 0.45
"""Radius of a leaf, of the picture's side."""


def leaf_pictures(seeds: list[int], *, size: int = 128) -> Tensor:
    """Pictures without a subject: leaves that fall on each other, clouds, and nearly plain ones; one a seed.

    Discs, boxes and wedges of all sizes cover each other ("dead leaves"), each in a colour of one palette, with a
    shade and a grain of its own; clouds are noise whose amplitude falls with its frequency. Both have the statistics
    of photographs that motion is seen by.

    Args:
        seeds: one for each picture; the same seed makes the same picture.
        size: side in pixels, 16 or more.

    Returns:
        [n, 3, size, size], float32 in [0, 1].

    Raises:
        ConfigError: size is below 16.

    Source: dead leaves as training pictures: Baradad et al., Learning to See by Looking at Noise (arXiv 2106.05963).
    Differs: three outlines, a shade over each leaf, and grain.

    Example:
        >>> leaf_pictures([0, 1], size=32).shape
        torch.Size([2, 3, 32, 32])
    """
    if size < 16:
        raise ConfigError(f"size must be at least 16, got {size}.")
    return torch.stack([torch.from_numpy(_picture(np.random.default_rng([seed, 7]), size)) for seed in seeds])


def _picture(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    kind = str(rng.choice(_KINDS, p=_FRACTIONS))
    if kind == "plain":
        picture = _colour(rng)[:, None, None] + rng.uniform(0, 0.15) * _clouds(rng, size, rng.uniform(1.5, 2.5))
    elif kind == "clouds":
        picture = _colour(rng)[:, None, None] + 0.25 * _clouds(rng, size, rng.uniform(0.6, 1.6))
    else:
        picture = _leaves(rng, size)
    light = 1 + rng.uniform(0, 0.25) * _clouds(rng, size, 2.5)[:1]
    grain = rng.uniform(0, 0.04) * rng.standard_normal((1, size, size))
    return np.asarray(np.clip(picture * light + grain, 0, 1), dtype=np.float32)


def _leaves(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    palette = np.stack([_colour(rng) for _ in range(int(rng.integers(3, 9)))])
    picture = np.tile(palette[0][:, None, None], (1, size, size))
    rows, columns = np.mgrid[0:size, 0:size] / size
    smallest = _SMALLEST * rng.uniform(1, 3)
    for _ in range(int(rng.integers(*_NUM_LEAVES))):
        # as many leaves of each size as makes each size cover as much
        u = rng.uniform(0, 1)
        radius = 1 / math.sqrt((1 - u) / smallest**2 + u / _LARGEST**2)
        x, y = rng.uniform(-0.05, 1.05, 2)
        top, bottom = (int(np.clip((y + side * radius) * size, 0, size)) for side in (-1.05, 1.05))
        left, right = (int(np.clip((x + side * radius) * size, 0, size)) for side in (-1.05, 1.05))
        if top >= bottom or left >= right:
            continue
        across, down = columns[top:bottom, left:right] - x, rows[top:bottom, left:right] - y
        angle = rng.uniform(0, 2 * math.pi)
        u_axis = (math.cos(angle) * across + math.sin(angle) * down) / radius
        v_axis = (math.cos(angle) * down - math.sin(angle) * across) / radius
        cover = np.clip((_inside(rng, u_axis, v_axis)) * radius * size + 0.5, 0, 1)
        colour = palette[int(rng.integers(len(palette)))] + rng.normal(0, 0.04, 3)
        shade = 1 + rng.uniform(-0.35, 0.35) * u_axis
        if rng.uniform() < 0.25:
            shade = shade + rng.uniform(0.1, 0.4) * np.sin(v_axis * rng.uniform(4, 16))
        part = picture[:, top:bottom, left:right]
        part += cover * (colour[:, None, None] * shade - part)
    return picture


def _inside(rng: np.random.Generator, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far inside of an outline of radius 1 each point is."""
    kind, ratio = int(rng.integers(3)), rng.uniform(0.25, 1)
    if kind == 0:
        return np.asarray(1 - np.hypot(u, v / ratio), dtype=np.float64)
    if kind == 1:
        return np.minimum(0.7 - np.abs(u), 0.7 * ratio - np.abs(v))
    return np.minimum(0.6 - np.abs(v) - 0.5 * u, 0.8 + u)


def _clouds(rng: np.random.Generator, size: int, slope: float) -> NDArray[np.float64]:
    """[3, size, size] of mean 0 and variance 1, amplitude 1 / frequency**slope; channels go together."""
    across, down = np.fft.rfftfreq(size), np.fft.fftfreq(size)
    frequency = np.hypot(across[None, :], down[:, None])
    frequency[0, 0] = np.inf
    white = rng.standard_normal((3, size, size))
    white = 0.85 * white[:1] + 0.5 * white
    waves = np.fft.irfft2(np.fft.rfft2(white) / frequency**slope, s=(size, size))
    return np.asarray(waves / waves.std(), dtype=np.float64)


def _colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """Mostly muted."""
    return np.asarray(rng.uniform(0.05, 0.95) + rng.normal(0, 0.12, 3), dtype=np.float64)
