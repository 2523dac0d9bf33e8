"""What happens in a long video of events: objects that come, rest, act and go, and others that mean nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinescan.data.synthetic.shapes import SHAPES

EVENT_PAIRS: dict[str, tuple[str, str]] = {
    "horizontal": ("right", "left"),
    "vertical": ("down", "up"),
    "turning": ("clockwise", "counterclockwise"),
    "scaling": ("growing", "shrinking"),
}
"""Pairs of classes that differ in direction only: the second is the first, played backwards."""

DISTRACTOR = "panel"
"""The outline of what moves and means nothing; no object that acts has it."""

_SPEEDS: dict[str, tuple[int, float, float, float]] = {
    "horizontal": (0, 0.28, 0.4, 0.45),
    "vertical": (1, 0.28, 0.4, 0.45),
    "scaling": (2, math.log(1.5), math.log(1.8), math.log(2.0)),
    "turning": (3, math.radians(120), math.radians(180), math.inf),
}
"""Which column of a pose changes, by how much in a second, from and to, and by how much at most in one movement.

Radii are logarithms here.
"""

_RADII = (math.log(0.1), math.log(0.26))
_FADE_SECONDS = 0.3
_REST_SECONDS = 0.8
"""An object rests for this long at least after it came, between what it does, and before it goes."""
_GRID_SECONDS = 0.1
_MOST_STROKES = 3
_TRIES, _TRIES_OF_A_CHAIN = 240, 40
"""Of an object; after every so many, it moves once less."""


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """One movement: which pair, forwards (1) or backwards (-1), from when to when in seconds."""

    pair: str
    direction: int
    start: float
    end: float

    @property
    def label(self) -> str:
        """The class."""
        return EVENT_PAIRS[self.pair][self.direction < 0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Life:
    """One object from when it comes to when it goes.

    Attributes:
        shape: name of the outline.
        comes: second at which it begins to fade in; -inf: it is there from the start.
        goes: second at which it has faded out; inf: it stays.
        strokes: its movements, in the order of time.
        poses: [1 + len(strokes), 4], before the first and after each: centre x and y, logarithm of the radius (as
            fractions of the frame's side), angle.
    """

    shape: str
    comes: float
    goes: float
    strokes: tuple[Stroke, ...]
    poses: NDArray[np.float64]

    def poses_at(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """[T, 4], with radii as fractions of the frame's side."""
        poses = np.repeat(self.poses[:1], len(seconds), axis=0)
        for stroke, change in zip(self.strokes, np.diff(self.poses, axis=0), strict=True):
            phase = np.clip((seconds - stroke.start) / (stroke.end - stroke.start), 0, 1)
            poses += phase[:, None] * change
        poses[:, 2] = np.exp(poses[:, 2])
        return poses

    def opacity_at(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """[T], 0 before it comes and after it has gone, 1 between."""
        return np.clip(np.minimum(seconds - self.comes, self.goes - seconds) / _FADE_SECONDS, 0, 1)


def sample_life_times(
    rng: np.random.Generator, seconds: float, *, shortest: float, longest: float, pause: float
) -> list[tuple[float, float]]:
    """Starts and ends of movements one after the other, to the hundredth of a second.

    Between two lies a second and more, `pause` seconds in the middle of all; one in seven is several times longer.
    """
    times: list[tuple[float, float]] = []
    now = 0.0
    while True:
        wait = 1 + rng.exponential(max(pause - 1, 0.05))
        wait += 4 * pause * rng.uniform(0.5, 1) * (rng.uniform() < 1 / 7)
        start = round(now + wait, 2)
        now = round(start + rng.uniform(shortest, longest), 2)
        if now > seconds - 1:
            return times
        times.append((start, now))


def sample_lives(
    rng: np.random.Generator,
    times: Sequence[tuple[float, float]],
    seconds: float,
    *,
    pairs: Sequence[str],
    shape: str | None,
    others: Sequence[Life],
) -> list[Life]:
    """The objects that are at one position after another, and move at `times`.

    Where there is no room, one moves less often, or is left out.

    Every movement is as likely as its reversal in time, so that a single frame does not tell the direction.

    Args:
        rng: where all random numbers come from.
        times: start and end of each movement.
        seconds: of the video.
        pairs: which movements there are.
        shape: of each object; None: sampled for each.
        others: objects that they shall not cover.
    """
    lives: list[Life] = []
    for part, comes, goes in _divide(rng, times, seconds):
        kinds = [str(rng.choice(pairs)) for _ in part]
        name = shape or str(rng.choice(SHAPES))
        for attempt in range(1, _TRIES + 1):
            strokes = _sample_strokes(rng, part, kinds)
            poses = _sample_poses(rng, strokes)
            if poses is not None:
                life = Life(shape=name, comes=comes, goes=goes, strokes=strokes, poses=poses)
                if not any(_meet(life, other, seconds) for other in others):
                    lives.append(life)
                    break
            if attempt % _TRIES_OF_A_CHAIN == 0 and part:
                # Any of them, not the last: a life backwards is to be as likely as forwards.
                gone = int(rng.integers(len(part)))
                part = [*part[:gone], *part[gone + 1 :]]
                kinds = [*kinds[:gone], *kinds[gone + 1 :]]
    return lives


def _divide(
    rng: np.random.Generator, times: Sequence[tuple[float, float]], seconds: float
) -> list[tuple[Sequence[tuple[float, float]], float, float]]:
    """Which movements are one object's, and when it comes and goes."""
    cuts, edges = [0], []
    for index in range(1, len(times)):
        first, last = times[index - 1][1] + _REST_SECONDS, times[index][0] - _REST_SECONDS
        if last - first > 0.5 and (rng.uniform() < 0.6 or index - cuts[-1] >= _MOST_STROKES):
            cuts.append(index)
            edges.append(np.sort(rng.uniform(first, last, 2)).tolist())
    parts = [times[first:last] for first, last in zip(cuts, [*cuts[1:], len(times)], strict=True)]
    early, late = (times[0][0], seconds - times[-1][1]) if times else (seconds / 2, seconds / 2)
    comes = [_edge(rng, early), *(edge[1] for edge in edges)]
    goes = [*(edge[0] for edge in edges), seconds - _edge(rng, late)]
    return list(zip(parts, comes, goes, strict=True))


def _edge(rng: np.random.Generator, room: float) -> float:
    """When the first object comes (and, counted from the end, the last one goes); -inf: it is always there."""
    if room < 2 * _REST_SECONDS or rng.uniform() < 0.5:
        return -math.inf
    return float(rng.uniform(0, room - _REST_SECONDS))


def _sample_strokes(
    rng: np.random.Generator, times: Sequence[tuple[float, float]], kinds: Sequence[str]
) -> tuple[Stroke, ...]:
    directions = rng.choice([1, -1], len(times)).tolist()
    return tuple(
        Stroke(pair=pair, direction=direction, start=start, end=end)
        for (start, end), pair, direction in zip(times, kinds, directions, strict=True)
    )


def _sample_poses(rng: np.random.Generator, strokes: Sequence[Stroke]) -> NDArray[np.float64] | None:
    """[1 + strokes, 4], radii as logarithms; None where the object would leave its bounds."""
    start = np.array([*rng.uniform(0.15, 0.85, 2), rng.uniform(*_RADII), rng.uniform(0, 2 * math.pi)])
    changes = np.zeros((1 + len(strokes), 4))
    for index, stroke in enumerate(strokes, 1):
        column, slowest, fastest, most = _SPEEDS[stroke.pair]
        change = min(rng.uniform(slowest, fastest) * (stroke.end - stroke.start), most)
        changes[index, column] = change * stroke.direction
    poses: NDArray[np.float64] = start + changes.cumsum(0)
    margin = np.maximum(np.exp(poses[:, 2:3]), 0.15)
    inside = (poses[:, :2] >= margin).all() and (poses[:, :2] <= 1 - margin).all()
    radii = (poses[:, 2] >= _RADII[0]).all() and (poses[:, 2] <= _RADII[1]).all()
    return poses if inside and radii else None


def _meet(one: Life, other: Life, seconds: float) -> bool:
    """Whether two objects cover each other at any time."""
    first, last = max(one.comes, other.comes, 0.0), min(one.goes, other.goes, seconds)
    if first >= last:
        return False
    times = np.arange(first, last, _GRID_SECONDS)
    here, there = one.poses_at(times), other.poses_at(times)
    apart = np.linalg.norm(here[:, :2] - there[:, :2], axis=1)
    return bool((apart < 0.9 * (here[:, 2] + there[:, 2])).any())
