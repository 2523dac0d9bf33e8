import math
from collections.abc import Callable

import numpy as np

Poses = list[np.ndarray]
"""One [T, 4] for each object: centre x and y, radius (fractions of the frame's side), angle (radians)."""


def _pose(
    x: np.ndarray | float, y: np.ndarray | float, radius: np.ndarray | float, angle: np.ndarray | float
) -> np.ndarray:
    return np.stack(np.broadcast_arrays(x, y, radius, angle), axis=-1)


def _any_angle(rng: np.random.Generator) -> float:
    return float(rng.uniform(0, 2 * math.pi))


def _travel(rng: np.random.Generator, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Along the way, across it (hardly changing), and the radius."""
    radius, length = rng.uniform(0.15, 0.22), rng.uniform(0.35, 0.55)
    along = rng.uniform(0.42, 0.58) + length * (phase - 0.5)
    across = rng.uniform(0.3, 0.7) + rng.uniform(-0.06, 0.06) * (phase - 0.5)
    return along, across, radius


def _horizontal(rng: np.random.Generator, phase: np.ndarray) -> Poses:
    along, across, radius = _travel(rng, phase)
    return [_pose(along, across, radius, _any_angle(rng))]


def _vertical(rng: np.random.Generator, phase: np.ndarray) -> Poses:
    along, across, radius = _travel(rng, phase)
    return [_pose(across, along, radius, _any_angle(rng))]


def _diagonal(rng: np.random.Generator, phase: np.ndarray, way: tuple[int, int]) -> Poses:
    """Along a diagonal of the frame, as far as along its sides."""
    along, across, radius = _travel(rng, phase)
    along, across = (along - 0.5) * math.sqrt(0.5), (across - 0.5) * math.sqrt(0.5)
    x, y = way
    return [_pose(0.5 + x * along - y * across, 0.5 + y * along + x * across, radius, _any_angle(rng))]


def _falling(rng: np.random.Generator, phase: np.ndarray) -> Poses:
    return _diagonal(rng, phase, (1, 1))


def _rising(rng: np.random.Generator, phase: np.ndarray) -> Poses:
    return _diagonal(rng, phase, (1, -1))


def _turning(rng: np.random.Generator, phase: np.ndarray) -> Poses:
    x, y = rng.uniform(0.35, 0.65, 2)
    angle = _any_angle(rng) + np.radians(rng.uniform(100, 180)) * phase
    return [_pose(x, y, rng.uniform(0.22, 0.32), angle)]


def _scaling(rng: np.random.Generator, phase: np.ndarray) -> Poses:
    x, y = rng.uniform(0.38, 0.62, 2)
    first, last = rng.uniform(0.1, 0.14), rng.uniform(0.28, 0.38)
    return [_pose(x, y, first * (last / first) ** phase, _any_angle(rng))]


def _meeting(rng: np.random.Generator, phase: np.ndarray) -> Poses:
    x, y = rng.uniform(0.45, 0.55, 2)
    radius, axis = rng.uniform(0.12, 0.16), _any_angle(rng)
    apart, together = rng.uniform(0.29, 0.36), 0.9 * radius
    reach = apart + (together - apart) * phase
    one = _pose(x + reach * math.cos(axis), y + reach * math.sin(axis), radius, _any_angle(rng))
    other = _pose(x - reach * math.cos(axis), y - reach * math.sin(axis), radius, _any_angle(rng))
    return [one, other]


def _covering(rng: np.random.Generator, phase: np.ndarray) -> Poses:
    """The object, and the panel that slides off it."""
    x, y = rng.uniform(0.4, 0.6, 2)
    radius, way = rng.uniform(0.15, 0.2), _any_angle(rng)
    slide = rng.uniform(0.42, 0.52) * phase
    hidden = _pose(x + 0 * phase, y, radius, _any_angle(rng))
    panel = _pose(x + slide * math.cos(way), y + slide * math.sin(way), rng.uniform(1.55, 1.7) * radius, way)
    return [hidden, panel]


PATHS: dict[str, Callable[[np.random.Generator, np.ndarray], Poses]] = {
    "horizontal": _horizontal,
    "vertical": _vertical,
    "turning": _turning,
    "scaling": _scaling,
    "meeting": _meeting,
    "covering": _covering,
    "falling": _falling,
    "rising": _rising,
}
"""How the objects of the first class of each pair move while the phase goes from 0 to 1; played backwards, the second.

The random numbers do not depend on the phase: a shorter or uneven way is a phase that is shorter or uneven.
"""
