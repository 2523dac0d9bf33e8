import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinescan.data.video import write_video
from kinescan.errors import ConfigError
from kinescan.fields import MAX_SEED, check_most, check_types
from kinescan.settings import to_plain
from kinescan.shapes import Pixels
from kinescan.version import __version__

Split = Literal["train", "test"]

META = "meta.json"
QUANTIZER = 20


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Sizes, numbers and disturbances of data that makes itself.

    Attributes:
        frame_size: side of the square frame in pixels.
        num_frames: frames of a file.
        fps: frames per second.
        train_per_class: training files of a class.
        test_per_class: test files of a class.
        seed: the same seed makes the same pixels.
        noise_levels: standard deviation of the noise on every pixel and channel, in levels of 255.
        shake_pixels: how far the camera is off at most, in x and in y, pixels; drawn anew for every frame.
        workers: files made at a time.
        overwrite: replace a data set that stands in the folder.
    """

    frame_size: int = 64
    num_frames: int = 24
    fps: float = 12.0
    train_per_class: int = 100
    test_per_class: int = 25
    seed: int = 0
    noise_levels: float = 3.0
    shake_pixels: float = 1.0
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_most(self, frame_size=2**12, num_frames=2**16, fps=1e3, noise_levels=255, workers=1024, seed=MAX_SEED)
        check_most(self, train_per_class=2**20, test_per_class=2**20)
        lowest = {"frame_size": 16, "num_frames": 2, "train_per_class": 0, "test_per_class": 0, "seed": 0, "workers": 1}
        for name, least in {**lowest, "noise_levels": 0, "shake_pixels": 0}.items():
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not self.fps > 0:
            raise ConfigError(f"fps must be positive, got {self.fps}.")
        if self.shake_pixels > self.frame_size / 4:
            raise ConfigError(
                f"shake_pixels must be at most a quarter of frame_size {self.frame_size}, got {self.shake_pixels}: "
                "objects would leave the frame."
            )

    def per_class(self, split: Split) -> int:
        """Files of a class in `split`."""
        return self.train_per_class if split == "train" else self.test_per_class


@dataclass(frozen=True)
class SyntheticReport:
    """What was made.

    Attributes:
        folder: holds train/CLASS/*.mp4, test/CLASS/*.mp4 and meta.json.
        classes: in the order of their indices.
        num_train: files in train.
        num_test: files in test.
        seconds: wall time it took.
    """

    folder: Path
    classes: tuple[str, ...]
    num_train: int
    num_test: int
    seconds: float


@dataclass(frozen=True)
class ClipFile:
    """One file to be written: FOLDER/split/label/index.mp4."""

    split: Split
    label: str
    index: int
    pixels: Pixels


def write_dataset(
    folder: str | Path,
    kind: str,
    config: SyntheticConfig,
    classes: tuple[str, ...],
    jobs: Sequence[Callable[[], Iterable[ClipFile]]],
) -> SyntheticReport:
    """The files of all jobs, and meta.json with kind, config, classes and version.

    Every frame is a key frame with the same quantizer, so that a clip and its reversal are compressed alike: rate
    control looks back, and would leave a trace of the direction of time.
    """
    start = time.perf_counter()
    folder = Path(folder)
    _prepare(folder, config.overwrite)
    meta = {"kind": kind, "version": __version__, "classes": list(classes), "config": to_plain(config)}
    (folder / META).write_text(json.dumps({**meta, "complete": False}, indent=2) + "\n")

    def write(job: Callable[[], Iterable[ClipFile]]) -> None:
        for clip in job():
            path = folder / clip.split / clip.label / f"{clip.index:04d}.mp4"
            write_video(path, clip.pixels, fps=config.fps, quantizer=QUANTIZER, keyframe_interval=1)

    with ThreadPoolExecutor(config.workers) as pool:
        for _ in pool.map(write, jobs):
            pass
    (folder / META).write_text(json.dumps({**meta, "complete": True}, indent=2) + "\n")
    num_train, num_test = config.train_per_class * len(classes), config.test_per_class * len(classes)
    return SyntheticReport(folder, classes, num_train, num_test, seconds=time.perf_counter() - start)


def _prepare(folder: Path, overwrite: bool) -> None:
    """An empty, writable folder; what is removed on the way is a data set of ours, never anything else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = sorted(path.name for path in folder.iterdir())
        if present and not overwrite:
            raise ConfigError(
                f"{folder} is not empty ({present[0]}, ...). Name another folder, or let it be "
                "replaced: kinescan data make ... --set overwrite=true; in Python overwrite=True."
            )
        if present and META not in present:
            raise ConfigError(
                f"{folder} holds no {META}, so it is no data set of ours to overwrite. Name another folder."
            )
        for split in ("train", "test"):
            if (folder / split).is_dir():
                shutil.rmtree(folder / split)
        (folder / META).touch()
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror or error}. Name another folder.") from None
