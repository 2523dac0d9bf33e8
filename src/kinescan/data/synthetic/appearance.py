from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from kinescan.data.synthetic.motion import USUAL_PAIRS, Look, render_disturbed, sample_motion_scene
from kinescan.data.synthetic.shapes import SHAPES
from kinescan.data.synthetic.textures import FAMILIES
from kinescan.data.synthetic.writing import ClipFile, Split, SyntheticConfig, SyntheticReport, write_dataset
from kinescan.errors import ConfigError
from kinescan.settings import closest
from kinescan.shapes import Pixels

COLOURS = {"red": 0.0, "yellow": 0.16, "green": 0.38, "blue": 0.62}
"""Hues of the looks, in turns around the colour circle."""


@dataclass(frozen=True, kw_only=True)
class AppearanceConfig(SyntheticConfig):
    """What `make_appearance` makes: a class for every texture family in every colour, each with a shape.

    Attributes:
        colours: of the bright part of textures, out of `COLOURS`.
        families: kinds of texture, out of `FAMILIES`.
    """

    colours: tuple[str, ...] = tuple(COLOURS)
    families: tuple[str, ...] = ("stripes", "dots", "holes")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given, allowed in (("colours", self.colours, COLOURS), ("families", self.families, FAMILIES)):
            if not given or len(set(given)) < len(given):
                raise ConfigError(f"{name} must name at least one, each once, got {list(given)}.")
            for word in given:
                if word not in allowed:
                    raise ConfigError(f"{name}: unknown {word!r}. {closest(word, allowed)}")

    @property
    def looks(self) -> dict[str, Look]:
        """Class name -> look, in the order of class indices; the same look whatever other classes there are."""
        names = sorted((f"{colour}_{family}", colour, family) for colour in self.colours for family in self.families)
        return {
            name: Look(shape=_shape(colour, family), family=family, hue=COLOURS[colour])
            for name, colour, family in names
        }


def _shape(colour: str, family: str) -> str:
    number = list(COLOURS).index(colour) * len(FAMILIES) + FAMILIES.index(family)
    return SHAPES[number % len(SHAPES)]


def make_appearance(folder: str | Path, config: AppearanceConfig | None = None) -> SyntheticReport:
    """Video files in which the look tells the class, and the motion tells nothing.

    The class is a texture family in a colour, neither of which is enough by itself, on a shape; each object moves in
    one of the twelve ways of `make_motion`, sampled independently of the class. Files, texture pools and compression
    are as there.

    Args:
        folder: where to; made if missing.
        config: sizes, numbers, seed, noise, shake, looks.

    Returns:
        What was made.

    Raises:
        ConfigError: the folder is not empty (see `overwrite`) or cannot be written.

    Example:
        >>> import tempfile
        >>> few = AppearanceConfig(colours=("red",), families=("dots", "stripes"), train_per_class=1, test_per_class=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(make_appearance(folder, few).classes)
        ('red_dots', 'red_stripes')
    """
    config = config or AppearanceConfig()
    classes = tuple(config.looks)
    jobs = [
        partial(_file, config, split, label, index)
        for split in ("train", "test")
        for label in classes
        for index in range(config.per_class(split))
    ]
    return write_dataset(folder, "appearance", config, classes, jobs)


def render_appearance(config: AppearanceConfig, split: Split, label: str, index: int) -> Pixels:
    """Clip `index` of the class `label`.

    Returns:
        [T, 3, frame_size, frame_size], uint8; the same for the same arguments.
    """
    colour, family = label.split("_")
    look = [list(COLOURS).index(colour), FAMILIES.index(family)]
    rng = np.random.default_rng([config.seed, split == "test", *look, index])
    pair, backwards = str(rng.choice(USUAL_PAIRS)), bool(rng.integers(2))
    scene = sample_motion_scene(rng, pair, split, num_frames=config.num_frames, look=config.looks[label])
    pixels = render_disturbed(scene, rng, config)
    return pixels.flip(0) if backwards else pixels


def _file(config: AppearanceConfig, split: Split, label: str, index: int) -> Iterator[ClipFile]:
    yield ClipFile(split, label, index, render_appearance(config, split, label, index))
