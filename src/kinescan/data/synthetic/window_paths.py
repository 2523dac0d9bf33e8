"""How a window moves over a picture, in units of the picture's shorter side; what it shows moves the other way."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_TILT = math.radians(45)
_DIAGONAL = math.sqrt(0.5)
_SIDES = (0.36, 0.66)
_FILL = 0.98
"""Fraction of the picture that a window's path may reach over."""


@dataclass(frozen=True, eq=False)
class WindowPath:
    """Where a square window is in each frame.

    Attributes:
        centres: [T, 2], x and y.
        sides: [T].
        angles: [T], radians; what is seen appears turned clockwise by as much.
    """

    centres: NDArray[np.float64]
    sides: NDArray[np.float64]
    angles: NDArray[np.float64]

    def reach(self) -> NDArray[np.float64]:
        """[T, 2]: how far its corners are from its centre at most, in x and in y (alike for a square)."""
        half = self.sides / 2 * (np.abs(np.cos(self.angles)) + np.abs(np.sin(self.angles)))
        return np.stack([half, half], axis=1)


def place_window(rng: np.random.Generator, path: WindowPath, width: float, height: float) -> WindowPath:
    """The path somewhere within a picture, smaller where it would not fit.

    Args:
        rng: where the position comes from.
        path: about (0, 0).
        width: of the picture, in its shorter sides.
        height: of the picture, in its shorter sides.
    """
    reach = path.reach()
    low, high = (path.centres - reach).min(0), (path.centres + reach).max(0)
    room = np.array([width, height])
    shrink = min(1.0, float((_FILL * room / (high - low)).min()))
    offset = rng.uniform(0, 1, 2) * (room - shrink * (high - low)) - shrink * low
    return replace(path, centres=shrink * path.centres + offset, sides=shrink * path.sides)


def _still(rng: np.random.Generator, phase: np.ndarray) -> tuple[NDArray[np.float64], float, float]:
    """Frames of ones, a side and a tilt: for whatever does not change in a clip."""
    low, high = _SIDES
    side = low * (high / low) ** rng.uniform(0, 1)
    return np.ones(len(phase)), float(side), float(rng.uniform(-_TILT, _TILT))


_Direction = tuple[float, float]
"""In the frame, x and y, of length 1."""


def _travel(rng: np.random.Generator, phase: np.ndarray, ahead: _Direction, aside: _Direction) -> WindowPath:
    """What is seen moves along `ahead` by a third to a half of the frame, and hardly along `aside`."""
    ones, side, tilt = _still(rng, phase)
    along, across = rng.uniform(0.35, 0.55), rng.uniform(-0.06, 0.06)
    moves = along * np.array(ahead) + across * np.array(aside)
    # the frame's axes are tilted in the picture
    cosine, sine = math.cos(tilt), math.sin(tilt)
    way = np.array([cosine * moves[0] + sine * moves[1], cosine * moves[1] - sine * moves[0]])
    centres = -side * way * (phase - 0.5)[:, None]
    return WindowPath(centres=centres, sides=side * ones, angles=tilt * ones)


def _horizontal(rng: np.random.Generator, phase: np.ndarray) -> WindowPath:
    return _travel(rng, phase, (1, 0), (0, 1))


def _vertical(rng: np.random.Generator, phase: np.ndarray) -> WindowPath:
    return _travel(rng, phase, (0, 1), (1, 0))


def _falling(rng: np.random.Generator, phase: np.ndarray) -> WindowPath:
    return _travel(rng, phase, (_DIAGONAL, _DIAGONAL), (_DIAGONAL, -_DIAGONAL))


def _rising(rng: np.random.Generator, phase: np.ndarray) -> WindowPath:
    return _travel(rng, phase, (_DIAGONAL, -_DIAGONAL), (_DIAGONAL, _DIAGONAL))


def _turning(rng: np.random.Generator, phase: np.ndarray) -> WindowPath:
    ones, side, _ = _still(rng, phase)
    turn = np.radians(rng.uniform(60, 100))
    angles = rng.uniform(-_TILT / 4, _TILT / 4) + turn * (phase - 0.5)
    return WindowPath(centres=np.zeros((len(phase), 2)), sides=side * ones, angles=angles)


def _scaling(rng: np.random.Generator, phase: np.ndarray) -> WindowPath:
    """What is seen grows, since the window gets smaller."""
    ones, _, tilt = _still(rng, phase)
    low, high = _SIDES
    ratio = rng.uniform(1.6, 2.1)
    middle = math.sqrt(low * high) * rng.uniform(0.9, 1.1)
    return WindowPath(centres=np.zeros((len(phase), 2)), sides=middle * ratio ** (0.5 - phase), angles=tilt * ones)


WINDOW_PATHS: dict[str, Callable[[np.random.Generator, np.ndarray], WindowPath]] = {
    "horizontal": _horizontal,
    "vertical": _vertical,
    "turning": _turning,
    "scaling": _scaling,
    "falling": _falling,
    "rising": _rising,
}
"""The path of the first class of each pair about (0, 0) while the phase goes from 0 to 1.

Tilts and sides are sampled from about the same ranges for all pairs, so that a single frame hardly tells the pair.
"""
