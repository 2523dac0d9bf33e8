from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.data.synthetic.harder import Extras, HarderConfig
from kinescan.data.synthetic.motion import MOTION_PAIRS, USUAL_PAIRS, check_pairs, sample_disturbances
from kinescan.data.synthetic.scene import paste_sprites, to_levels
from kinescan.data.synthetic.sources import Sources, find_sources
from kinescan.data.synthetic.window_paths import WINDOW_PATHS, WindowPath, place_window
from kinescan.data.synthetic.writing import (
    ClipFile,
    Split,
    SyntheticReport,
    require_free,
    write_dataset,
)
from kinescan.data.video import VideoReader
from kinescan.errors import ConfigError
from kinescan.fields import check_most
from kinescan.runtime.addresses import require_local
from kinescan.shapes import Pixels

_TRIES = 6
_SHOWS_ENOUGH = 12 / 255
"""A window is sampled again while what it shows varies less than this, as a standard deviation."""
_ORDER, _PATH = 11, 12
"""What a generator is for, beside those of `Extras`."""


@dataclass(frozen=True, kw_only=True)
class WindowConfig(HarderConfig):
    """What `make_windows` makes.

    Attributes:
        source: folder with videos and pictures, in it or in folders below.
        pairs: which of `WINDOW_PATHS`; each gives two classes. By default all but the diagonal ones.
        test_ratio: fraction of the source files that test clips are cut from; where the folder has parts (train beside
            test or val), those count and not this.
        clip_speed: how fast videos play under the window; at 0 each clip shows one frame of them.
    """

    source: str = ""
    pairs: tuple[str, ...] = tuple(pair for pair in USUAL_PAIRS if pair in WINDOW_PATHS)
    test_ratio: float = 0.3
    clip_speed: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_most(self, test_ratio=0.9, clip_speed=100)
        self._check_least(test_ratio=0.05, clip_speed=0)
        check_pairs(self.pairs, tuple(WINDOW_PATHS))
        if not self.source:
            raise ConfigError("source must name a folder with videos or pictures: kinescan data make motion --from ...")


def make_windows(folder: str | Path, config: WindowConfig) -> SyntheticReport:
    """Video files of windows that move, turn or zoom over real videos and pictures; only that motion tells the class.

    FOLDER/train/CLASS/0000.mp4, FOLDER/test/CLASS/0000.mp4, and FOLDER/meta.json. A class is named for what is seen: at
    "right" the picture moves to the right (the window to the left), at "growing" it grows. File k of a class is file k
    of its mate backwards, every frame compressed by itself; so the frames of the two are the same and only their order
    differs: what averages over frames is right in exactly half of the cases within a pair. Videos play under the
    window: things in them move, too, and that means nothing, since each class has every video as often backwards as
    forwards. Training and test clips have no source file in common; files of the same pictures count as one.

    Args:
        folder: where to; made if missing.
        config: the folder of sources, sizes, numbers, seed, how hard.

    Returns:
        What was made, from which files, and which were left out.

    Raises:
        ConfigError: the folder is not empty (see `overwrite`), cannot be written or lies in that of the source files,
            or there are too few of them.
        VideoError: a source file cannot be read any more.
    """
    require_local(folder)
    target, source = Path(folder).resolve(), Path(config.source).resolve()
    if target == source or source in target.parents:
        raise ConfigError(
            f"{folder} lies in the folder of the source files, {config.source}, and would be one of them later. Name "
            "another folder."
        )
    require_free(Path(folder), config.overwrite)
    splits: tuple[Split, ...] = ("train", "test")
    sources = find_sources(
        config.source,
        needed={split: len(config.pairs) * config.per_class(split) for split in splits},
        test_ratio=config.test_ratio,
        seed=config.seed,
        workers=config.workers,
    )
    jobs = [
        partial(_twin_files, config, sources, split, pair, index)
        for split in splits
        for pair in config.pairs
        for index in range(config.per_class(split))
    ]
    classes = tuple(sorted(name for pair in config.pairs for name in MOTION_PAIRS[pair]))
    about = {"sources": sources.names, "left_out": sources.left_out}
    report = write_dataset(folder, "motion", config, classes, jobs, about=about)
    return replace(report, sources=sources.names, left_out=sources.left_out)


def render_window(config: WindowConfig, sources: Sources, split: Split, pair: str, index: int) -> Pixels:
    """Clip `index` of the first class of `pair`; played backwards it is clip `index` of the second.

    Returns:
        [T, 3, frame_size, frame_size], uint8; the same for the same arguments and files.

    Raises:
        VideoError: the source file cannot be read any more.
    """
    key = (config.seed, int(split == "test"), list(MOTION_PAIRS).index(pair), index)
    extras = Extras(key, config, split)
    name, is_backwards = choose_source(key, sources.names[split])
    rng = np.random.default_rng([*key, _PATH])
    frames = _read_frames(sources.folder / name, rng, config)
    if is_backwards:
        frames = frames[::-1]
    if rng.integers(2):
        frames = [frame.flip(2) for frame in frames]
    shake, noise = sample_disturbances(rng, config)
    canvas = _draw_window(rng, WINDOW_PATHS[pair], extras.phase(), frames, config.frame_size, shake)
    canvas = paste_sprites(canvas, [*extras.distractors(), *extras.occluders()], torch.zeros(config.num_frames, 2))
    return to_levels(canvas, contrast=config.contrast, noise=noise)


def _twin_files(config: WindowConfig, sources: Sources, split: Split, pair: str, index: int) -> Iterator[ClipFile]:
    pixels = render_window(config, sources, split, pair, index)
    forwards, backwards = MOTION_PAIRS[pair]
    yield ClipFile(split, forwards, index, pixels)
    yield ClipFile(split, backwards, index, pixels.flip(0))


def choose_source(key: tuple[int, ...], names: Sequence[str]) -> tuple[str, bool]:
    """Which file, and whether it plays backwards in the first class (and forwards in the second).

    In every round, each file comes once in each direction, so that its own motion does not go with a class.
    """
    *rest, index = key
    round_index, position = divmod(index, 2 * len(names))
    order = np.random.default_rng([*rest, round_index, _ORDER]).permutation(2 * len(names))
    return names[order[position] // 2], bool(order[position] % 2)


def _read_frames(path: Path, rng: np.random.Generator, config: WindowConfig) -> list[Tensor]:
    """One picture [3, H, W] for each frame of the clip; the same one throughout where nothing plays."""
    start = float(rng.uniform(0, 1))
    with VideoReader(path, square_pixels=True) as video:
        times = video.pts_seconds.double().numpy()
        span = min((config.num_frames - 1) / config.fps * config.clip_speed, float(times[-1] - times[0]))
        wanted = times[0] + start * (times[-1] - times[0] - span) + np.linspace(0, span, config.num_frames)
        indices = np.clip(np.searchsorted(times, wanted + 1e-6, side="right") - 1, 0, len(times) - 1)
        distinct, positions = np.unique(indices, return_inverse=True)
        pixels = video.read(distinct.tolist()).pixels
    return [pixels[position] for position in positions]


def _draw_window(
    rng: np.random.Generator,
    make_path: Callable[[np.random.Generator, np.ndarray], WindowPath],
    phase: np.ndarray,
    frames: Sequence[Tensor],
    size: int,
    shake: Tensor,
) -> Tensor:
    """[T, 3, size, size] in [0, 1]: a window whose content varies enough for its motion to be seen, if one is found."""
    height, width = frames[0].shape[1:]
    shorter = min(height, width)
    best, most = torch.empty(0), -1.0
    for _ in range(_TRIES):
        path = place_window(rng, make_path(rng, phase), width / shorter, height / shorter)
        seen = torch.stack([_look(frame, path, t, size, shake[t]) for t, frame in enumerate(frames)])
        variation = float(seen.std(dim=(2, 3)).amax(dim=1).mean())
        if variation > most:
            best, most = seen, variation
        if variation >= _SHOWS_ENOUGH:
            break
    return best


def _look(frame: Tensor, path: WindowPath, t: int, size: int, shake: Tensor) -> Tensor:
    """[3, size, size] in [0, 1]: the window at frame t, taken from the picture at about one pixel for one."""
    shorter = min(frame.shape[1:])
    side = float(path.sides[t]) * shorter
    x, y = (path.centres[t] * shorter).tolist()
    step = side / size
    half = float(path.reach()[t, 0]) * shorter + 2 * step
    left, right = max(0, int(x - half)), min(frame.shape[2], int(x + half) + 2)
    top, bottom = max(0, int(y - half)), min(frame.shape[1], int(y + half) + 2)
    crop = frame[:, top:bottom, left:right].float().unsqueeze(0) / 255
    if step > 1:
        small = [max(2, round(length / step)) for length in crop.shape[2:]]
        crop = F.interpolate(crop, size=small, mode="bilinear", antialias=True)
    steps = (torch.arange(size, dtype=torch.float32) + 0.5 - size / 2) * step
    down, across = torch.meshgrid(steps - float(shake[1]) * step, steps - float(shake[0]) * step, indexing="ij")
    cosine, sine = float(np.cos(path.angles[t])), float(np.sin(path.angles[t]))
    # what is seen appears turned clockwise where the window is turned the other way
    column = x + cosine * across + sine * down - left
    row = y - sine * across + cosine * down - top
    grid = torch.stack([2 * column / (right - left) - 1, 2 * row / (bottom - top) - 1], dim=-1)
    return F.grid_sample(crop, grid.unsqueeze(0), mode="bilinear", padding_mode="border", align_corners=False)[0]
