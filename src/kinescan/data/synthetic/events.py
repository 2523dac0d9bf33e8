from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinescan.data.intervals import Interval
from kinescan.data.synthetic.event_scene import DISTRACTOR, EVENT_PAIRS, Life, sample_life_times, sample_lives
from kinescan.data.synthetic.scene import Scene, Sprite, render
from kinescan.data.synthetic.textures import FAMILIES, TEST_TEXTURES, TRAIN_TEXTURES
from kinescan.data.synthetic.writing import ClipFile, PictureConfig, Split, SyntheticReport, write_dataset
from kinescan.errors import ConfigError
from kinescan.fields import check_most
from kinescan.settings import closest
from kinescan.shapes import Pixels

DISTRACTOR_FAMILY = "checks"
"""The texture of what moves and means nothing; no object that acts has it."""
_FRAMES_AT_ONCE = 64
_ACTING_FAMILIES = tuple(family for family in FAMILIES if family != DISTRACTOR_FAMILY)
_SCENE, _FRAMES = 0, 1
"""What a generator is for: the scene must not change with the number of frames that are taken of it."""


@dataclass(frozen=True, kw_only=True)
class EventsConfig(PictureConfig):
    """What `make_events` makes.

    Attributes:
        train_videos: videos to train on.
        test_videos: videos to test on.
        seconds: how long a video is.
        pairs: which of "horizontal", "vertical", "turning", "scaling"; each gives two classes.
        objects: positions at which an object comes, rests, acts and goes; one acts at a time.
        overlaps: let the objects act at the same time, too.
        distractors: square, chequered panels that move as the objects do and mean nothing.
        shortest_seconds: of an event.
        longest_seconds: of an event.
        pause_seconds: between two events at a position, about; some pauses are several times longer.
        quiet_ratio: fraction of videos in which nothing happens.
        light_ratio: how much brighter or darker it gets at most: slowly, and now and then at once.
    """

    fps: float = 10.0
    train_videos: int = 24
    test_videos: int = 8
    seconds: float = 60.0
    pairs: tuple[str, ...] = ("horizontal", "turning", "scaling")
    objects: int = 2
    overlaps: bool = False
    distractors: int = 1
    shortest_seconds: float = 1.0
    longest_seconds: float = 2.0
    pause_seconds: float = 2.0
    quiet_ratio: float = 0.125
    light_ratio: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self, train_videos=2**16, test_videos=2**16, seconds=4 * 3600, objects=8, distractors=8)
        check_most(self, pause_seconds=3600, quiet_ratio=1, light_ratio=0.9)
        self._check_least(train_videos=0, test_videos=0, seconds=5, objects=1, distractors=0, quiet_ratio=0)
        self._check_least(shortest_seconds=0.2, longest_seconds=self.shortest_seconds, pause_seconds=1, light_ratio=0)
        if self.longest_seconds > 2.5:
            raise ConfigError(
                f"longest_seconds must be at most 2.5, got {self.longest_seconds}: objects would leave the frame."
            )
        if not self.pairs or len(set(self.pairs)) < len(self.pairs):
            raise ConfigError(f"pairs must name at least one pair, each once, got {list(self.pairs)}.")
        for pair in self.pairs:
            if pair not in EVENT_PAIRS:
                raise ConfigError(f"unknown pair {pair!r}. {closest(pair, EVENT_PAIRS)}")

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of their indices."""
        return tuple(sorted(name for pair in self.pairs for name in EVENT_PAIRS[pair]))

    def num_videos(self, split: Split) -> int:
        """Videos in `split`."""
        return self.train_videos if split == "train" else self.test_videos

    def is_quiet(self, index: int) -> bool:
        """Whether nothing happens in video `index` of a split."""
        return int((index + 1) * self.quiet_ratio) > int(index * self.quiet_ratio)


@dataclass(frozen=True, eq=False)
class EventScene:
    """One long video before it is rendered: the objects, those in front last, and its background's texture."""

    background_seed: int
    lives: tuple[Life, ...]
    texture_seeds: tuple[int, ...]
    seconds: float

    def intervals(self, video_id: str) -> tuple[Interval, ...]:
        """What the objects do, in the order of time; without what distractors do."""
        strokes = [stroke for life in self.lives if life.shape != DISTRACTOR for stroke in life.strokes]
        return tuple(
            Interval(video_id=video_id, label=stroke.label, start_seconds=stroke.start, end_seconds=stroke.end)
            for stroke in sorted(strokes, key=lambda stroke: (stroke.start, stroke.end))
        )


def make_events(folder: str | Path, config: EventsConfig | None = None) -> SyntheticReport:
    """Long videos in which something happens from time to time, and lists of what, from when to when.

    FOLDER/train/0000.mp4, FOLDER/test/0000.mp4, FOLDER/train.csv and FOLDER/test.csv with `path,start,end,label` (in
    seconds; a video in which nothing happens has one row without times and label), and FOLDER/meta.json. Textured
    objects come, rest, move in one of up to eight ways, rest, and go. Classes of a pair differ in direction only, and
    everything is drawn so that a single frame does not tell which of the two it is. Panels move in the same ways and
    mean nothing; the camera shakes; the light changes slowly and at once. An event begins when its object begins to
    move. Texture seeds of train and test come from disjoint pools.

    Args:
        folder: where to; made if missing.
        config: sizes, numbers, seed, what disturbs.

    Returns:
        What was made.

    Raises:
        ConfigError: the folder is not empty (see `overwrite`) or cannot be written.

    Example:
        >>> import tempfile
        >>> few = EventsConfig(train_videos=2, test_videos=1, seconds=20, frame_size=32, pairs=("turning",))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = make_events(folder, few)
        ...     print(sorted(path.name for path in Path(folder).iterdir()))
        ['meta.json', 'test', 'test.csv', 'train', 'train.csv']
        >>> report.classes, report.num_train, report.num_test
        (('clockwise', 'counterclockwise'), 2, 1)
    """
    config = config or EventsConfig()
    splits: tuple[Split, ...] = ("train", "test")
    jobs = [partial(_file, config, split, index) for split in splits for index in range(config.num_videos(split))]
    return write_dataset(
        folder, "events", config, config.classes, jobs, keyframe_interval=round(max(1.0, 2 * config.fps))
    )


def sample_event_scene(config: EventsConfig, split: Split, index: int) -> EventScene:
    """What happens in video `index`; the same at every frame rate and size."""
    rng = _generator(config, split, index, _SCENE)
    lives: list[Life] = []
    for times in _times_by_position(rng, config, quiet=config.is_quiet(index)):
        lives += sample_lives(rng, times, config.seconds, pairs=config.pairs, shape=None, others=lives)
    panels: list[Life] = []
    for _ in range(config.distractors):
        times = sample_life_times(rng, config.seconds, shortest=0.5, longest=2.0, pause=config.pause_seconds)
        panels += sample_lives(rng, times, config.seconds, pairs=config.pairs, shape=DISTRACTOR, others=())
    pool = TRAIN_TEXTURES if split == "train" else TEST_TEXTURES
    seeds = rng.integers(pool.start, pool.stop, 1 + len(panels) + len(lives)).tolist()
    return EventScene(seeds[0], (*panels, *lives), tuple(seeds[1:]), config.seconds)


def render_events(config: EventsConfig, split: Split, index: int) -> Pixels:
    """The frames of video `index`; that of time t shows the scene at t.

    Returns:
        [T, 3, frame_size, frame_size], uint8, T = seconds * fps; the same for the same arguments.
    """
    scene = sample_event_scene(config, split, index)
    rng = _generator(config, split, index, _FRAMES)
    seconds = np.arange(round(config.seconds * config.fps)) / config.fps
    light = _light(rng, config, seconds)
    noise_generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    chunks = []
    for first in range(0, len(seconds), _FRAMES_AT_ONCE):
        times = seconds[first : first + _FRAMES_AT_ONCE]
        noise = None
        if config.noise_levels:
            shape = (len(times), 3, config.frame_size, config.frame_size)
            noise = torch.empty(shape).normal_(std=config.noise_levels, generator=noise_generator)
        shake = torch.from_numpy(rng.uniform(-1, 1, (len(times), 2))).float() * config.shake_pixels
        shown = _shown(scene, times)
        gain = light[first : first + len(times)]
        chunks.append(render(shown, frame_size=config.frame_size, shake=shake, noise=noise, light=gain))
    return torch.cat(chunks)


def _file(config: EventsConfig, split: Split, index: int) -> Iterator[ClipFile]:
    intervals = sample_event_scene(config, split, index).intervals(f"{index:04d}")
    yield ClipFile(split, "", index, render_events(config, split, index), intervals)


def _generator(config: EventsConfig, split: Split, index: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, split == "test", index, purpose])


def _times_by_position(
    rng: np.random.Generator, config: EventsConfig, *, quiet: bool
) -> list[list[tuple[float, float]]]:
    """When something happens at each position: in turn over all of them, or at each one on its own."""

    def sample() -> list[tuple[float, float]]:
        return sample_life_times(
            rng,
            config.seconds,
            shortest=config.shortest_seconds,
            longest=config.longest_seconds,
            pause=config.pause_seconds,
        )

    if quiet:
        return [[] for _ in range(config.objects)]
    if config.overlaps:
        return [sample() for _ in range(config.objects)]
    times_by_position: list[list[tuple[float, float]]] = [[] for _ in range(config.objects)]
    for times in sample():
        times_by_position[int(rng.integers(config.objects))].append(times)
    return times_by_position


def _shown(scene: EventScene, seconds: NDArray[np.float64]) -> Scene:
    """The part of a scene at these times, with the objects only that are to be seen then."""
    sprites = []
    for life, seed in zip(scene.lives, scene.texture_seeds, strict=True):
        opacity = life.opacity_at(seconds)
        if opacity.any():
            poses = torch.from_numpy(life.poses_at(seconds)).float()
            seen = torch.from_numpy(opacity).float()
            family = DISTRACTOR_FAMILY if life.shape == DISTRACTOR else _ACTING_FAMILIES[seed % len(_ACTING_FAMILIES)]
            sprites.append(Sprite(shape=life.shape, texture_seed=seed, family=family, poses=poses, opacity=seen))
    return Scene(background_seed=scene.background_seed, sprites=tuple(sprites), num_frames=len(seconds))


def _light(rng: np.random.Generator, config: EventsConfig, seconds: NDArray[np.float64]) -> Tensor:
    """[T, 3]: two slow waves, and lamps that continue and off, each colour a little by itself."""
    periods, phases = rng.uniform(8, 40, 2), rng.uniform(0, 2 * np.pi, 2)
    waves = np.sin(2 * np.pi * seconds[:, None] / periods + phases).mean(1)
    switches = np.sort(rng.uniform(0, config.seconds, rng.poisson(config.seconds / 20)))
    levels = rng.uniform(-1, 1, len(switches) + 1)
    lamps = levels[np.searchsorted(switches, seconds, side="right")]
    tint = rng.uniform(-0.3, 0.3, 3) * waves[:, None]
    light = 1 + config.light_ratio * np.clip(0.5 * waves + 0.5 * lamps, -1, 1)[:, None] * (1 + tint)
    return torch.from_numpy(light).float()
