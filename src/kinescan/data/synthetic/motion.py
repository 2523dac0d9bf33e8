from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kinescan.data.synthetic.harder import ACTING_FAMILIES, Extras, HarderConfig, texture_seed
from kinescan.data.synthetic.motion_paths import PATHS
from kinescan.data.synthetic.scene import Scene, Sprite, render
from kinescan.data.synthetic.shapes import SHAPES
from kinescan.data.synthetic.writing import ClipFile, Split, SyntheticConfig, SyntheticReport, write_dataset
from kinescan.errors import ConfigError
from kinescan.fields import check_most
from kinescan.settings import closest
from kinescan.shapes import Pixels

MOTION_PAIRS: dict[str, tuple[str, str]] = {
    "horizontal": ("right", "left"),
    "vertical": ("down", "up"),
    "turning": ("clockwise", "counterclockwise"),
    "scaling": ("growing", "shrinking"),
    "meeting": ("together", "apart"),
    "covering": ("uncovering", "covering"),
    "falling": ("down-right", "up-left"),
    "rising": ("up-right", "down-left"),
}
"""Each pair of classes: the second is the first, played backwards."""
USUAL_PAIRS = ("horizontal", "vertical", "turning", "scaling", "meeting", "covering")
"""Those that are made where no pairs are given: without the diagonal ones."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is the same about the objects of a class of `make_appearance`.

    Attributes:
        shape: name of the outline.
        family: kind of texture; None: any.
        hue: of the bright colour, in turns; None: any.
    """

    shape: str
    family: str | None = None
    hue: float | None = None


@dataclass(frozen=True, kw_only=True)
class MotionConfig(HarderConfig):
    """What `make_motion` makes.

    Attributes:
        pairs: which of `MOTION_PAIRS`; each gives two classes. By default all but the diagonal ones.
        objects: one moves as the class says (in "meeting" and "covering" two belong together), the others stand still.
        object_size: what the radii of all objects are multiplied by.
        spread: how far from the frame's middle motions take place: 1 as usual, at 0 all have it as their middle.
        drift_pixels: how far the camera wanders smoothly at most, in x and in y, pixels; objects and background alike.
    """

    pairs: tuple[str, ...] = USUAL_PAIRS
    objects: int = 1
    object_size: float = 1.0
    spread: float = 1.0
    drift_pixels: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self, objects=9, object_size=1.5, spread=1)
        self._check_least(objects=1, object_size=0.2, spread=0, drift_pixels=0)
        if self.drift_pixels + self.shake_pixels > self.frame_size / 4:
            raise ConfigError(
                f"drift_pixels and shake_pixels must be at most a quarter of frame_size {self.frame_size} together, "
                f"got {self.drift_pixels} and {self.shake_pixels}: objects would leave the frame."
            )
        check_pairs(self.pairs, MOTION_PAIRS)


def check_pairs(pairs: Sequence[str], allowed: Sequence[str] | dict[str, tuple[str, str]]) -> None:
    """Passes pairs of motions that are allowed, each named once.

    Raises:
        ConfigError: there is none, one stands twice, or one is unknown.
    """
    if not pairs or len(set(pairs)) < len(pairs):
        raise ConfigError(f"pairs must name at least one pair, each once, got {list(pairs)}.")
    for pair in pairs:
        if pair not in allowed:
            raise ConfigError(f"unknown pair {pair!r}. {closest(pair, allowed)}")


def make_motion(folder: str | Path, config: MotionConfig | None = None) -> SyntheticReport:
    """Video files in which only the motion tells the class.

    FOLDER/train/CLASS/0000.mp4, FOLDER/test/CLASS/0000.mp4, and FOLDER/meta.json. A textured object on a textured
    background moves in one of up to sixteen ways. File k of a class is file k of its mate backwards, noise, shake and
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


def render_motion(config: MotionConfig, split: Split, pair: str, index: int) -> Pixels:
    """Clip `index` of the first class of `pair`; played backwards it is clip `index` of the second.

    Returns:
        [T, 3, frame_size, frame_size], uint8; the same for the same arguments.
    """
    key = (config.seed, int(split == "test"), list(MOTION_PAIRS).index(pair), index)
    rng = np.random.default_rng(key)
    extras = Extras(key, config, split)
    scene = sample_motion_scene(
        rng,
        pair,
        split,
        num_frames=config.num_frames,
        phase=extras.phase(),
        object_size=config.object_size,
        spread=config.spread,
        families=ACTING_FAMILIES if config.distractors else None,
    )
    sprites = (
        *extras.still_objects(config.objects - 1, config.object_size),
        *extras.distractors(config.object_size),
        *scene.sprites,
        *extras.occluders(),
    )
    drift = extras.drift(config.drift_pixels) if config.drift_pixels else None
    scene = Scene(background_seed=scene.background_seed, sprites=sprites)
    return render_disturbed(scene, rng, config, drift=drift, contrast=config.contrast)


def sample_motion_scene(
    rng: np.random.Generator,
    pair: str,
    split: Split,
    *,
    num_frames: int,
    look: Look | None = None,
    phase: np.ndarray | None = None,
    object_size: float = 1.0,
    spread: float = 1.0,
    families: Sequence[str] | None = None,
) -> Scene:
    """A scene that moves as the first class of `pair` does, everything else sampled at random.

    Args:
        rng: where all random numbers come from.
        pair: one of `MOTION_PAIRS`.
        split: which pool texture seeds come from.
        num_frames: frames from the first moment to the last.
        look: of every object; None: sampled for each.
        phase: [num_frames], how far along its way the motion is in each frame; None: evenly from 0 to 1.
        object_size: what the radii are multiplied by.
        spread: what the distance of the motion's middle from the frame's is multiplied by.
        families: of textures, one of which each object without a look of its own gets; None: any.
    """
    poses = PATHS[pair](rng, np.linspace(0, 1, num_frames) if phase is None else phase)
    poses = [pose * np.array([1, 1, object_size, 1]) for pose in poses]
    if spread != 1:
        middle = np.mean([pose[:, :2] for pose in poses], axis=(0, 1))
        poses = [pose + np.array([*((1 - spread) * (0.5 - middle)), 0, 0]) for pose in poses]
    objects = [
        _sample_sprite(rng, split, look or Look(shape=str(rng.choice(SHAPES))), pose, families) for pose in poses
    ]
    if pair == "covering":
        panel = _sample_sprite(rng, split, Look(shape="panel"), poses[1], families)
        objects = [objects[0], panel]
    return Scene(background_seed=texture_seed(rng, split), sprites=tuple(objects))


def render_disturbed(
    scene: Scene,
    rng: np.random.Generator,
    config: SyntheticConfig,
    *,
    drift: Tensor | None = None,
    contrast: float = 1.0,
) -> Pixels:
    """The frames of a scene with the config's noise and camera shake, both independent from frame to frame.

    Independent samples have the same distribution backwards, so that they do not tell the direction of time. `drift` is
    a path [T, 2] of the camera in pixels that is added to the shake.
    """
    shake, noise = sample_disturbances(rng, config)
    shake = shake if drift is None else shake + drift
    return render(scene, frame_size=config.frame_size, shake=shake, noise=noise, contrast=contrast)


def sample_disturbances(rng: np.random.Generator, config: SyntheticConfig) -> tuple[Tensor, Tensor | None]:
    """Camera shake [T, 2] in pixels, and noise [T, 3, S, S] in levels of 255."""
    size, num_frames = config.frame_size, config.num_frames
    shake = torch.from_numpy(rng.uniform(-1, 1, (num_frames, 2))).float() * config.shake_pixels
    noise = None
    if config.noise_levels:
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        noise = torch.empty(num_frames, 3, size, size).normal_(std=config.noise_levels, generator=generator)
    return shake, noise


def _twin_files(config: MotionConfig, split: Split, pair: str, index: int) -> Iterator[ClipFile]:
    pixels = render_motion(config, split, pair, index)
    forwards, backwards = MOTION_PAIRS[pair]
    yield ClipFile(split, forwards, index, pixels)
    yield ClipFile(split, backwards, index, pixels.flip(0))


def _sample_sprite(
    rng: np.random.Generator, split: Split, look: Look, pose: np.ndarray, families: Sequence[str] | None
) -> Sprite:
    seed, poses = texture_seed(rng, split), torch.from_numpy(pose).float()
    family = families[seed % len(families)] if families and look.family is None else look.family
    return Sprite(shape=look.shape, texture_seed=seed, family=family, hue=look.hue, poses=poses)
