import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.settings import closest

SHAPES = ("arrow", "drop", "wedge", "half", "corner", "tee")
"""Outlines of objects. None looks the same turned by less than a full turn, so that "how turned" has an answer."""
EXTENT = 1.2
"""Half the side of a shape's map in object units; a shape fits into the circle of radius 1."""

_GRID = 64


@cache
def signed_distance(shape: str) -> Tensor:
    """How far each point is from a shape's outline: negative inside.

    Args:
        shape: one of `SHAPES`, or "panel", a square that covers things.

    Returns:
        [64, 64], float32, in units of the shape's radius, over the square from -`EXTENT` to `EXTENT`.

    Raises:
        ConfigError: the shape is unknown.

    Example:
        >>> bool(signed_distance("arrow")[32, 32] < 0)
        True
    """
    outlines = _outlines()
    if shape not in outlines:
        raise ConfigError(f"unknown shape {shape!r}. {closest(shape, SHAPES)}")
    corners = np.asarray(outlines[shape], dtype=np.float64)
    grid_axis = np.linspace(-EXTENT, EXTENT, _GRID)
    points = np.stack(np.meshgrid(grid_axis, grid_axis), axis=-1)[:, :, None]  # [64, 64, 1, (x, y)]
    start, end = corners, np.roll(corners, -1, axis=0)
    edge, from_start = end - start, points - start
    along = np.clip((from_start * edge).sum(-1) / (edge * edge).sum(-1), 0, 1)
    distance = np.linalg.norm(from_start - along[..., None] * edge, axis=-1).min(-1)
    return torch.tensor(np.where(_inside(points, start, end), -distance, distance), dtype=torch.float32)


def _inside(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Even-odd rule: an odd number of edges crosses the ray to the right."""
    x, y = points[..., 0], points[..., 1]
    spans = (start[:, 1] > y) != (end[:, 1] > y)
    rise = np.where(end[:, 1] == start[:, 1], 1.0, end[:, 1] - start[:, 1])
    crossing = start[:, 0] + (y - start[:, 1]) * (end[:, 0] - start[:, 0]) / rise
    return np.asarray((spans & (x < crossing)).sum(-1) % 2 == 1)


@cache
def _outlines() -> dict[str, list[tuple[float, float]]]:
    """Corners (x, y) of each shape, pointing to the right."""
    drop = [(1.0, 0.0), *((0.62 * math.cos(a) - 0.35, 0.62 * math.sin(a)) for a in np.linspace(1.05, 5.23, 20))]
    wedge = [(-0.1, 0.0), *((math.cos(a), math.sin(a)) for a in np.linspace(0.7, 2 * math.pi - 0.7, 28))]
    half = [(math.cos(a) - 0.35, math.sin(a)) for a in np.linspace(-math.pi / 2, math.pi / 2, 22)]
    return {
        "arrow": [(1, 0), (0.1, 0.85), (0.1, 0.36), (-0.9, 0.36), (-0.9, -0.36), (0.1, -0.36), (0.1, -0.85)],
        "drop": drop,
        "wedge": wedge,
        "half": [(0.94 * x, 0.94 * y) for x, y in half],
        "corner": [(-0.7, -0.7), (0.7, -0.7), (0.7, -0.1), (-0.1, -0.1), (-0.1, 0.7), (-0.7, 0.7)],
        "tee": [
            (0.8, 0.6),
            (0.8, -0.6),
            (0.25, -0.6),
            (0.25, -0.27),
            (-0.9, -0.27),
            (-0.9, 0.27),
            (0.25, 0.27),
            (0.25, 0.6),
        ],
        "panel": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    }
