import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kinescan.data.synthetic.scene import Scene, Sprite, render
from kinescan.data.synthetic.shapes import SHAPES
from kinescan.data.synthetic.textures import TEST_TEXTURES, TRAIN_TEXTURES
from kinescan.data.synthetic.writing import ClipFile, Split, SyntheticConfig, SyntheticReport, write_dataset
from kinescan.errors import ConfigError
from kinescan.settings import closest
from kinescan.shapes import Pixels

Poses = list[np.ndarray]
"""One [T, 4] for each object: centre x and y, radius (fractions of the frame's side), angle (radians)."""

MOTION_PAIRS: dict[str, tuple[str, str]] = {
    "horizontal": ("right", "left"),
    "vertical": ("down", "up"),
    "turning": ("clockwise", "counterclockwise"),
    "scaling": ("growing", "shrinking"),
    "meeting": ("together", "apart"),
    "covering": ("uncovering", "covering"),
}
"""Each pair of classes: the second is the first, played backwards."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is the same about the objects of a class of `make_appearance`.

    Attributes:
        shape: outline.
        family: kind of texture; None: any.
        hue: of the bright colour, in turns; None: any.
    """

    shape: str
    family: str | None = None
    hue: float | None = None


@dataclass(frozen=True, kw_only=True)
class MotionConfig(SyntheticConfig):
    """What `make_motion` makes.

    Attributes:
        pairs: which of `MOTION_PAIRS`; each gives two classes.
    """

    pairs: tuple[str, ...] = tuple(MOTION_PAIRS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pairs or len(set(self.pairs)) < len(self.pairs):
            raise ConfigError(f"pairs must name at least one pair, each once, got {list(self.pairs)}.")
        for pair in self.pairs:
            if pair not in MOTION_PAIRS:
                raise ConfigError(f"unknown pair {pair!r}. {closest(pair, MOTION_PAIRS)}")


def make_motion(folder: str | Path, config: MotionConfig | None = None) -> SyntheticReport:
    """Video files in which only the motion tells the class.

    FOLDER/train/CLASS/0000.mp4, FOLDER/test/CLASS/0000.mp4, and FOLDER/meta.json. A textured object on a textured
    background moves in one of up to twelve ways. File k of a class is file k of its mate backwards, noise, shake and
    all, and every frame is compressed by itself; so the frames of the two are the same and only their order differs:
    a model that averages over frames is right in exactly half of the cases within a pair. Texture seeds of train and
    test come from disjoint pools.

    Args:
        folder: where to; made if missing.
        config: sizes, numbers, seed, noise, shake, pairs.

    Returns:
        What was made.

    Raises:
        ConfigError: the folder is not empty (see `overwrite`) or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = make_motion(folder, MotionConfig(pairs=("horizontal",), train_per_class=2, test_per_class=1))
        >>> report.classes, report.num_train, report.num_test
        (('left', 'right'), 4, 2)
    """
    config = config or MotionConfig()
    classes = tuple(sorted(name for pair in config.pairs for name in MOTION_PAIRS[pair]))
    jobs = [
        partial(_twin_files, config, split, pair, index)
        for split in ("train", "test")
        for pair in config.pairs
        for index in range(config.per_class(split))
    ]
    return write_dataset(folder, "motion", config, classes, jobs)


def render_motion(config: SyntheticConfig, split: Split, pair: str, index: int) -> Pixels:
    """Clip `index` of the first class of `pair`; played backwards it is clip `index` of the second.

    Returns:
        [T, 3, frame_size, frame_size], uint8; the same for the same arguments.
    """
    rng = np.random.default_rng([config.seed, split == "test", list(MOTION_PAIRS).index(pair), index])
    scene = draw_motion_scene(rng, pair, split, num_frames=config.num_frames)
    return render_disturbed(scene, rng, config)


def draw_motion_scene(
    rng: np.random.Generator,
    pair: str,
    split: Split,
    *,
    num_frames: int,
    look: Look | None = None,
) -> Scene:
    """A scene that moves as the first class of `pair` does, everything else sampled at random.

    Args:
        rng: where all draws come from.
        pair: one of `MOTION_PAIRS`.
        split: which pool texture seeds come from.
        num_frames: frames from the first moment to the last.
        look: of every object; None: sampled for each.
    """
    poses = _PATHS[pair](rng, np.linspace(0, 1, num_frames))
    objects = [_draw_sprite(rng, split, look or Look(shape=str(rng.choice(SHAPES))), pose) for pose in poses]
    if pair == "covering":
        panel = _draw_sprite(rng, split, Look(shape="panel"), poses[1])
        objects = [objects[0], panel]
    return Scene(background_seed=_texture_seed(rng, split), sprites=tuple(objects))


def render_disturbed(scene: Scene, rng: np.random.Generator, config: SyntheticConfig) -> Pixels:
    """The frames of a scene with the config's noise and camera shake, both independent from frame to frame.

    Independent draws have the same distribution backwards, so that they do not tell the direction of time.
    """
    size, num_frames = config.frame_size, config.num_frames
    shake = torch.from_numpy(rng.uniform(-1, 1, (num_frames, 2))).float() * config.shake_pixels
    noise = None
    if config.noise_levels:
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        noise = torch.empty(num_frames, 3, size, size).normal_(std=config.noise_levels, generator=generator)
    return render(scene, frame_size=size, shake=shake, noise=noise)


def _twin_files(config: MotionConfig, split: Split, pair: str, index: int) -> Iterator[ClipFile]:
    pixels = render_motion(config, split, pair, index)
    forwards, backwards = MOTION_PAIRS[pair]
    yield ClipFile(split, forwards, index, pixels)
    yield ClipFile(split, backwards, index, pixels.flip(0))


def _draw_sprite(rng: np.random.Generator, split: Split, look: Look, pose: np.ndarray) -> Sprite:
    seed, poses = _texture_seed(rng, split), torch.from_numpy(pose).float()
    return Sprite(shape=look.shape, texture_seed=seed, family=look.family, hue=look.hue, poses=poses)


def _texture_seed(rng: np.random.Generator, split: Split) -> int:
    pool = TRAIN_TEXTURES if split == "train" else TEST_TEXTURES
    return int(rng.integers(pool.start, pool.stop))


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


_PATHS: dict[str, Callable[[np.random.Generator, np.ndarray], Poses]] = {
    "horizontal": _horizontal,
    "vertical": _vertical,
    "turning": _turning,
    "scaling": _scaling,
    "meeting": _meeting,
    "covering": _covering,
}
