"""What makes synthetic motion harder to tell, and the levels of it; nothing of it tells the class."""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinescan.data.synthetic.motion_paths import PATHS
from kinescan.data.synthetic.scene import Sprite
from kinescan.data.synthetic.shapes import SHAPES
from kinescan.data.synthetic.textures import FAMILIES, TEST_TEXTURES, TRAIN_TEXTURES
from kinescan.data.synthetic.writing import Split, SyntheticConfig
from kinescan.errors import ConfigError
from kinescan.fields import check_most

DISTRACTOR, DISTRACTOR_FAMILY = "panel", "checks"
"""Outline and texture of what moves and means nothing; no object that acts has both."""
ACTING_FAMILIES = tuple(family for family in FAMILIES if family != DISTRACTOR_FAMILY)
"""Textures of the objects beside distractors."""
MOTION_LEVELS: tuple[dict[str, float], ...] = (
    {},
    {"travel": 0.5, "speed_ratio": 2.0},
    {"travel": 0.5, "speed_ratio": 2.0, "objects": 2, "distractors": 1},
    {"travel": 0.4, "speed_ratio": 3.0, "objects": 2, "distractors": 1, "drift_pixels": 4.0, "contrast": 0.7},
    {
        "travel": 0.3,
        "speed_ratio": 4.0,
        "objects": 3,
        "distractors": 2,
        "occluders": 1,
        "drift_pixels": 6.0,
        "contrast": 0.5,
        "noise_levels": 6.0,
    },
)
"""Settings of each level of difficulty, from 0 (as they are by default) on."""

_DISTRACTOR_PAIRS = ("horizontal", "vertical", "turning", "scaling")
_SPEED, _STILL, _DISTRACTORS, _OCCLUDERS, _DRIFT = range(1, 6)
"""What a generator is for: a setting changes nothing but what it is about."""


@dataclass(frozen=True, kw_only=True)
class HarderConfig(SyntheticConfig):
    """What makes a motion harder to tell; by default nothing does.

    None of it depends on the class, and all of it is as likely backwards in time as forwards.

    Attributes:
        travel: fraction of the way: with 0.3, things move, turn and grow three tenths as far as usual.
        speed_ratio: the fastest moment over the slowest of a clip; 1 moves evenly.
        contrast: of everything but the noise: at 0.5 all colours are half as far from middle grey.
        distractors: square, chequered panels that travel, turn or grow, and mean nothing.
        occluders: square panels that stand still in front of everything.
    """

    travel: float = 1.0
    speed_ratio: float = 1.0
    contrast: float = 1.0
    distractors: int = 0
    occluders: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self, travel=1, speed_ratio=100, contrast=1, distractors=8, occluders=8)
        self._check_least(travel=0.02, speed_ratio=1, contrast=0.02, distractors=0, occluders=0)


@dataclass(frozen=True)
class Extras:
    """Draws all that makes one clip harder.

    Attributes:
        key: of the clip: seed, part, pair, index.
        config: how hard.
        split: the part, for the pool of texture seeds.
    """

    key: tuple[int, ...]
    config: HarderConfig
    split: Split

    def phase(self) -> np.ndarray:
        """[T], how far along its way the motion is: 0 to 1, or the middle `travel` of that."""
        return sample_phase(self._rng(_SPEED), self.config)

    def still_objects(self, number: int, size: float) -> list[Sprite]:
        """Objects like those that act, which stand still."""
        rng = self._rng(_STILL)
        frames = np.ones(self.config.num_frames)
        sprites = []
        for _ in range(number):
            x, y = rng.uniform(0.12, 0.88, 2)
            pose = np.stack([x * frames, y * frames, rng.uniform(0.12, 0.2) * size * frames, _angle(rng) * frames], 1)
            sprites.append(self._sprite(rng, str(rng.choice(SHAPES)), str(rng.choice(ACTING_FAMILIES)), pose))
        return sprites

    def distractors(self, size: float = 1.0) -> list[Sprite]:
        """Panels that move as objects do, each in a way, a direction and at a speed of its own."""
        rng = self._rng(_DISTRACTORS)
        sprites = []
        for _ in range(self.config.distractors):
            phase = sample_phase(rng, self.config)
            if rng.integers(2):
                phase = phase[::-1]
            [pose] = PATHS[str(rng.choice(_DISTRACTOR_PAIRS))](rng, phase)
            pose = pose + np.array([*rng.uniform(-0.25, 0.25, 2), 0, 0])
            pose[:, 2] *= 0.8 * size
            sprites.append(self._sprite(rng, DISTRACTOR, DISTRACTOR_FAMILY, pose))
        return sprites

    def occluders(self) -> list[Sprite]:
        """Panels that stand still."""
        rng = self._rng(_OCCLUDERS)
        frames = np.ones(self.config.num_frames)
        sprites = []
        for _ in range(self.config.occluders):
            x, y = rng.uniform(0.2, 0.8, 2)
            pose = np.stack([x * frames, y * frames, rng.uniform(0.12, 0.18) * frames, _angle(rng) * frames], 1)
            sprites.append(self._sprite(rng, "panel", str(rng.choice(ACTING_FAMILIES)), pose))
        return sprites

    def drift(self, pixels: float) -> Tensor:
        """[T, 2], a smooth wandering of the camera by up to so many pixels in x and in y."""
        rng = self._rng(_DRIFT)
        moments = np.linspace(0, 1, self.config.num_frames)[:, None]
        waves = [np.sin(2 * math.pi * (rng.uniform(0.4, 1.2, 2) * moments + rng.uniform(0, 1, 2))) for _ in range(2)]
        return torch.from_numpy(pixels * np.mean(waves, axis=0)).float()

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([*self.key, purpose])

    def _sprite(self, rng: np.random.Generator, shape: str, family: str, pose: np.ndarray) -> Sprite:
        poses = torch.from_numpy(np.ascontiguousarray(pose)).float()
        return Sprite(shape=shape, texture_seed=texture_seed(rng, self.split), family=family, poses=poses)


def sample_phase(rng: np.random.Generator, config: HarderConfig) -> np.ndarray:
    """[T], from 0 to 1 at a speed that varies by `speed_ratio`, shortened to `travel` about its middle."""
    phase = np.linspace(0, 1, config.num_frames)
    if config.speed_ratio > 1:
        # steps between frames: backwards they are sampled as often as forwards
        moments = (phase[1:] + phase[:-1]) / 2
        waves, start = rng.uniform(0.5, 1.5), rng.uniform(0, 1)
        steps = config.speed_ratio ** (0.5 * np.sin(2 * math.pi * (waves * (moments - 0.5) + start)))
        phase = np.concatenate([[0.0], np.cumsum(steps) / steps.sum()])
    return phase if config.travel == 1 else 0.5 + config.travel * (phase - 0.5)


def texture_seed(rng: np.random.Generator, split: Split) -> int:
    """Out of the pool of the part."""
    pool = TRAIN_TEXTURES if split == "train" else TEST_TEXTURES
    return int(rng.integers(pool.start, pool.stop))


def level_settings(level: int, config: type[HarderConfig]) -> dict[str, Any]:
    """The settings of a level that a config has.

    Raises:
        ConfigError: the level is unknown.

    Example:
        >>> level_settings(1, HarderConfig)
        {'travel': 0.5, 'speed_ratio': 2.0}
    """
    if not 0 <= level < len(MOTION_LEVELS):
        raise ConfigError(f"level must be 0 to {len(MOTION_LEVELS) - 1}, got {level}. docs/data.md lists them.")
    known = {field.name for field in fields(config)}
    return {name: value for name, value in MOTION_LEVELS[level].items() if name in known}


def _angle(rng: np.random.Generator) -> float:
    return float(rng.uniform(0, 2 * math.pi))
